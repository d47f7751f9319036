//! One connection's side of the tunnel protocol: opens as many streams at a time as are asked for, and admits or
//! refuses each stream of the peer while it is negotiated. Talks to openers and acceptors directly; the swarm's own
//! event path carries nothing of it.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncWriteExt, FutureExt, future::BoxFuture};
use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol,
        handler::{ConnectionEvent, FullyNegotiatedOutbound},
    },
};
use mesh_api::model::TunnelOpen;
use tokio::sync::{mpsc, oneshot};

use crate::{
    accept::{Admitted, Incoming},
    control,
    error::Refusal,
    stream::Direction,
    table::{Ask, Asked, Conn},
    tunnel::Shared,
    wire,
};

const PROTOCOL: StreamProtocol = StreamProtocol::new(wire::PROTOCOL);
const CONTROL: StreamProtocol = StreamProtocol::new(control::PROTOCOL);

type OpenReply = oneshot::Sender<Stream>;

/// What the handler and every inbound negotiation of a connection share.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    pub(crate) conn: Arc<Conn>,
}

#[derive(Debug)]
pub(crate) struct Handler {
    link: Arc<Link>,
    opens: mpsc::Receiver<Ask>,
}

impl Handler {
    pub(crate) fn new(link: Arc<Link>, opens: mpsc::Receiver<Ask>) -> Self {
        Self { link, opens }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Inbound;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenReply;

    fn listen_protocol(&self) -> SubstreamProtocol<Inbound, ()> {
        let timeout = self.link.shared.timeouts.negotiate;
        SubstreamProtocol::new(Inbound(self.link.clone()), ()).with_timeout(timeout)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, OpenReply, Infallible>> {
        loop {
            match self.opens.poll_recv(cx) {
                // The opener gave up while it waited.
                Poll::Ready(Some(ask)) if ask.reply.is_closed() => {}
                Poll::Ready(Some(Ask { reply, what })) => {
                    let name = match what {
                        Asked::Tunnel => PROTOCOL,
                        Asked::Control => CONTROL,
                    };
                    let protocol = SubstreamProtocol::new(ReadyUpgrade::new(name), reply)
                        .with_timeout(self.link.shared.timeouts.negotiate);
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Inbound, Self::OutboundProtocol, (), OpenReply>,
    ) {
        // A failed negotiation drops the reply, which tells the opener. Inbound ends are dealt with in `Inbound`.
        if let ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) = event {
            let _ = info.send(protocol);
        }
    }
}

/// Reads the open message of a stream and admits it, or answers why not.
#[derive(Debug, Clone)]
pub(crate) struct Inbound(Arc<Link>);

impl UpgradeInfo for Inbound {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 2];

    fn protocol_info(&self) -> Self::InfoIter {
        [PROTOCOL, CONTROL]
    }
}

impl InboundUpgrade<Stream> for Inbound {
    type Output = ();
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<()>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        if protocol == CONTROL {
            return async move { control::hear(&self.0.shared, &self.0.conn, stream).await }.boxed();
        }
        negotiate(self.0, stream).boxed()
    }
}

async fn negotiate(link: Arc<Link>, mut stream: Stream) -> io::Result<()> {
    let Link { shared, conn } = &*link;
    let (open, rest) = match wire::read::<TunnelOpen>(&mut stream).await {
        Ok(read) => read,
        Err(e) => return refuse(shared, stream, Refusal::BadRequest, "bad_open", &e.to_string()).await,
    };
    conn.heard();
    if open.version != wire::VERSION {
        let detail = format!("version {} is not spoken here", open.version);
        return refuse(shared, stream, Refusal::BadRequest, "bad_version", &detail).await;
    }
    if shared.is_draining() {
        return refuse(shared, stream, Refusal::Draining, "draining", "").await;
    }
    let Some(known) = shared.view().peer(&conn.peer).cloned() else {
        return refuse(shared, stream, Refusal::Forbidden, "unknown_peer", "").await;
    };
    let guard = match shared.admit(conn, Direction::Inbound) {
        Ok(guard) => guard,
        Err(limit) => return refuse(shared, stream, Refusal::Overloaded, limit, limit).await,
    };
    let queue = shared.queue(conn.worker);
    match queue.try_reserve() {
        Ok(permit) => {
            shared.metrics.accepted();
            let admitted = Admitted { stream, rest, path: conn.path, guard };
            permit.send(Incoming::new(known.node.clone(), open, admitted));
            Ok(())
        }
        Err(mpsc::error::TrySendError::Full(())) => {
            refuse(shared, stream, Refusal::Overloaded, "accept_queue", "accept queue is full").await
        }
        Err(mpsc::error::TrySendError::Closed(())) => {
            refuse(shared, stream, Refusal::Draining, "draining", "").await
        }
    }
}

async fn refuse(
    shared: &Shared,
    mut stream: Stream,
    code: Refusal,
    reason: &str,
    detail: &str,
) -> io::Result<()> {
    shared.metrics.refused(reason);
    wire::answer(&mut stream, code.code(), detail).await?;
    stream.close().await
}
