//! A TCP link between two nodes that a test can slow down or cut without a word.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Chunks under way in one direction.
const CHUNKS: usize = 4096;

pub(crate) struct Link {
    pub(crate) port: u16,
    /// Connections that were made through it.
    pub(crate) connections: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Link {
    /// A link to a port of this host. Each direction takes `delay`.
    pub(crate) async fn to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (connections, silent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, quiet) = (connections.clone(), silent.clone());
        let runtime = tokio::runtime::Handle::current();
        let task = runtime.clone().spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let quiet = quiet.clone();
                runtime.spawn(async move {
                    // A cut link swallows connection attempts too.
                    while quiet.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    let far = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
                    let Ok(far) = far else { return };
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    let ((nr, nw), (fr, fw)) = (near.into_split(), far.into_split());
                    tokio::join!(pump(nr, fw, delay, quiet.clone()), pump(fr, nw, delay, quiet));
                });
            }
        });
        Self { port: own, connections, silent, task }
    }

    pub(crate) fn address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.port)
    }

    /// From now on nothing comes through, and nobody is told.
    pub(crate) fn cut(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration, silent: Arc<AtomicBool>) {
    let (chunks, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        loop {
            let mut chunk = vec![0; 32 << 10];
            let n = from.read(&mut chunk).await.unwrap_or(0);
            chunk.truncate(n);
            if n == 0 || chunks.send((Instant::now() + delay, chunk)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            if silent.load(Ordering::Relaxed) {
                continue;
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        if !silent.load(Ordering::Relaxed) {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(read, write);
}

/// The port of an address of a tunnel that listens on loopback.
pub(crate) fn port_of(addresses: &[String], part: &str) -> u16 {
    let address = addresses.iter().find(|a| a.contains(part)).unwrap();
    address.split('/').nth(4).unwrap().parse().unwrap()
}
