//! libp2p's TLS, with our settings: `libp2p-tls` always offers ChaCha20 first, which costs three times the CPU of AES
//! where the processor has instructions for AES; it honours `SSLKEYLOGFILE`; it resumes sessions, which would outlive a
//! peer's removal; and it brings a second cryptography library. The protocol is the same.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    identity::Keypair,
};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, NoKeyLog,
    OtherError, ServerConfig, SignatureScheme, SupportedCipherSuite,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            self,
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
        },
    },
    pki_types::{CertificateDer, DnsName, ServerName, UnixTime},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::certificate::{self, SCHEMES};

/// Protocol of the application layer, as libp2p names it.
const ALPN: &[u8] = b"libp2p";
/// What is inside looks like this at first.
const WEB_ALPN: &[u8] = b"http/1.1";

/// Encrypts connections and proves both peer ids.
#[derive(Clone)]
pub(crate) struct Security {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Security {
    pub(crate) fn new(key: &Keypair) -> Result<Self, String> {
        let own = Arc::new(Own(certificate::generate(key)?));
        let (server, client) = (server_config(own.clone())?, client_config(own)?);
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }

    /// What rustls is told, as server and as client.
    pub(crate) fn configs(&self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        (self.server.clone(), self.client.clone())
    }

    /// The same, under the name of HTTP: what a middle box expects on port 443.
    pub(crate) fn for_web(&self) -> Self {
        let (mut server, mut client) = ((*self.server).clone(), (*self.client).clone());
        server.alpn_protocols = vec![WEB_ALPN.to_vec()];
        client.alpn_protocols = vec![WEB_ALPN.to_vec()];
        client.enable_sni = true;
        Self { server: Arc::new(server), client: Arc::new(client) }
    }

    /// Encrypts an accepted connection.
    pub(crate) async fn accept<C>(self, socket: C) -> io::Result<(PeerId, TlsStream<C>)>
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.upgrade_inbound(socket, "").await
    }

    /// Encrypts a connection to a host. A name is shown to the network, an address never.
    pub(crate) async fn connect<C>(self, socket: C, host: &str) -> io::Result<(PeerId, TlsStream<C>)>
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let name = DnsName::try_from(host.to_owned()).map_or_else(|_| nobody(), ServerName::DnsName);
        let stream = TlsConnector::from(self.client).connect(name, socket).await?;
        Ok((peer_of(stream.get_ref().1)?, stream.into()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites(has_aes());
    Arc::new(provider)
}

fn server_config(own: Arc<Own>) -> Result<ServerConfig, String> {
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(Arc::new(OwnerOfKey))
        .with_cert_resolver(own);
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.key_log = Arc::new(NoKeyLog {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

fn client_config(own: Arc<Own>) -> Result<ClientConfig, String> {
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OwnerOfKey))
        .with_client_cert_resolver(own);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(client)
}

/// In order of preference. The dialler's order decides.
fn suites(aes: bool) -> Vec<SupportedCipherSuite> {
    if aes {
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
    } else {
        vec![TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
    }
}

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// This node's certificate. Its critical extension is libp2p's own, so rustls cannot check it for us.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Accepts a peer that holds the key that its certificate binds to a peer id. Whether it is the peer that was dialled
/// is compared by the swarm, and whether that peer is known by the behaviour.
#[derive(Debug)]
struct OwnerOfKey;

impl OwnerOfKey {
    fn check(shown: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("a peer shows exactly one certificate".to_owned()));
        }
        certificate::parse(shown).and_then(|c| c.at(now)).map_err(refused)
    }

    fn check_handshake(
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        certificate::verify_handshake(shown, signed.scheme, message, signed.signature()).map_err(refused)?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

/// What the peer is told, and what is logged here.
fn refused(error: certificate::CertificateError) -> Error {
    use certificate::CertificateError as E;
    Error::InvalidCertificate(match error {
        E::Encoding | E::Extension => CertificateError::BadEncoding,
        E::HostSignature | E::SelfSignature | E::Handshake => CertificateError::BadSignature,
        E::Time | E::Critical | E::HostKey | E::Algorithm => {
            CertificateError::Other(OtherError(Arc::new(error)))
        }
    })
}

/// TLS 1.2 is not offered; were it spoken all the same, nothing would be proved.
fn too_old() -> Error {
    Error::General("only TLS 1.3 is spoken".to_owned())
}

/// What both of rustls' verifier traits ask in the same words: one signature by the key of the certificate, in TLS 1.3.
macro_rules! signatures_of_owner {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(too_old())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Self::check_handshake(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            SCHEMES.to_vec()
        }
    };
}

impl ServerCertVerifier for OwnerOfKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check(certificate, others, now).map(|()| ServerCertVerified::assertion())
    }

    signatures_of_owner!();
}

impl ClientCertVerifier for OwnerOfKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(certificate, others, now).map(|()| ClientCertVerified::assertion())
    }

    signatures_of_owner!();
}

impl UpgradeInfo for Security {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/tls/1.0.0")
    }
}

/// Peers have no names; an address is never sent.
fn nobody() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The peer whose key signed the certificate of the other side.
fn peer_of(state: &CommonState) -> io::Result<PeerId> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some([certificate]) = state.peer_certificates() else {
        return Err(invalid("the peer shows no certificate, or several"));
    };
    certificate::peer_of(certificate).map_err(|e| invalid(&e.to_string()))
}

impl<C> InboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            let stream = TlsAcceptor::from(self.server).accept(socket).await?;
            Ok((peer_of(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

impl<C> OutboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            let stream = TlsConnector::from(self.client).connect(nobody(), socket).await?;
            Ok((peer_of(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn shake(dialler: Security, listener: Security) -> (io::Result<TlsEnd>, io::Result<TlsEnd>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::join!(
            dialler.upgrade_outbound(near.compat(), "/tls/1.0.0"),
            listener.upgrade_inbound(far.compat(), "/tls/1.0.0"),
        )
    }

    type TlsEnd = (PeerId, TlsStream<tokio_util::compat::Compat<tokio::io::DuplexStream>>);

    #[tokio::test]
    async fn both_sides_learn_the_peer_and_take_the_cheap_cipher() {
        let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (near, far) = shake(Security::new(&a).unwrap(), Security::new(&b).unwrap()).await;
        let ((seen_by_a, stream), (seen_by_b, _)) = (near.unwrap(), far.unwrap());
        assert_eq!((seen_by_a, seen_by_b), (b.public().to_peer_id(), a.public().to_peer_id()));
        let TlsStream::Client(stream) = stream else { panic!("not a client") };
        let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, suites(has_aes())[0].suite());
        assert_ne!(suites(true)[0].suite(), suites(false)[0].suite());
    }

    #[tokio::test]
    async fn a_certificate_without_its_key_is_worth_nothing() {
        let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        // An impostor shows the certificate of `b`, which everyone has seen, and signs with a key of its own.
        let (stolen, own) = (certificate::generate(&b).unwrap(), certificate::generate(&a).unwrap());
        let impostor = Arc::new(Own(Arc::new(CertifiedKey::new(stolen.cert.clone(), own.key.clone()))));
        let (server, client) = (server_config(impostor.clone()).unwrap(), client_config(impostor).unwrap());
        let (server, client) = (Arc::new(server), Arc::new(client));
        let bad = Security { server, client };
        let good = Security::new(&Keypair::generate_ed25519()).unwrap();
        assert!(shake(good.clone(), bad.clone()).await.0.is_err(), "as a server");
        let (_, far) = shake(bad, good).await;
        assert!(far.is_err(), "as a client");
    }

    /// Others speak it with `libp2p-tls`.
    #[tokio::test]
    async fn the_usual_implementation_understands_ours_and_ours_it() {
        use libp2p_tls::{Config, make_client_config, make_server_config};
        let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (near, far) = tokio::io::duplex(64 << 10);
        let (ours, theirs) = tokio::join!(
            Security::new(&a).unwrap().upgrade_outbound(near.compat(), "/tls/1.0.0"),
            Config::new(&b).unwrap().upgrade_inbound(far.compat(), "/tls/1.0.0"),
        );
        assert_eq!(ours.unwrap().0, b.public().to_peer_id());
        assert_eq!(theirs.unwrap().0, a.public().to_peer_id());
        let (near, far) = tokio::io::duplex(64 << 10);
        let (theirs, ours) = tokio::join!(
            Config::new(&b).unwrap().upgrade_outbound(near.compat(), "/tls/1.0.0"),
            Security::new(&a).unwrap().upgrade_inbound(far.compat(), "/tls/1.0.0"),
        );
        assert_eq!(ours.unwrap().0, b.public().to_peer_id());
        assert_eq!(theirs.unwrap().0, a.public().to_peer_id());
        // The same offers, so that neither side is surprised.
        let (server, client) = Security::new(&a).unwrap().configs();
        assert_eq!(server.alpn_protocols, make_server_config(&a).unwrap().alpn_protocols);
        assert_eq!(client.alpn_protocols, make_client_config(&a, None).unwrap().alpn_protocols);
    }
}
