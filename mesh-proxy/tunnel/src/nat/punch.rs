//! Turns a relayed connection into a direct one. libp2p's DCUtR gives each side its role by who dialled the relayed
//! connection and repeats it three times; that cannot reach a symmetric NAT that happens to have the listener's role.
//! Here both sides tell their addresses and kinds of NAT, and at one moment both dial: for QUIC each from its listen
//! port with a handshake of its own, so that whichever packet opens the way is answered; for TCP by simultaneous open,
//! with the roles chosen by what the NATs need.
//!
//! - [`plan`]: who dials what, when.
//! - [`schedule`]: when a peer is tried, and again.

mod plan;
mod schedule;

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

pub(crate) use self::{
    plan::{Role, Shot, Side, plan},
    schedule::Schedule,
};
use super::wire::{self, Go, Hello};

/// Time that the talk about a punch may take.
pub(crate) const TALK: Duration = Duration::from_secs(5);
/// Time after the start in which a direct connection must come about.
pub(crate) const WINDOW: Duration = Duration::from_millis(3_500);
/// Longest wait before the start that a peer may ask for.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// What a talk led to.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) theirs: Hello,
    /// When both dial.
    pub(crate) start: Instant,
    /// This side led.
    pub(crate) leads: bool,
    /// The sides take the other roles of a TCP connection.
    pub(crate) swaps: bool,
}

/// Leads the talk: both sides start when half a round trip has passed after the last word.
pub(crate) async fn lead(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mine: Hello,
    swaps: bool,
) -> io::Result<Option<Agreed>> {
    let began = Instant::now();
    wire::write(&mut stream, &mine).await?;
    if mine.ask {
        stream.close().await?;
        return Ok(None);
    }
    let theirs: Hello = wire::read(&mut stream).await?;
    let round_trip = began.elapsed();
    wire::write(&mut stream, &Go { delay: 0, swaps }).await?;
    let start = Instant::now() + (round_trip / 2).min(MAX_DELAY);
    // The word is on its way; an orderly end would only cost time.
    let _ended = stream.close().await;
    Ok(Some(Agreed { theirs, start, leads: true, swaps }))
}

/// Follows. None: the peer only asks for a punch to be led from here.
pub(crate) async fn follow(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mine: Hello,
) -> io::Result<Option<Agreed>> {
    let theirs: Hello = wire::read(&mut stream).await?;
    if theirs.ask {
        return Ok(None);
    }
    wire::write(&mut stream, &mine).await?;
    let go: Go = wire::read(&mut stream).await?;
    let start = Instant::now() + Duration::from_micros(go.delay).min(MAX_DELAY);
    let _ended = stream.close().await;
    Ok(Some(Agreed { theirs, start, leads: false, swaps: go.swaps }))
}

#[cfg(test)]
mod tests {
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    fn hello(n: u8) -> Hello {
        Hello { candidates: vec![vec![n]], udp: 4, tcp: 5, ask: false, open: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn both_sides_start_at_one_moment() {
        // A relay that takes 40 ms each way.
        let (a, a_far) = tokio::io::duplex(4096);
        let (b, b_far) = tokio::io::duplex(4096);
        let relay = |mut from: tokio::io::ReadHalf<tokio::io::DuplexStream>,
                     mut to: tokio::io::WriteHalf<tokio::io::DuplexStream>| async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut buffer = [0; 4096];
            loop {
                let n = from.read(&mut buffer).await.unwrap();
                if n == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        };
        let ((ar, aw), (br, bw)) = (tokio::io::split(a_far), tokio::io::split(b_far));
        let runtime = tokio::runtime::Handle::current();
        let relays = [runtime.spawn(relay(ar, bw)), runtime.spawn(relay(br, aw))];
        let (one, two) = tokio::join!(lead(a.compat(), hello(1), true), follow(b.compat(), hello(2)));
        let (one, two) = (one.unwrap().unwrap(), two.unwrap().unwrap());
        assert_eq!((one.theirs, two.theirs), (hello(2), hello(1)));
        let apart = if one.start > two.start { one.start - two.start } else { two.start - one.start };
        assert!(apart < Duration::from_millis(5), "{apart:?}");
        assert!(one.leads && !two.leads && one.swaps && two.swaps);
        for relay in relays {
            relay.abort();
        }
    }

    #[tokio::test]
    async fn who_only_asks_is_not_punched() {
        let (a, b) = tokio::io::duplex(4096);
        let ask = Hello { ask: true, ..hello(1) };
        let (one, two) = tokio::join!(lead(a.compat(), ask, false), follow(b.compat(), hello(2)));
        assert!(one.unwrap().is_none() && two.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_cannot_make_us_wait_for_long() {
        let (a, b) = tokio::io::duplex(4096);
        let mut a = a.compat();
        let far = async {
            wire::write(&mut a, &hello(1)).await.unwrap();
            let _: Hello = wire::read(&mut a).await.unwrap();
            wire::write(&mut a, &Go { delay: u64::MAX, swaps: false }).await.unwrap();
        };
        let (two, ()) = tokio::join!(follow(b.compat(), hello(2)), far);
        assert!(two.unwrap().unwrap().start <= Instant::now() + MAX_DELAY);
    }
}
