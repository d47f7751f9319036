//! One connection of a gateway: which server it belongs to, and the path that it takes.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use mesh_api::model::server_tls::Mode;
use mesh_core::{
    Client, L4Decision, Tables,
    gateway::listener::{Listener, Nature},
};
use mesh_net::{
    Prefixed,
    detect::{Detected, detect},
    original_dst::unmap,
};
use tokio::net::TcpStream;

use super::Gateway;
use crate::outbound::{
    ClientIo, Connection, HttpVersion, Target, Ticket, WorkerState, serve_bytes, serve_http,
};

/// What a listener's connections share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) worker: Rc<WorkerState>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) listener: Rc<RefCell<Arc<Listener>>>,
}

/// What a connection of a gateway is bound to; requests ask for it each time, so that edits take effect on open
/// connections.
pub(crate) struct Binding {
    gateway: Arc<Gateway>,
    listener: Rc<RefCell<Arc<Listener>>>,
    /// The server that terminated TLS; none = all of the listener.
    server: Option<Arc<[Arc<str>]>>,
    /// The hello's name, where the connection stays closed.
    sni: Option<String>,
    auto: bool,
}

impl Binding {
    /// Under which names the rules are found, and the port as Gateways name it.
    pub(crate) fn servers(&self) -> (Arc<[Arc<str>]>, u16) {
        let listener = self.listener.borrow();
        let keys = self.server.as_ref().unwrap_or(&listener.keys);
        (Arc::clone(keys), listener.port)
    }

    /// Under which names the rules for a host are found.
    pub(crate) fn servers_for(&self, host: &str) -> Arc<[Arc<str>]> {
        match &self.server {
            Some(keys) => Arc::clone(keys),
            None => self.listener.borrow().keys_for(host),
        }
    }

    /// Whether a host is of another server than the one that terminated TLS.
    pub(crate) fn is_misdirected(&self, host: &str, unrouted: bool) -> bool {
        let Some(keys) = self.server.as_ref().filter(|_| !self.auto) else { return false };
        self.listener.borrow().is_misdirected(host, keys, unrouted)
    }

    /// Requests came under TLS.
    pub(crate) const fn is_secure(&self) -> bool {
        self.server.is_some()
    }

    /// Whether a request for a host is sent to https.
    pub(crate) fn sends_away(&self, host: &str) -> bool {
        self.server.is_none() && self.listener.borrow().sends_away(host)
    }

    /// The gateway itself.
    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// The gateway as rules look at it.
    pub(crate) fn client(&self) -> Client<'_> {
        let config = &self.gateway.config;
        // The Gateway's own name is filled in where a rule is looked at; here it only says that this is one.
        Client { labels: self.gateway.labels(), gateway: Some(""), ..Client::in_namespace(&config.namespace) }
    }

    /// Where a connection of bytes goes.
    pub(crate) fn route<'t>(
        &self,
        tables: &'t Tables,
        servers: &'t [Arc<str>],
        port: u16,
        dice: &mut impl mesh_core::Dice,
    ) -> L4Decision<'t> {
        let client = self.client();
        if self.auto {
            return tables.route_named_cluster(&client, self.sni.as_deref().unwrap_or_default());
        }
        tables.route_gateway_l4(&client, servers, (port, self.sni.as_deref()), dice)
    }
}

/// Serves one connection.
pub(crate) async fn accepted(context: Context, stream: TcpStream, client: SocketAddr, ticket: Ticket) {
    let listener = Arc::clone(&context.listener.borrow());
    let client = unmap(client);
    let bound = |server, sni, auto| Binding {
        gateway: Arc::clone(&context.gateway),
        listener: Rc::clone(&context.listener),
        server,
        sni,
        auto,
    };
    let connection = |binding| {
        let target = Target::port(listener.port);
        Connection::at_gateway(Rc::clone(&context.worker), client, target, binding, ticket)
    };
    let config = &context.worker.shared.config;
    match listener.nature {
        Nature::Tcp => {
            let io = ClientIo::Plain(Prefixed::from(stream));
            serve_bytes(connection(bound(None, None, false)), io, None).await;
        }
        Nature::Http => {
            let Ok((detected, stream)) = detect(stream, config.first_byte()).await else { return };
            let version = match detected {
                Detected::Closed | Detected::ServerFirst => return,
                Detected::Http2 => HttpVersion::Http2,
                Detected::Http1 | Detected::Opaque | Detected::Tls(_) => HttpVersion::Http1,
            };
            let connection = connection(bound(None, None, false));
            tokio::task::spawn_local(serve_http(connection, stream, version));
        }
        Nature::Tls => {
            let Ok((Detected::Tls(hello), stream)) = detect(stream, config.first_byte()).await else {
                return;
            };
            let sni = hello.sni.unwrap_or_default();
            // Who asks for no name gets what is there for all.
            let Some(server) = listener.server(if sni.is_empty() { "*" } else { &sni }) else {
                tracing::debug!(%client, %sni, "no server for the name");
                return;
            };
            match server.mode() {
                mode @ (Mode::Passthrough | Mode::AutoPassthrough) => {
                    let auto = mode == Mode::AutoPassthrough;
                    let keys = Arc::clone(&server.keys);
                    let binding = bound(Some(keys), Some(sni.clone()), auto);
                    serve_bytes(connection(binding), ClientIo::Plain(stream), Some(sni)).await;
                }
                Mode::Unspecified => tracing::debug!(%client, %sni, "a TLS server without a mode"),
                _ => {
                    let tables = context.worker.tables();
                    let tls = context.gateway.tls.server(&tables, server);
                    drop(tables);
                    let config = match tls {
                        Ok(config) => config,
                        Err(error) => {
                            tracing::warn!(%error, %sni, "gateway has no usable certificate");
                            return;
                        }
                    };
                    let keys = Arc::clone(&server.keys);
                    let shaken = mesh_net::tls::accept(&config, stream);
                    let limit = HANDSHAKE;
                    let Ok(Ok(stream)) = tokio::time::timeout(limit, shaken).await else {
                        context.worker.shared.telemetry.edges.bad_requests.inc();
                        return;
                    };
                    let by_name = server.routes_by_name().then_some(sni);
                    let binding = bound(Some(keys), by_name, false);
                    if !server.http {
                        let io = ClientIo::Tls(Box::new(stream));
                        return serve_bytes(connection(binding), io, None).await;
                    }
                    let version = match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => HttpVersion::Http2,
                        _ => HttpVersion::Http1,
                    };
                    tokio::task::spawn_local(serve_http(connection(binding), stream, version));
                }
            }
        }
    }
}

/// How long a handshake may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(15);
