//! An HTTP proxy that is asked to CONNECT: where it is, and how it is asked.

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, multiaddr::Protocol};

/// Longest answer of a proxy.
const MAX_HEAD: usize = 8 << 10;

/// Why a text names no proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Only `http://` is spoken to a proxy; what goes through it is TLS.
    #[error("a proxy is given as http://[user:password@]host:port")]
    Scheme,
    /// No host.
    #[error("the proxy has no host")]
    Host,
    /// No port, or none that can be.
    #[error("the proxy has no usable port")]
    Port,
    /// The user or the password has bytes that a header cannot carry.
    #[error("the proxy's credentials are not understood")]
    Credentials,
}

/// An HTTP CONNECT proxy. Its `Debug` does not show the credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// Value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.authorization.is_some() { "***@" } else { "" };
        write!(f, "http://{user}{}:{}", self.host, self.port)
    }
}

impl Proxy {
    /// Parses `http://[user:password@]host[:port]`.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let rest = text.trim().strip_prefix("http://").ok_or(ProxyError::Scheme)?;
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        let (host, port) = match place.rsplit_once(':') {
            // A bare IPv6 address has no port.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| ProxyError::Port)?),
            _ => (place, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty()
            || !host.chars().all(plain)
            || (host.contains(':') && host.parse::<Ipv6Addr>().is_err())
        {
            return Err(ProxyError::Host);
        }
        if port == 0 {
            return Err(ProxyError::Port);
        }
        let authorization = credentials
            .map(|c| {
                decode(c).map(|c| format!("Basic {}", STANDARD.encode(c))).ok_or(ProxyError::Credentials)
            })
            .transpose()?;
        Ok(Self { host: host.to_owned(), port, authorization })
    }

    /// The proxy of the environment: `HTTPS_PROXY` or `https_proxy`. One that is not understood is an error.
    pub fn from_env() -> Result<Option<Self>, ProxyError> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        set("HTTPS_PROXY").or_else(|| set("https_proxy")).map(|text| Self::parse(&text)).transpose()
    }

    /// Where the proxy itself is dialled.
    pub(super) fn address(&self) -> Multiaddr {
        let host = match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => Protocol::Ip4(ip),
            Ok(IpAddr::V6(ip)) => Protocol::Ip6(ip),
            Err(_) => Protocol::Dns(self.host.as_str().into()),
        };
        Multiaddr::empty().with(host).with(Protocol::Tcp(self.port))
    }

    /// Asks the proxy for a connection to `host:port`; what follows on the socket is between the two ends.
    pub(super) async fn connect(
        &self,
        socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
        host: &str,
        port: u16,
    ) -> io::Result<()> {
        let authorization =
            self.authorization.as_ref().map_or_else(String::new, |a| format!("Proxy-Authorization: {a}\r\n"));
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{authorization}\r\n");
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        let mut head = Vec::new();
        // The other end speaks only after we did, so nothing follows the head yet.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err(refused("its answer is too long"));
            }
            let mut byte = [0];
            if socket.read(&mut byte).await? == 0 {
                return Err(refused("it closed the connection"));
            }
            head.push(byte[0]);
        }
        let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("HTTP/1.1" | "HTTP/1.0"), Some(status)) if status.len() == 3 && status.starts_with('2') => {
                Ok(())
            }
            _ => Err(refused(&format!("it says {:?}", line.chars().take(80).collect::<String>()))),
        }
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, format!("HTTP proxy: {why}"))
}

/// Credentials as they are, percent-decoded.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push((high * 16 + low) as u8);
        } else {
            out.push(b);
        }
    }
    let text = String::from_utf8(out).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[test]
    fn a_proxy_is_parsed_and_never_shows_its_password() {
        let proxy = Proxy::parse("http://us%40er:pa:ss@proxy.corp:3128/").unwrap();
        assert_eq!(proxy.address().to_string(), "/dns/proxy.corp/tcp/3128");
        let expected = format!("Basic {}", STANDARD.encode("us@er:pa:ss"));
        assert_eq!(proxy.authorization.as_deref(), Some(expected.as_str()));
        assert_eq!(
            format!("{proxy:?} {proxy}"),
            "Proxy(http://***@proxy.corp:3128) http://***@proxy.corp:3128"
        );
        assert_eq!(Proxy::parse("http://[::1]:3128").unwrap().address().to_string(), "/ip6/::1/tcp/3128");
        assert_eq!(Proxy::parse("http://10.0.0.1").unwrap().address().to_string(), "/ip4/10.0.0.1/tcp/80");
        for (text, error) in [
            ("https://proxy:1", ProxyError::Scheme),
            ("proxy:1", ProxyError::Scheme),
            ("http://:1", ProxyError::Host),
            ("http://a b:1", ProxyError::Host),
            ("http://proxy:0", ProxyError::Port),
            ("http://proxy:99999", ProxyError::Port),
            ("http://a%0d%0ab@proxy:1", ProxyError::Credentials),
        ] {
            assert_eq!(Proxy::parse(text), Err(error), "{text}");
        }
    }

    #[tokio::test]
    async fn only_a_success_goes_on() {
        let proxy = Proxy::parse("http://u:p@proxy:1").unwrap();
        for (answer, works) in [
            ("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\n\r\n", true),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false),
            ("SSH-2.0-x\r\n\r\n", false),
            ("HTTP/1.1 200", false),
        ] {
            let (near, mut far) = tokio::io::duplex(64 << 10);
            let ask = async { proxy.connect(&mut near.compat(), "edge.example", 443).await };
            let serve = async {
                let mut head = vec![0; 1024];
                let n = far.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                assert!(
                    head.starts_with("CONNECT edge.example:443 HTTP/1.1\r\nHost: edge.example:443\r\n"),
                    "{head}"
                );
                assert!(head.contains("Proxy-Authorization: Basic dTpw\r\n"), "{head}");
                far.write_all(answer.as_bytes()).await.unwrap();
                drop(far);
            };
            let (asked, ()) = tokio::join!(ask, serve);
            assert_eq!(asked.is_ok(), works, "{answer:?}: {asked:?}");
        }
    }
}
