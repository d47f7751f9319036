//! The open loop: requests at planned times, whatever the answers do, so that a slow subject cannot slow its own
//! measurement. Blocking sockets and one thread a connection: an event loop's timer of 1 ms would hide what is measured.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::load::{Answer, Outcome, request};
use crate::stats::Histogram;

/// `rate` requests a second, spread evenly over `connections`, for `length`. Latency counts from the planned time.
pub(crate) fn run(
    target: SocketAddr,
    host: &str,
    rate: u32,
    connections: usize,
    length: Duration,
) -> io::Result<Outcome> {
    let connections = connections.max(1);
    let gap = Duration::from_secs_f64(connections as f64 / f64::from(rate.max(1)));
    let start = Instant::now() + Duration::from_millis(50);
    let request = request(host, false);
    let mut sum = Outcome { done: 0, failed: 0, elapsed: Duration::ZERO, latency: Histogram::new() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|i| {
                let first = start + gap.mul_f64(i as f64 / connections as f64);
                let request = &request;
                scope.spawn(move || worker(target, request, first, gap, start + length))
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(Ok(outcome)) => sum.merge(&outcome),
                _ => sum.failed += 1,
            }
        }
    });
    sum.elapsed = length;
    Ok(sum)
}

fn worker(
    target: SocketAddr,
    request: &[u8],
    first: Instant,
    gap: Duration,
    deadline: Instant,
) -> io::Result<Outcome> {
    // Sleep ends up to 50 us late by default.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut out = Outcome { done: 0, failed: 0, elapsed: Duration::ZERO, latency: Histogram::new() };
    let mut stream = connect(target)?;
    let mut buffer = vec![0; 8192];
    let mut planned = first;
    while planned < deadline {
        std::thread::sleep(planned.saturating_duration_since(Instant::now()));
        if matches!(exchange(&mut stream, request, &mut buffer), Ok(true)) {
            out.done += 1;
            out.latency.record(planned.elapsed().as_nanos() as u64);
        } else {
            out.failed += 1;
            stream = connect(target)?;
        }
        planned += gap;
    }
    Ok(out)
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
    stream.write_all(request)?;
    let mut answer = Answer::default();
    loop {
        let n = stream.read(&mut buffer[answer.kept()..])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(ok) = answer.feed(buffer, n)? {
            return Ok(ok);
        }
    }
}
