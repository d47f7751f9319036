use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

type Result_ = Result<Copied, CopyError>;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[expect(clippy::disallowed_methods, reason = "a test owns its tasks")]
fn start<F: Future<Output: Send> + Send + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio::spawn(future)
}

/// client <-> (a, b) <-> server over TCP.
async fn tcp_relay(options: CopyOptions) -> (TcpStream, TcpStream, JoinHandle<Result_>, Arc<Counters>) {
    let (client, a) = pair().await;
    let (b, server) = pair().await;
    let counters = Arc::new(Counters::default());
    let seen = Arc::clone(&counters);
    let copy = start(async move { copy_tcp(&mut a.into(), &mut b.into(), options, &*seen).await });
    (client, server, copy, counters)
}

fn memory_relay(options: CopyOptions) -> (DuplexStream, DuplexStream, JoinHandle<Result_>) {
    let (client, mut a) = tokio::io::duplex(100);
    let (mut b, server) = tokio::io::duplex(70);
    let copy = start(async move { copy_bidirectional(&mut a, &mut b, options, &()).await });
    (client, server, copy)
}

fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Sends in both directions at once and checks every byte.
async fn exchange<C, S>(client: C, server: S, up: Vec<u8>, down: Vec<u8>)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let send_up = async {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let send_down = async {
        server_write.write_all(&down).await.unwrap();
        server_write.shutdown().await.unwrap();
    };
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let (_, _, one, two) = tokio::join!(
        send_up,
        send_down,
        server_read.read_to_end(&mut got_up),
        client_read.read_to_end(&mut got_down)
    );
    one.unwrap();
    two.unwrap();
    assert!(got_up == up && got_down == down);
}

#[tokio::test]
async fn every_byte_arrives_in_order_over_tcp_with_and_without_splice() {
    for no_splice in [false, true] {
        let options = CopyOptions { no_splice, ..CopyOptions::default() };
        let (client, server, copy, counters) = tcp_relay(options).await;
        let (up, down) = (noise(5_000_000, 1), noise(3_000_001, 2));
        exchange(client, server, up, down).await;
        let copied = copy.await.unwrap().unwrap();
        assert_eq!(copied, Copied { a_to_b: 5_000_000, b_to_a: 3_000_001 });
        assert_eq!(counters.a_to_b.load(Ordering::Relaxed), copied.a_to_b);
        assert_eq!(counters.b_to_a.load(Ordering::Relaxed), copied.b_to_a);
    }
}

#[tokio::test]
async fn every_byte_arrives_through_streams_that_take_little_at_a_time() {
    let (client, server, copy) = memory_relay(CopyOptions::default());
    exchange(client, server, noise(200_000, 3), noise(100_000, 4)).await;
    assert_eq!(copy.await.unwrap().unwrap(), Copied { a_to_b: 200_000, b_to_a: 100_000 });
}

#[tokio::test]
async fn half_close_passes_and_the_other_direction_lives_on() {
    let (mut client, mut server, copy, _) = tcp_relay(CopyOptions::default()).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    // The server answers after it has seen the end, in bulk.
    let answer = noise(1_000_000, 5);
    let (sent, mut got) = (answer.clone(), Vec::new());
    let send = async {
        server.write_all(&sent).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(send, client.read_to_end(&mut got));
    read.unwrap();
    assert!(got == answer);
    assert_eq!(copy.await.unwrap().unwrap(), Copied { a_to_b: 8, b_to_a: 1_000_000 });
}

#[tokio::test]
async fn bulk_splices_and_goes_back_for_small_messages() {
    let (mut client, mut server, copy, _) = tcp_relay(CopyOptions::default()).await;
    let mut buffer = vec![0; 1 << 20];
    let spliced = || splice::SPLICED.get();
    for round in 0..5 {
        let before = spliced();
        let bulk = noise(1 << 20, round);
        let (sent, received) = tokio::join!(client.write_all(&bulk), server.read_exact(&mut buffer));
        sent.unwrap();
        received.unwrap();
        assert!(buffer == bulk);
        assert!(spliced() - before > 1 << 19, "{} of a MiB spliced", spliced() - before);
        // The direction splices a few small messages, then copies again.
        let mut last = spliced();
        for n in 0..50u8 {
            last = if n == 20 { spliced() } else { last };
            server.write_all(&[n; 10]).await.unwrap();
            client.read_exact(&mut buffer[..10]).await.unwrap();
            client.write_all(&[n; 20]).await.unwrap();
            server.read_exact(&mut buffer[..20]).await.unwrap();
            assert_eq!(buffer[..20], [n; 20]);
        }
        assert_eq!(spliced(), last);
    }
    drop((client, server));
    copy.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_replayed_prefix_comes_first() {
    let (mut client, a) = pair().await;
    let (b, mut server) = pair().await;
    client.write_all(b" world").await.unwrap();
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    let mut a = Prefixed::new(bytes::Bytes::from_static(b"hello"), a);
    let copied = copy_tcp(&mut a, &mut b.into(), CopyOptions::default(), &()).await.unwrap();
    assert_eq!(copied.a_to_b, 11);
    let mut got = String::new();
    server.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "hello world");
}

#[tokio::test]
async fn a_reset_says_which_side_failed() {
    let (client, _server, copy, _) = tcp_relay(CopyOptions::default()).await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let error = copy.await.unwrap().unwrap_err();
    assert!(matches!(error, CopyError::Read(Side::A, _)), "{error:?}");

    let (mut client, server, copy, _) = tcp_relay(CopyOptions::default()).await;
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let _closed = client.write_all(b"x").await;
    let error = copy.await.unwrap().unwrap_err();
    assert!(matches!(error, CopyError::Read(Side::B, _) | CopyError::Write(Side::B, _)), "{error:?}");
}

#[tokio::test]
async fn idle_ends_the_copy_and_traffic_keeps_it() {
    let idle = Duration::from_secs(2);
    let options = CopyOptions { idle: Some(idle), ..CopyOptions::default() };
    let (mut client, mut server, copy) = memory_relay(options);
    let mut byte = [0];
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
    }
    assert!(!copy.is_finished());
    let quiet = Instant::now();
    let error = copy.await.unwrap().unwrap_err();
    assert!(matches!(error, CopyError::Idle), "{error:?}");
    assert!(quiet.elapsed() >= idle - Duration::from_millis(100), "{:?}", quiet.elapsed());
}

/// A stream whose writes stay inside until it is flushed, as with TLS and the tunnel.
struct Buffering(DuplexStream, Vec<u8>);

impl AsyncRead for Buffering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffering {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.1.is_empty() {
            let written = std::task::ready!(Pin::new(&mut this.0).poll_write(cx, &this.1))?;
            this.1.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What has not been flushed is lost.
        self.1.clear();
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_buffering_writer_is_flushed_before_the_copy_waits() {
    let (mut client, mut a) = tokio::io::duplex(1024);
    let (b, mut server) = tokio::io::duplex(16);
    let copy = start(async move {
        let mut b = Buffering(b, Vec::new());
        copy_bidirectional(&mut a, &mut b, CopyOptions::default(), &()).await
    });
    let mut got = [0; 100];
    for n in 0..3 {
        client.write_all(&[n; 100]).await.unwrap();
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [n; 100]);
    }
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut last = String::new();
    server.read_to_string(&mut last).await.unwrap();
    assert_eq!(last, "last words");
    drop((client, server));
    let _ended = copy.await.unwrap();
}
