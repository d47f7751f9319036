//! Serves circuits: circuit relay v2 with limits of ours. libp2p's own server copies 8 KiB at a time, takes ten
//! requests of a connection at once and ends reservations by the clock; here a reservation lives as long as its
//! connection, so nodes whose clock is wrong keep theirs, and nobody has to renew.

mod copy;
mod table;

use std::{io, sync::Arc};

use futures::AsyncWriteExt;
use libp2p::{Multiaddr, PeerId, Stream};

use self::copy::Bucket;
pub(crate) use self::{
    copy::{Copy, Ends},
    table::{Asking, Circuit, Server},
};
use super::{
    settings::RelayConfig,
    wire::{self, CircuitPeer, Hop, Limit, Reservation, Stop, code},
};

/// End of a reservation as told to clients, which compare it with their own clock: far enough for any clock.
const NEVER: u64 = 253_370_764_800; // the year 9999

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Reserve,
    Connect(PeerId),
}

/// Reads a request; an unusable one is answered here.
pub(crate) async fn request(mut stream: Stream) -> io::Result<(Stream, Request)> {
    let hop = wire::read::<Hop>(&mut stream).await?;
    match parse(&hop) {
        Ok(request) => Ok((stream, request)),
        Err(status) => {
            answer(&mut stream, status, None, None).await?;
            Err(io::Error::new(io::ErrorKind::InvalidData, "unusable request"))
        }
    }
}

fn parse(hop: &Hop) -> Result<Request, i32> {
    match hop.kind {
        code::HOP_RESERVE => Ok(Request::Reserve),
        code::HOP_CONNECT => match hop.peer.as_ref().map(|p| PeerId::from_bytes(&p.id)) {
            Some(Ok(peer)) => Ok(Request::Connect(peer)),
            _ => Err(code::MALFORMED),
        },
        _ => Err(code::UNEXPECTED),
    }
}

/// Grants a reservation.
pub(crate) async fn grant(mut stream: Stream, addresses: Vec<Multiaddr>, limits: Arc<RelayConfig>) {
    let addrs = addresses.iter().map(Multiaddr::to_vec).collect();
    let reservation = Reservation { expire: NEVER, addrs };
    let done = answer(&mut stream, code::OK, Some(reservation), limit(&limits)).await;
    if let Err(error) = done {
        tracing::debug!(%error, "answer to a reservation");
    }
}

/// Says no.
pub(crate) async fn refuse(mut stream: Stream, status: i32) {
    if let Err(error) = answer(&mut stream, status, None, None).await {
        tracing::debug!(%error, "refusal of a request");
    }
}

async fn answer(
    stream: &mut Stream,
    status: i32,
    reservation: Option<Reservation>,
    limit: Option<Limit>,
) -> io::Result<()> {
    let hop = Hop { kind: code::HOP_STATUS, peer: None, reservation, limit, status: Some(status) };
    wire::write(stream, &hop).await?;
    if status == code::OK && hop.reservation.is_none() {
        return Ok(());
    }
    stream.close().await
}

fn limit(limits: &RelayConfig) -> Option<Limit> {
    if limits.duration.is_none() && limits.bytes.is_none() {
        return None;
    }
    let duration = limits.duration.map(|d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX));
    Some(Limit { duration, data: limits.bytes })
}

/// Asks the destination whether it takes the circuit, and tells the source. Gives both streams, ready to be copied.
pub(crate) async fn join(
    mut source: Stream,
    destination: Option<Stream>,
    from: PeerId,
    limits: Arc<RelayConfig>,
) -> io::Result<(Stream, Stream)> {
    let asked = async {
        let mut stream = destination.ok_or(io::ErrorKind::ConnectionRefused)?;
        let peer = Some(CircuitPeer { id: from.to_bytes(), addrs: Vec::new() });
        let stop = Stop { kind: code::STOP_CONNECT, peer, limit: limit(&limits), status: None };
        wire::write(&mut stream, &stop).await?;
        let said = wire::read::<Stop>(&mut stream).await?;
        match (said.kind, said.status) {
            (code::STOP_STATUS, Some(code::OK)) => Ok(stream),
            _ => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
        }
    };
    match asked.await {
        Ok(destination) => {
            answer(&mut source, code::OK, None, limit(&limits)).await?;
            Ok((source, destination))
        }
        Err(error) => {
            answer(&mut source, code::CONNECTION_FAILED, None, None).await?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_named() {
        let hop = |kind, id: Option<Vec<u8>>| Hop {
            kind,
            peer: id.map(|id| CircuitPeer { id, addrs: vec![] }),
            ..Hop::default()
        };
        let peer = PeerId::random();
        assert_eq!(parse(&hop(code::HOP_RESERVE, None)), Ok(Request::Reserve));
        assert_eq!(parse(&hop(code::HOP_CONNECT, Some(peer.to_bytes()))), Ok(Request::Connect(peer)));
        assert_eq!(parse(&hop(code::HOP_CONNECT, None)), Err(code::MALFORMED));
        assert_eq!(parse(&hop(code::HOP_CONNECT, Some(vec![1]))), Err(code::MALFORMED));
        assert_eq!(parse(&hop(code::HOP_STATUS, None)), Err(code::UNEXPECTED));
        assert_eq!(parse(&hop(77, None)), Err(code::UNEXPECTED));
    }
}
