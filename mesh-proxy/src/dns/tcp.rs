//! DNS over TCP. Our own loop, because hickory's takes any number of connections, and descriptors
//! are what the data plane lives on.

use std::sync::Arc;
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use mesh_net::listen::{AcceptErrors, accept};
use node_rt::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::handler::Handler;
use super::wire::answer;

/// Time for the next query on a connection, and for the client to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// A query of one name with EDNS options fits many times.
const MAX_QUERY: usize = 4096;

/// Accepts until the drain cancels.
pub(crate) fn serve(listener: TcpListener, handler: Handler, connections: usize, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn_critical("dns tcp", async move {
        let slots = Arc::new(Semaphore::new(connections));
        let errors = AcceptErrors::default();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (stream, _) = accept(&listener, &errors).await;
            let handler = handler.clone();
            owner.spawn("dns tcp connection", async move {
                let _slot = slot;
                // An error ends the connection, which is all that there is to do.
                let _ended = connection(stream, &handler).await;
            });
        }
    });
}

async fn connection(mut stream: TcpStream, handler: &Handler) -> std::io::Result<()> {
    let peer = stream.peer_addr()?;
    while let Some(query) = tokio::time::timeout(IDLE, read(&mut stream)).await?? {
        let Some(message) = answer(handler, query, peer, Protocol::Tcp).await else { return Ok(()) };
        let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &message].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_QUERY {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}
