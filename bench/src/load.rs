//! Load: closed loop over kept-alive connections, new connections, bulk bytes, and idle connections. The open loop at a
//! fixed rate is in [`crate::rate`]. Everything ends at a deadline and is bounded in connections.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{self, LocalSet},
    time::timeout,
};

use crate::{backend::find, stats::Histogram};

/// Longest wait for one answer; longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a slice of load did.
pub(crate) struct Outcome {
    /// Requests, connections or bytes.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) elapsed: Duration,
    pub(crate) latency: Histogram,
}

impl Outcome {
    fn new() -> Self {
        Self { done: 0, failed: 0, elapsed: Duration::ZERO, latency: Histogram::new() }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.merge(&other.latency);
    }

    /// Per second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// The kinds of load that a slice can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Requests back to back over this many kept-alive connections.
    KeepAlive(usize),
    /// A new connection for each request, this many at a time.
    NewConnections(usize),
    /// Reads as much as it can over this many connections.
    Bulk(usize),
    /// This many requests a second over this many connections, sent at planned times.
    Rate(u32, usize),
}

/// Runs a slice of load against `target`; `host` is what the request names.
pub(crate) fn run(kind: Kind, target: SocketAddr, host: &str, length: Duration) -> io::Result<Outcome> {
    match kind {
        Kind::Rate(rate, connections) => crate::rate::run(target, host, rate, connections, length),
        Kind::KeepAlive(n) => spread(n, length, request(host, false), move |r, d| keep_alive(target, r, d)),
        Kind::NewConnections(n) => {
            spread(n, length, request(host, true), move |r, d| new_connections(target, r, d))
        }
        Kind::Bulk(n) => spread(n, length, Vec::new(), move |_, d| bulk(target, d)),
    }
}

/// The request that all load sends.
pub(crate) fn request(host: &str, close: bool) -> Vec<u8> {
    let close = if close { "connection: close\r\n" } else { "" };
    format!("GET /bench HTTP/1.1\r\nhost: {host}\r\nuser-agent: selvage-bench\r\naccept: */*\r\n{close}\r\n")
        .into_bytes()
}

/// Runs `n` copies of `worker` on this thread until the deadline, and adds up what they did.
fn spread<F, Fut>(n: usize, length: Duration, request: Vec<u8>, worker: F) -> io::Result<Outcome>
where
    F: Fn(Rc<[u8]>, Instant) -> Fut + 'static,
    Fut: Future<Output = Outcome> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let request: Rc<[u8]> = request.into();
    let start = Instant::now();
    let mut sum = local.block_on(&runtime, async move {
        let workers: Vec<_> =
            (0..n).map(|_| task::spawn_local(worker(request.clone(), start + length))).collect();
        let mut sum = Outcome::new();
        for worker in workers {
            match worker.await {
                Ok(outcome) => sum.merge(&outcome),
                Err(_) => sum.failed += 1,
            }
        }
        sum
    });
    sum.elapsed = start.elapsed();
    Ok(sum)
}

async fn keep_alive(target: SocketAddr, request: Rc<[u8]>, deadline: Instant) -> Outcome {
    let mut out = Outcome::new();
    let mut buffer = vec![0; 8192];
    while Instant::now() < deadline {
        let Ok(mut stream) = connect(target).await else {
            out.failed += 1;
            task::yield_now().await;
            continue;
        };
        while Instant::now() < deadline {
            let start = Instant::now();
            match timeout(PATIENCE, exchange(&mut stream, &request, &mut buffer)).await {
                Ok(Ok(true)) => {
                    out.done += 1;
                    out.latency.record(start.elapsed().as_nanos() as u64);
                }
                _ => {
                    out.failed += 1;
                    break;
                }
            }
        }
    }
    out
}

async fn new_connections(target: SocketAddr, request: Rc<[u8]>, deadline: Instant) -> Outcome {
    let mut out = Outcome::new();
    let mut buffer = vec![0; 8192];
    while Instant::now() < deadline {
        let start = Instant::now();
        let once = async {
            let mut stream = connect(target).await?;
            let ok = exchange(&mut stream, &request, &mut buffer).await?;
            // The server closes first, so that the client's ports are free again at once.
            while stream.read(&mut buffer).await? > 0 {}
            Ok::<bool, io::Error>(ok)
        };
        match timeout(PATIENCE, once).await {
            Ok(Ok(true)) => {
                out.done += 1;
                out.latency.record(start.elapsed().as_nanos() as u64);
            }
            _ => {
                out.failed += 1;
                task::yield_now().await;
            }
        }
    }
    out
}

async fn bulk(target: SocketAddr, deadline: Instant) -> Outcome {
    let mut out = Outcome::new();
    let mut buffer = vec![0; 256 * 1024];
    let Ok(mut stream) = connect(target).await else {
        out.failed += 1;
        return out;
    };
    while Instant::now() < deadline {
        match timeout(PATIENCE, stream.read(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => out.done += n as u64,
            _ => {
                out.failed += 1;
                break;
            }
        }
    }
    out
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its whole answer. `Ok(false)` is an answer other than 200.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
    stream.write_all(request).await?;
    let mut answer = Answer::default();
    loop {
        let n = stream.read(&mut buffer[answer.kept()..]).await?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(ok) = answer.feed(buffer, n)? {
            return Ok(ok);
        }
    }
}

/// How much of an answer has come. The head is kept in the buffer until it is whole; the body is only counted.
#[derive(Default)]
pub(crate) struct Answer {
    head: usize,
    body: Option<(bool, usize)>,
}

impl Answer {
    /// Bytes at the buffer's start that the next read must not overwrite.
    pub(crate) fn kept(&self) -> usize {
        self.head
    }

    /// Takes `n` more bytes that were read behind [`Answer::kept`]. `Some(is 200)` when the answer is whole.
    pub(crate) fn feed(&mut self, buffer: &[u8], n: usize) -> io::Result<Option<bool>> {
        let missing = match &mut self.body {
            Some((_, missing)) => {
                *missing = missing.saturating_sub(n);
                *missing
            }
            None => {
                let filled = self.head + n;
                let Some(end) = find(&buffer[..filled], b"\r\n\r\n") else {
                    if filled == buffer.len() {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    self.head = filled;
                    return Ok(None);
                };
                let length = content_length(&buffer[..end]).ok_or(ErrorKind::InvalidData)?;
                let missing = length.saturating_sub(filled - end - 4);
                self.head = 0;
                self.body = Some((buffer.starts_with(b"HTTP/1.1 200"), missing));
                missing
            }
        };
        Ok(self.body.filter(|_| missing == 0).map(|(ok, _)| ok))
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(head).ok()?;
    text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    })
}

/// Opens `n` connections, does one request on each, and holds them while `during` looks at the subject.
pub(crate) fn hold<T>(
    n: usize,
    target: SocketAddr,
    host: &str,
    during: impl FnOnce() -> T,
) -> io::Result<(T, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = request(host, false);
    runtime.block_on(async {
        let mut held = Vec::with_capacity(n);
        let mut buffer = vec![0; 8192];
        for _ in 0..n {
            let Ok(mut stream) = connect(target).await else { continue };
            if let Ok(Ok(true)) = timeout(PATIENCE, exchange(&mut stream, &request, &mut buffer)).await {
                held.push(stream);
            }
        }
        Ok((during(), held.len()))
    })
}

#[cfg(test)]
mod tests;
