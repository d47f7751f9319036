//! The path of one accepted connection: what was called, what is spoken, and which of the two paths it takes.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use bytes::Buf;
use mesh_core::{Client, Protocol, Tables, WorkloadEntry};
use mesh_net::{
    Prefixed,
    detect::{Detected, detect},
    original_dst::{original_dst, unmap},
};
use tokio::net::TcpStream;

use super::{
    http, l4,
    stream::Stream,
    target::Target,
    worker::{Ticket, WorkerState},
};
use crate::{gateway::Binding, telemetry::local::Held};

/// The client's side of a connection.
pub(crate) type ClientStream = Prefixed<TcpStream>;

/// The client's side of a connection of bytes.
pub(crate) enum ClientIo {
    /// As it came.
    Plain(ClientStream),
    /// Out of TLS that ended here.
    Tls(Box<dyn Stream>),
}

impl ClientIo {
    /// The same without bytes that went ahead, which are the first of those that were read already.
    pub(crate) fn without(self, sent: usize) -> Self {
        match self {
            Self::Plain(client) => {
                let (mut prefix, inner) = client.into_parts();
                prefix.advance(sent.min(prefix.len()));
                Self::Plain(Prefixed::new(prefix, inner))
            }
            tls => tls,
        }
    }
}

/// One accepted connection.
pub(crate) struct Connection {
    pub(crate) worker: Rc<WorkerState>,
    /// Who connected.
    pub(crate) client: SocketAddr,
    /// What was called.
    pub(crate) target: Target,
    /// Each request names its own target: the client uses the proxy port.
    pub(crate) proxy: bool,
    /// The client is outside the mesh, and came to a gateway.
    pub(crate) gateway: Option<Box<Binding>>,
    caller: RefCell<Option<Rc<Held<WorkloadEntry>>>>,
    _ticket: Ticket,
}

impl Connection {
    /// A connection of a client to a target.
    pub(crate) fn new(worker: Rc<WorkerState>, client: SocketAddr, target: Target, ticket: Ticket) -> Self {
        let caller = RefCell::default();
        Self { worker, client: unmap(client), target, proxy: false, gateway: None, caller, _ticket: ticket }
    }

    /// A connection of a client outside to a gateway.
    pub(crate) fn at_gateway(
        worker: Rc<WorkerState>,
        client: SocketAddr,
        target: Target,
        binding: Binding,
        ticket: Ticket,
    ) -> Self {
        let caller = RefCell::new(Some(Held::new(&binding.gateway().workload)));
        let gateway = Some(Box::new(binding));
        Self { worker, client, target, proxy: false, gateway, caller, _ticket: ticket }
    }

    /// Who calls, as metrics say it: the workload, or the gateway for clients outside.
    pub(crate) fn party(&self, source: Option<&Rc<Held<WorkloadEntry>>>) -> Option<Rc<Held<WorkloadEntry>>> {
        match &self.gateway {
            None => source.cloned(),
            Some(_) => self.caller.borrow().clone(),
        }
    }

    /// The calling workload, if the mesh knows it.
    pub(crate) fn source(&self, tables: &Tables) -> Option<Rc<Held<WorkloadEntry>>> {
        if self.gateway.is_some() {
            return None;
        }
        let entry = tables.workload(self.client.ip().to_canonical())?;
        let mut held = self.caller.borrow_mut();
        if let Some(held) = &*held
            && held.is(entry)
        {
            return Some(Rc::clone(held));
        }
        let new = Held::new(entry);
        *held = Some(Rc::clone(&new));
        Some(new)
    }

    /// The caller as rules look at it.
    pub(crate) fn caller<'a>(&'a self, source: Option<&'a WorkloadEntry>) -> Client<'a> {
        if let Some(binding) = &self.gateway {
            return binding.client();
        }
        let shared = &self.worker.shared;
        let client =
            source.map_or_else(|| Client::in_namespace(&shared.config.default_namespace), Client::of);
        Client { called: self.target.addr.map(|a| a.ip()), ..client }
    }
}

/// A connection that capture sent here.
pub(crate) async fn captured(worker: Rc<WorkerState>, stream: TcpStream, client: SocketAddr, ticket: Ticket) {
    let Some(to) = original_dst(&stream) else {
        // Somebody dialled the capture port itself: passing it on would come back here for ever.
        worker.shared.telemetry.edges.loops.inc();
        tracing::debug!(%client, "connection to the capture port itself");
        return;
    };
    fixed(worker, stream, client, unmap(to), ticket).await;
}

/// A connection to a known destination.
pub(crate) async fn fixed(
    worker: Rc<WorkerState>,
    stream: TcpStream,
    client: SocketAddr,
    to: SocketAddr,
    ticket: Ticket,
) {
    let connection = Connection::new(worker, client, Target::address(to), ticket);
    serve(connection, stream.into()).await;
}

/// Serves a connection whose target is known.
pub(crate) async fn serve(connection: Connection, stream: ClientStream) {
    let tables = connection.worker.tables();
    let source = connection.source(&tables);
    let caller = connection.caller(source.as_ref().map(|s| s.get()));
    let declared = match connection.target.find(&tables, &caller).vip() {
        Some(vip) => vip.port.protocol,
        None => Protocol::Detect,
    };
    drop((tables, source));
    let config = &connection.worker.shared.config;
    let wait = match declared {
        Protocol::Tcp | Protocol::Udp => return l4::serve(connection, ClientIo::Plain(stream), None).await,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => config.first_byte(),
        Protocol::Tls | Protocol::Detect => config.detect(),
    };
    let Ok((detected, stream)) = detect(stream, wait).await else { return };
    let stream = flatten(stream);
    match (declared, detected) {
        (_, Detected::Closed) => {}
        (Protocol::Http | Protocol::Http2 | Protocol::Grpc, Detected::ServerFirst) => {
            tracing::debug!(client = %connection.client, "nothing was asked on an HTTP port");
        }
        (Protocol::Tls, Detected::Tls(hello)) | (Protocol::Detect, Detected::Tls(hello)) => {
            l4::serve(connection, ClientIo::Plain(stream), Some(hello.sni.unwrap_or_default())).await;
        }
        (Protocol::Tls, _) | (Protocol::Detect, Detected::Opaque | Detected::ServerFirst) => {
            l4::serve(connection, ClientIo::Plain(stream), None).await;
        }
        // A task of its own, so that what was needed to find out is gone while requests come.
        (_, Detected::Http2) => {
            tokio::task::spawn_local(http::serve(connection, stream, http::Version::Http2));
        }
        // On a declared HTTP port whatever is not HTTP/2 is for the HTTP/1 parser to refuse.
        (_, Detected::Http1 | Detected::Opaque | Detected::Tls(_) | Detected::ServerFirst) => {
            tokio::task::spawn_local(http::serve(connection, stream, http::Version::Http1));
        }
    }
}

/// Two prefixes, one after the other, as one.
fn flatten(stream: Prefixed<ClientStream>) -> ClientStream {
    let (outer, inner) = stream.into_parts();
    let (rest, socket) = inner.into_parts();
    if rest.is_empty() {
        return Prefixed::new(outer, socket);
    }
    Prefixed::new([outer, rest].concat().into(), socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_two<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_holds_little() {
        // A connection is held for hours, a request for milliseconds.
        let held = [size(l4::serve), size(http::serve::<ClientStream>), size_of_two(serve)];
        assert!(held.iter().all(|n| *n <= 2304), "{held:?}");
        assert!(http::exchange_size() <= 5376, "{}", http::exchange_size());
    }
}
