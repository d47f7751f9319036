//! What a copied chunk and an idle connection cost in allocations.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use mesh_net::Prefixed;
use mesh_net::copy::{CopyOptions, copy_bidirectional, copy_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicI64 = AtomicI64::new(0);

#[allow(unsafe_code, reason = "the trait is unsafe; every call is passed on unchanged")]
// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    Generic,
    Buffers,
    Splice,
}

async fn relay(method: Method) -> (TcpStream, TcpStream) {
    let (client, a) = pair().await;
    let (b, server) = pair().await;
    tokio::task::spawn_local(async move {
        let options = CopyOptions { no_splice: method == Method::Buffers, ..CopyOptions::default() };
        let (mut a, mut b): (Prefixed<_>, Prefixed<_>) = (a.into(), b.into());
        let _ended = match method {
            Method::Generic => copy_bidirectional(&mut a, &mut b, options, &()).await,
            Method::Buffers | Method::Splice => copy_tcp(&mut a, &mut b, options, &()).await,
        };
    });
    (client, server)
}

/// One echo of `size` bytes through the relay.
async fn round(client: &mut TcpStream, server: &mut TcpStream, bytes: &[u8], buffer: &mut [u8]) {
    let (sent, got) = tokio::join!(client.write_all(bytes), server.read_exact(buffer));
    sent.unwrap();
    got.unwrap();
    let (sent, got) = tokio::join!(server.write_all(bytes), client.read_exact(buffer));
    sent.unwrap();
    got.unwrap();
}

/// One test, because the counters are of the process.
#[test]
fn a_chunk_allocates_nothing_and_an_idle_connection_owns_no_buffer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        for method in [Method::Generic, Method::Buffers, Method::Splice] {
            let (mut client, mut server) = relay(method).await;
            for size in [100, 4096, 1 << 20] {
                let (bytes, mut buffer) = (vec![1; size], vec![0; size]);
                // The first rounds grow the pool and the runtime's queues.
                for _ in 0..3 {
                    round(&mut client, &mut server, &bytes, &mut buffer).await;
                }
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                for _ in 0..20 {
                    round(&mut client, &mut server, &bytes, &mut buffer).await;
                }
                let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
                println!("{method:?}, {size} bytes: {made} allocations in 40 messages");
                assert_eq!(made, 0, "{method:?}, {size} bytes");
            }
        }

        let before = BYTES.load(Ordering::Relaxed);
        let mut kept = Vec::with_capacity(200);
        for _ in 0..200 {
            let (mut client, mut server) = relay(Method::Splice).await;
            let (bytes, mut buffer) = ([1; 100], [0; 100]);
            round(&mut client, &mut server, &bytes, &mut buffer).await;
            kept.push((client, server));
        }
        // Four sockets a connection here, two in a proxy.
        let each = (BYTES.load(Ordering::Relaxed) - before) / 200;
        println!("an idle connection that has carried a message owns {each} bytes");
        assert!(each < 4096, "{each} bytes");
    });
}
