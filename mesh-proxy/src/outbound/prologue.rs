//! What a connection to an endpoint begins with, as its DestinationRule orders: keep-alive probes, the PROXY protocol's
//! header, a request to an HTTP proxy, a TLS handshake, in this order. Most connections have none of it.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use mesh_core::{
    EffectivePolicy,
    policy::{ClientTls, ClientTlsMode, ConnectTunnel, ProxyProtocol, TcpKeepalive},
};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{connect::Wanted, connector::ConnectError, endpoint::Endpoint, stream::Upstream, tls};

/// Longest head of an HTTP proxy's answer.
const MAX_HEAD: usize = 8 << 10;

/// All of it.
#[derive(Debug)]
pub(crate) struct Prologue {
    keepalive: Option<TcpKeepalive>,
    proxy: Option<ProxyProtocol>,
    tunnel: Option<Arc<ConnectTunnel>>,
    tls: Option<Arc<ClientTls>>,
}

/// Both sides of a connection, as its beginning tells of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ends<'a> {
    /// The client.
    pub(crate) client: Option<SocketAddr>,
    /// What the client called.
    pub(crate) called: Option<SocketAddr>,
    /// The host that the request asks for, for SNI.
    pub(crate) host: &'a str,
    /// Protocols to offer in the handshake.
    pub(crate) alpn: tls::Alpn,
    /// Secret with the certificate to show, when the rule has none; empty = none.
    pub(crate) own: &'a str,
}

impl Prologue {
    /// What a policy orders; none = nothing.
    pub(crate) fn of(policy: &EffectivePolicy) -> Option<Rc<Self>> {
        let tls = policy.tls.originates().then(|| Arc::clone(&policy.tls));
        let (keepalive, proxy) = (policy.pool.tcp_keepalive, policy.proxy_protocol);
        let nothing = keepalive.is_none() && proxy.is_none() && policy.tunnel.is_none() && tls.is_none();
        (!nothing).then(|| Rc::new(Self { keepalive, proxy, tunnel: policy.tunnel.clone(), tls }))
    }

    /// Whether the connection is a TLS one.
    pub(crate) const fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }

    /// The handshake that a connection begins with. Between nodes of the mesh the tunnel proves and encrypts already, as
    /// ISTIO_MUTUAL asks for; a pod behind it speaks plaintext.
    fn handshake(&self, endpoint: &Endpoint) -> Option<&Arc<ClientTls>> {
        let by_tunnel = |p: &&Arc<ClientTls>| p.mode == ClientTlsMode::IstioMutual && endpoint.node.is_some();
        self.tls.as_ref().filter(|p| !by_tunnel(p))
    }

    /// Begins a connection.
    pub(crate) async fn run(
        &self,
        mut stream: Upstream,
        wanted: &Wanted<'_>,
        endpoint: &Endpoint,
    ) -> Result<Upstream, ConnectError> {
        let addr = endpoint.addr;
        let failed = |e| ConnectError::Tcp(addr, e);
        if let (Some(keepalive), Upstream::Tcp(socket)) = (self.keepalive, &stream) {
            probe(socket, keepalive);
        }
        let ends = &wanted.ends;
        if let Some(version) = self.proxy {
            let header = proxy_header(version, ends.client, ends.called.or(Some(addr)));
            stream.write_all(&header).await.map_err(failed)?;
        }
        if let Some(tunnel) = &self.tunnel {
            ask_proxy(&mut stream, tunnel).await.map_err(failed)?;
        }
        match self.handshake(endpoint) {
            None => Ok(stream),
            Some(policy) => {
                let shared = &wanted.worker.shared;
                let cluster = &wanted.state.cluster;
                let config = shared
                    .tls
                    .client(
                        &wanted.worker.tables(),
                        policy,
                        &cluster.subject_alt_names,
                        (ends.alpn, ends.own),
                    )
                    .map_err(|e| ConnectError::Tls(addr, e))?;
                let host = if ends.host.is_empty() { &*cluster.key.host } else { ends.host };
                let name = tls::server_name(policy, host, addr.ip());
                let connector = tokio_rustls::TlsConnector::from(config);
                let opened = connector.connect(name, stream).await;
                let opened = opened.map_err(|e| ConnectError::Tls(addr, e.to_string()))?;
                Ok(Upstream::Tls(Box::new(opened)))
            }
        }
    }
}

/// What the system refuses is not worth the connection.
fn probe(socket: &tokio::net::TcpStream, wanted: TcpKeepalive) {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "keep-alive probes are not set");
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header of the PROXY protocol: who connects, and to what.
fn proxy_header(version: ProxyProtocol, from: Option<SocketAddr>, to: Option<SocketAddr>) -> Vec<u8> {
    use std::net::IpAddr::{V4, V6};
    let ends = from.zip(to).map(|(f, t)| (f.ip().to_canonical(), f.port(), t.ip().to_canonical(), t.port()));
    match version {
        ProxyProtocol::V1 => match ends {
            Some((f @ V4(_), fp, t @ V4(_), tp)) => format!("PROXY TCP4 {f} {t} {fp} {tp}\r\n").into_bytes(),
            Some((f @ V6(_), fp, t @ V6(_), tp)) => format!("PROXY TCP6 {f} {t} {fp} {tp}\r\n").into_bytes(),
            _ => b"PROXY UNKNOWN\r\n".to_vec(),
        },
        ProxyProtocol::V2 => {
            let mut out = SIGNATURE.to_vec();
            let mut body = Vec::new();
            let (command, family) = match ends {
                Some((V4(f), fp, V4(t), tp)) => {
                    body.extend(f.octets());
                    body.extend(t.octets());
                    body.extend([fp.to_be_bytes(), tp.to_be_bytes()].concat());
                    (0x21, 0x11)
                }
                Some((V6(f), fp, V6(t), tp)) => {
                    body.extend(f.octets());
                    body.extend(t.octets());
                    body.extend([fp.to_be_bytes(), tp.to_be_bytes()].concat());
                    (0x21, 0x21)
                }
                _ => (0x20, 0x00),
            };
            out.extend([command, family, 0, body.len() as u8]);
            out.extend(body);
            out
        }
    }
}

/// Asks an HTTP proxy for its tunnel.
async fn ask_proxy(stream: &mut Upstream, tunnel: &ConnectTunnel) -> std::io::Result<()> {
    let ConnectTunnel { method, target } = tunnel;
    let ask = match &**method {
        "CONNECT" => format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n"),
        method => format!("{method} / HTTP/1.1\r\nhost: {target}\r\ntransfer-encoding: chunked\r\n\r\n"),
    };
    stream.write_all(ask.as_bytes()).await?;
    // One byte at a time: what follows the head belongs to the client.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(std::io::Error::other("the proxy's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let ok = head.starts_with(b"HTTP/1.1 2") || head.starts_with(b"HTTP/1.0 2");
    if ok { Ok(()) } else { Err(std::io::Error::other("the proxy refuses the tunnel")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_who_and_what() {
        let at = |s: &str| s.parse::<SocketAddr>().ok();
        let v1 = |f, t| String::from_utf8(proxy_header(ProxyProtocol::V1, f, t)).unwrap();
        assert_eq!(v1(at("10.0.0.1:5"), at("10.0.0.2:80")), "PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n");
        assert_eq!(v1(at("[fd00::1]:5"), at("[fd00::2]:80")), "PROXY TCP6 fd00::1 fd00::2 5 80\r\n");
        assert_eq!(v1(None, at("10.0.0.2:80")), "PROXY UNKNOWN\r\n");
        let v2 = proxy_header(ProxyProtocol::V2, at("10.0.0.1:5"), at("10.0.0.2:80"));
        assert_eq!(&v2[..12], SIGNATURE);
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80]);
        assert_eq!(proxy_header(ProxyProtocol::V2, None, None)[12..], [0x20, 0, 0, 0]);
    }
}
