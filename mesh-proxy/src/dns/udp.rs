//! DNS over UDP. Our own loop: hickory's starts a task for every datagram, without a bound.

use std::sync::Arc;
use std::task::Poll;

use hickory_server::net::xfer::Protocol;
use node_rt::Tasks;
use tokio::net::UdpSocket;

use super::handler::Handler;
use super::wire::answer;

/// A query of one name with EDNS options fits many times; the rest of a longer one is cut off, and
/// it is then malformed.
const MAX_QUERY: usize = 4096;

/// Answers until the drain cancels. The forwarder bounds how many wait for upstream servers.
pub(crate) fn serve(socket: UdpSocket, handler: Handler, tasks: &Tasks) {
    let (socket, owner) = (Arc::new(socket), tasks.clone());
    tasks.spawn_critical("dns udp", async move {
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP error about an answer sent before; the socket goes on.
                    tracing::debug!(%error, "dns receive");
                    continue;
                }
            };
            // Nobody can be answered at port 0.
            if from.port() == 0 {
                continue;
            }
            let (handler, to, query) = (handler.clone(), Arc::clone(&socket), buffer[..length].to_vec());
            let mut work = Box::pin(async move {
                if let Some(bytes) = answer(&handler, query, from, Protocol::Udp).await {
                    // A lost answer is asked for again.
                    let _lost = to.send_to(&bytes, from).await;
                }
            });
            // Names of the mesh and of the cache need no task: they are ready at once.
            let first = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            if first.is_pending() {
                owner.spawn("dns query", work);
            }
        }
    });
}
