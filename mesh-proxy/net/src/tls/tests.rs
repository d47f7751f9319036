use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DOMAIN: &str = "cluster.local";
const BOTH: &[Eku] = &[Eku::ClientAuth, Eku::ServerAuth];

struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

struct Leaf<'a> {
    uris: &'a [&'a str],
    usages: &'a [Eku],
    /// Seconds from now.
    valid: (i64, i64),
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        Self { uris: &["spiffe://cluster.local/node/edge-a"], usages: BOTH, valid: (-60, 3600) }
    }
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(parameters, key) }
    }

    fn sign(&self, leaf: &Leaf<'_>) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names =
            leaf.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        parameters.extended_key_usages = leaf.usages.to_vec();
        let at = |seconds: i64| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
            (SystemTime::UNIX_EPOCH + Duration::from_secs((now + seconds) as u64)).into()
        };
        (parameters.not_before, parameters.not_after) = (at(leaf.valid.0), at(leaf.valid.1));
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn credentials(&self, leaf: &Leaf<'_>, trust: &Ca) -> Credentials {
        let (certificate, key) = self.sign(leaf);
        let chain = vec![certificate, self.certificate.clone()];
        Credentials { chain, key, roots: vec![trust.certificate.clone()] }
    }

    fn node(&self, name: &str) -> NodeTls {
        let uri = format!("spiffe://{DOMAIN}/node/{name}");
        NodeTls::new(DOMAIN, self.credentials(&Leaf { uris: &[&uri], ..Leaf::default() }, self)).unwrap()
    }

    fn controller(&self) -> NodeTls {
        let leaf = Leaf { uris: &["spiffe://cluster.local/controller"], ..Leaf::default() };
        NodeTls::new(DOMAIN, self.credentials(&leaf, self)).unwrap()
    }
}

/// Both sides' verdicts: the server's view of the client, and the client's of the server.
async fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> (Result<Option<SpiffeId>, String>, Result<SpiffeId, String>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let id = |certificates: Option<&[CertificateDer<'_>]>| {
        PeerIdentity::from_certificates(certificates).map(|peer| peer.spiffe)
    };
    let server_side = async {
        let mut stream = accept(server, near).await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        stream.write_all(&byte).await.map_err(|error| error.to_string())?;
        Ok(id(stream.get_ref().1.peer_certificates()).ok())
    };
    let client_side = async {
        // In TLS 1.3 the client learns of a refusal only when it reads.
        let mut stream = connect(client, far).await.map_err(|error| error.to_string())?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.read_exact(&mut [0]).await.map_err(|error| error.to_string())?;
        id(stream.get_ref().1.peer_certificates()).map_err(|error| error.to_string())
    };
    tokio::join!(server_side, client_side)
}

fn required(tls: &NodeTls) -> Arc<ServerConfig> {
    tls.server_config(ClientAuth::Required(Expect::AnyNode), &[b"h2"]).unwrap()
}

fn calling(tls: &NodeTls, node: &str) -> Arc<ClientConfig> {
    tls.client_config(Expect::Node(node.into()), &[b"h2"]).unwrap()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = Ca::new();
    let (a, b) = (ca.node("edge-a"), ca.node("edge-b"));
    let (server, client) = handshake(&calling(&a, "edge-b"), &required(&b)).await;
    assert_eq!(server.unwrap().unwrap().node(), Some("edge-a"));
    assert_eq!(client.unwrap().as_str(), "spiffe://cluster.local/node/edge-b");
}

#[tokio::test]
async fn the_wrong_node_is_refused() {
    let ca = Ca::new();
    let (_, client) = handshake(&calling(&ca.node("edge-a"), "edge-b"), &required(&ca.node("edge-c"))).await;
    let error = client.unwrap_err();
    assert!(error.contains("node edge-b") || error.contains("Unexpected"), "{error}");
    // A node's certificate is good for servers, but not for the controller's.
    let as_controller = ca.node("edge-a").client_config(Expect::Controller, &[]).unwrap();
    assert!(handshake(&as_controller, &required(&ca.node("edge-c"))).await.1.is_err());
}

#[tokio::test]
async fn another_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let stranger = theirs.node("edge-b");
    assert!(handshake(&calling(&ours.node("edge-a"), "edge-b"), &required(&stranger)).await.1.is_err());
    // The client would accept us, but is itself signed by the other CA.
    let leaf = Leaf { uris: &["spiffe://cluster.local/node/edge-x"], ..Leaf::default() };
    let client = NodeTls::new(DOMAIN, theirs.credentials(&leaf, &ours)).unwrap();
    let (server, client) = handshake(&calling(&client, "edge-a"), &required(&ours.node("edge-a"))).await;
    assert!(server.is_err() && client.is_err());
}

#[tokio::test]
async fn certificates_that_are_expired_or_not_for_this_use_or_not_ours_are_refused() {
    let ca = Ca::new();
    let two = ["spiffe://cluster.local/node/edge-a", "spiffe://cluster.local/node/edge-b"];
    let bad = [
        ("expired", Leaf { valid: (-7200, -3600), ..Leaf::default() }),
        ("not yet valid", Leaf { valid: (3600, 7200), ..Leaf::default() }),
        ("no usage", Leaf { usages: &[], ..Leaf::default() }),
        ("code signing", Leaf { usages: &[Eku::CodeSigning], ..Leaf::default() }),
        ("controller as a node", Leaf { uris: &["spiffe://cluster.local/controller"], ..Leaf::default() }),
    ];
    for (name, leaf) in &bad {
        let peer = NodeTls::new(DOMAIN, ca.credentials(leaf, &ca)).unwrap();
        let client = ca.node("edge-b");
        assert!(
            handshake(&calling(&client, "edge-a"), &required(&peer)).await.1.is_err(),
            "{name} as server"
        );
        let (server, _) = handshake(&calling(&peer, "edge-b"), &required(&client)).await;
        assert!(server.is_err(), "{name} as client");
    }
    for (name, usages) in [("client only", &[Eku::ClientAuth]), ("server only", &[Eku::ServerAuth])] {
        let peer = NodeTls::new(DOMAIN, ca.credentials(&Leaf { usages, ..Leaf::default() }, &ca)).unwrap();
        let other = ca.node("edge-b");
        let as_server = handshake(&calling(&other, "edge-a"), &required(&peer)).await.1;
        let as_client = handshake(&calling(&peer, "edge-b"), &required(&other)).await.0;
        assert_eq!(
            (as_server.is_ok(), as_client.is_ok()),
            (name == "server only", name == "client only"),
            "{name}"
        );
    }
    // Credentials of our own that can never work are refused when they are loaded.
    let foreign = Leaf { uris: &["spiffe://other.domain/node/edge-a"], ..Leaf::default() };
    assert!(matches!(NodeTls::new(DOMAIN, ca.credentials(&foreign, &ca)), Err(TlsError::TrustDomain(_))));
    for uris in [&two[..], &[], &["https://example.com/"]] {
        let error = NodeTls::new(DOMAIN, ca.credentials(&Leaf { uris, ..Leaf::default() }, &ca));
        assert!(matches!(error, Err(TlsError::Identity(_))), "{uris:?}");
    }
}

#[tokio::test]
async fn a_peer_of_another_trust_domain_under_the_same_ca_is_refused() {
    let ca = Ca::new();
    let leaf = Leaf { uris: &["spiffe://other.domain/node/edge-b"], ..Leaf::default() };
    let other = NodeTls::new("other.domain", ca.credentials(&leaf, &ca)).unwrap();
    let ours = ca.node("edge-a");
    assert!(handshake(&calling(&ours, "edge-b"), &required(&other)).await.1.is_err());
    assert!(handshake(&calling(&other, "edge-a"), &required(&ours)).await.0.is_err());
}

#[tokio::test]
async fn a_replacement_counts_from_the_next_handshake_and_nothing_is_resumed() {
    let (old, new) = (Ca::new(), Ca::new());
    let (a, b) = (old.node("edge-a"), old.node("edge-b"));
    let (client, server) = (calling(&a, "edge-b"), required(&b));
    for _ in 0..3 {
        handshake(&client, &server).await.1.unwrap();
    }
    let leaf = Leaf { uris: &["spiffe://cluster.local/node/edge-b"], ..Leaf::default() };
    b.replace(new.credentials(&leaf, &new)).unwrap();
    // Same configurations: with resumption this would go on working.
    assert!(handshake(&client, &server).await.1.is_err());
    a.replace(new.credentials(&Leaf::default(), &new)).unwrap();
    let (server_saw, client_saw) = handshake(&client, &server).await;
    assert_eq!(server_saw.unwrap().unwrap().node(), Some("edge-a"));
    client_saw.unwrap();
    // A bad replacement changes nothing.
    let mut bad = new.credentials(&leaf, &new);
    bad.key = new.sign(&leaf).1;
    assert!(matches!(b.replace(bad), Err(TlsError::Key(_))));
    handshake(&client, &server).await.1.unwrap();
    assert!(b.validity().1 > SystemTime::now() + Duration::from_secs(3000));
}

#[tokio::test]
async fn joining_trusts_only_the_pinned_ca_and_only_a_controller_below_it() {
    let ca = Ca::new();
    let pin = fingerprint(&ca.certificate);
    let optional =
        |tls: &NodeTls| tls.server_config(ClientAuth::Optional(Expect::AnyNode), &[b"h2"]).unwrap();
    let server = optional(&ca.controller());
    let join = join_client_config(DOMAIN, pin, &[b"h2"]).unwrap();
    let (server_saw, client_saw) = handshake(&join, &server).await;
    assert_eq!(server_saw.unwrap(), None);
    assert!(client_saw.unwrap().is_controller());
    // With a certificate the same listener knows the client.
    let member = ca.node("edge-a").client_config(Expect::Controller, &[b"h2"]).unwrap();
    assert_eq!(handshake(&member, &server).await.0.unwrap().unwrap().node(), Some("edge-a"));

    let wrong_pin = join_client_config(DOMAIN, [7; 32], &[b"h2"]).unwrap();
    assert!(handshake(&wrong_pin, &server).await.1.is_err());
    assert!(handshake(&join, &optional(&ca.node("edge-b"))).await.1.is_err());
    assert!(handshake(&join, &optional(&Ca::new().controller())).await.1.is_err());
    // A listener that wants certificates refuses the one without.
    assert!(handshake(&join, &required(&ca.controller())).await.0.is_err());
}

#[tokio::test]
async fn a_pinned_ca_sent_along_does_not_help_a_leaf_signed_by_another() {
    let (ca, evil) = (Ca::new(), Ca::new());
    let leaf = Leaf { uris: &["spiffe://cluster.local/controller"], ..Leaf::default() };
    let mut credentials = evil.credentials(&leaf, &evil);
    credentials.chain.push(ca.certificate.clone());
    let server = NodeTls::new(DOMAIN, credentials).unwrap();
    let server = server.server_config(ClientAuth::Optional(Expect::Anyone), &[]).unwrap();
    let join = join_client_config(DOMAIN, fingerprint(&ca.certificate), &[]).unwrap();
    assert!(handshake(&join, &server).await.1.is_err());
}

#[test]
fn identities() {
    let id = SpiffeId::parse("spiffe://cluster.local/node/edge-a").unwrap();
    assert_eq!((id.trust_domain(), id.path(), id.node()), ("cluster.local", "node/edge-a", Some("edge-a")));
    assert_eq!(SpiffeId::parse("spiffe://td/node/a/b").unwrap().node(), None);
    for bad in [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/",
        "spiffe:///x",
        "SPIFFE://td/x",
        "https://td/x",
        "spiffe://TD/x",
        "spiffe://td/a//b",
        "spiffe://td/../x",
        "spiffe://td/a b",
        "spiffe://td/x?y",
        "spiffe://u@td/x",
    ] {
        assert!(SpiffeId::parse(bad).is_err(), "{bad}");
    }
}
