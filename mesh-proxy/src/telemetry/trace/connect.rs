//! A connection to the collector: through the mesh if it is a service of the mesh, else straight.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_core::Tables;
use mesh_net::connect::{ConnectOptions, connect};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::config::Endpoint;

/// How long a connection may take, with all that belongs to it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer of the proxy port.
const MAX_ANSWER: usize = 1024;

/// The ways to a collector.
#[derive(Clone)]
pub(crate) struct Through {
    /// Which hosts are services.
    pub(crate) tables: Arc<ArcSwap<Tables>>,
    /// This proxy's port for applications without capture; none = there is none.
    pub(crate) proxy: Option<SocketAddr>,
    /// Mark of our own sockets.
    pub(crate) mark: Option<u32>,
}

/// What a connection is, once it is there.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Through {
    /// Connects, and shakes hands if the collector wants TLS.
    pub(super) async fn connect(
        &self,
        to: &Endpoint,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Box<dyn Wire>> {
        let work = async {
            let stream = self.stream(to).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = tls else { return Ok(Box::new(stream) as Box<dyn Wire>) };
            let name = ServerName::try_from(to.host.clone()).map_err(io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        };
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn stream(&self, to: &Endpoint) -> io::Result<TcpStream> {
        let in_mesh = self.tables.load().service(&to.host).is_some();
        if let (true, Some(proxy)) = (in_mesh, self.proxy) {
            return tunnelled(proxy, to).await;
        }
        let options =
            ConnectOptions { mark: self.mark, timeout: Some(PATIENCE), ..ConnectOptions::default() };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the collector's name has no address");
        for address in tokio::net::lookup_host((to.host.as_str(), to.port)).await? {
            match connect(address, &options).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Asks the proxy port for the service.
async fn tunnelled(proxy: SocketAddr, to: &Endpoint) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    let target = format!("{}:{}", to.host, to.port);
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte, so that nothing of what follows is taken.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(io::Error::other("the proxy port does not answer as it should"));
        }
        answer.push(stream.read_u8().await?);
    }
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(stream);
    }
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    Err(io::Error::other(format!("the proxy port says {:?}", String::from_utf8_lossy(line))))
}

/// How a collector over `https` is verified.
pub(super) fn tls(ca_file: &std::path::Path, h2: bool) -> io::Result<Arc<ClientConfig>> {
    let roots = if ca_file.as_os_str().is_empty() {
        crate::outbound::tls::material::system_roots().map_err(io::Error::other)?
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca_file).map_err(io::Error::other)? {
            // A root that cannot be used is no reason to trust none.
            let _unusable = roots.add(certificate.map_err(io::Error::other)?);
        }
        roots
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(Arc::new(config))
}
