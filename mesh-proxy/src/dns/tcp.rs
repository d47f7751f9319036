//! DNS over TCP. Our own loop, because hickory's takes any number of connections, and descriptors
//! are what the data plane lives on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use mesh_net::listen::{AcceptErrors, accept};
use node_rt::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::handler::Handler;
use super::metrics::Outcome;

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
        let Ok(request) = Request::from_bytes(query, peer, Protocol::Tcp) else {
            handler.metrics().count(Outcome::Malformed);
            return Ok(());
        };
        let answer = Collect::default();
        handler.handle_request::<_, TokioTime>(&request, answer.clone()).await;
        let Some(bytes) = answer.take() else { return Ok(()) };
        tokio::time::timeout(IDLE, stream.write_all(&bytes)).await??;
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

/// Keeps the encoded answer, its length in front.
#[derive(Clone, Default)]
struct Collect {
    bytes: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Collect {
    fn take(&self) -> Option<Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Collect {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut message = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut message);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let framed = [&length.to_be_bytes()[..], &message].concat();
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(framed);
        Ok(info)
    }
}
