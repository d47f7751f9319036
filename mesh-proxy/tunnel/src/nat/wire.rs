//! Messages of relays and of hole punching. Each is one length-delimited protobuf message of bounded size; nothing is
//! read beyond it, so that the bytes of a circuit stay in the stream.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use prost::Message;

/// Longest message. Those of circuit relay v2 have the same bound.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// Circuit relay v2: a node asks a relay.
pub(crate) const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";
/// Circuit relay v2: a relay asks the destination of a circuit.
pub(crate) const STOP: &str = "/libp2p/circuit/relay/0.2.0/stop";
/// Two peers agree on when and where to dial each other.
pub(crate) const PUNCH: &str = "/selvage/punch/1";
/// A node measures its NAT with a relay.
pub(crate) const PROBE: &str = "/selvage/probe/1";

/// A request to a relay, or its answer.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hop {
    /// 0 reserve, 1 connect, 2 status.
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) peer: Option<CircuitPeer>,
    #[prost(message, optional, tag = "3")]
    pub(crate) reservation: Option<Reservation>,
    #[prost(message, optional, tag = "4")]
    pub(crate) limit: Option<Limit>,
    #[prost(int32, optional, tag = "5")]
    pub(crate) status: Option<i32>,
}

/// A relay's request to the destination, or the answer.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Stop {
    /// 0 connect, 1 status.
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) peer: Option<CircuitPeer>,
    #[prost(message, optional, tag = "3")]
    pub(crate) limit: Option<Limit>,
    #[prost(int32, optional, tag = "4")]
    pub(crate) status: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CircuitPeer {
    #[prost(bytes = "vec", required, tag = "1")]
    pub(crate) id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) addrs: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reservation {
    /// Seconds since 1970.
    #[prost(uint64, required, tag = "1")]
    pub(crate) expire: u64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) addrs: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Limit {
    /// Seconds.
    #[prost(uint32, optional, tag = "1")]
    pub(crate) duration: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) data: Option<u64>,
}

/// What each side says of itself before a punch.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    /// Multiaddrs where the sender may be reached, best first.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) candidates: Vec<Vec<u8>>,
    /// Kind of the sender's NAT for QUIC and for TCP.
    #[prost(uint32, tag = "2")]
    pub(crate) udp: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) tcp: u32,
    /// Nothing is dialled: the sender wants the receiver to start a punch.
    #[prost(bool, tag = "4")]
    pub(crate) ask: bool,
    /// Which of the candidates everybody gets in at, a bit each: whoever dials them needs no hole.
    #[prost(uint32, tag = "5")]
    pub(crate) open: u32,
}

/// The start of a punch.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Go {
    /// Microseconds that the receiver waits before it dials.
    #[prost(uint64, tag = "1")]
    pub(crate) delay: u64,
    /// The leader is not the client of a TCP connection but the server, where the NATs leave a choice.
    #[prost(bool, tag = "2")]
    pub(crate) swaps: bool,
}

/// Asks a relay for a part of a measurement.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Probe {
    /// 1 open a port, 2 send to `target`.
    #[prost(uint32, tag = "1")]
    pub(crate) op: u32,
    /// What the datagrams carry.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) token: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) target: Vec<u8>,
}

/// The answer to [`Probe`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProbeEnd {
    /// The port that is open.
    #[prost(uint32, tag = "1")]
    pub(crate) port: u32,
    /// From where the datagram came; empty: none came.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) seen: Vec<u8>,
}

/// Words of [`Hop::kind`], [`Stop::kind`] and their status.
pub(crate) mod code {
    pub(crate) const HOP_RESERVE: i32 = 0;
    pub(crate) const HOP_CONNECT: i32 = 1;
    pub(crate) const HOP_STATUS: i32 = 2;
    pub(crate) const STOP_CONNECT: i32 = 0;
    pub(crate) const STOP_STATUS: i32 = 1;
    pub(crate) const OK: i32 = 100;
    pub(crate) const RESERVATION_REFUSED: i32 = 200;
    pub(crate) const RESOURCE_LIMIT: i32 = 201;
    pub(crate) const PERMISSION_DENIED: i32 = 202;
    pub(crate) const CONNECTION_FAILED: i32 = 203;
    pub(crate) const NO_RESERVATION: i32 = 204;
    pub(crate) const MALFORMED: i32 = 400;
    pub(crate) const UNEXPECTED: i32 = 401;
}

/// Reads one message and not a byte more.
pub(crate) async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut length = 0usize;
    for shift in [0, 7, 14] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            if length > MAX_MESSAGE {
                return Err(bad("message is too long"));
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            return M::decode(body.as_slice()).map_err(|_| bad("malformed message"));
        }
    }
    Err(bad("message is too long"))
}

/// Writes one message.
pub(crate) async fn write<M: Message>(stream: &mut (impl AsyncWrite + Unpin), message: &M) -> io::Result<()> {
    stream.write_all(&message.encode_length_delimited_to_vec()).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    #[test]
    fn a_message_is_read_and_what_follows_is_left() {
        let hop = Hop {
            kind: code::HOP_CONNECT,
            peer: Some(CircuitPeer { id: vec![1, 2], addrs: vec![vec![3]] }),
            reservation: Some(Reservation { expire: 7, addrs: vec![] }),
            limit: Some(Limit { duration: Some(1), data: Some(2) }),
            status: Some(code::OK),
        };
        let mut bytes = hop.encode_length_delimited_to_vec();
        bytes.extend_from_slice(b"rest");
        let mut stream = Cursor::new(bytes);
        assert_eq!(block_on(read::<Hop>(&mut stream)).unwrap(), hop);
        let mut rest = Vec::new();
        block_on(stream.read_to_end(&mut rest)).unwrap();
        assert_eq!(rest, b"rest");
    }

    #[test]
    fn garbage_ends_with_an_error_and_never_asks_for_much() {
        let read_all = |bytes: Vec<u8>| {
            let mut stream = Cursor::new(bytes);
            let _ = block_on(read::<Hop>(&mut stream));
            stream.set_position(0);
            let _ = block_on(read::<Stop>(&mut stream));
            stream.set_position(0);
            let _ = block_on(read::<Hello>(&mut stream));
            stream.set_position(0);
            let _ = block_on(read::<Go>(&mut stream));
            stream.set_position(0);
            let _ = block_on(read::<Probe>(&mut stream));
            stream.set_position(0);
            let _ = block_on(read::<ProbeEnd>(&mut stream));
        };
        let hello = Hello { candidates: vec![vec![4, 1, 2, 3, 4]; 8], udp: 3, tcp: 1, ask: true, open: 5 };
        let probe = Probe { op: 1, token: vec![7; 16], target: vec![4, 10, 0, 0, 1] };
        let hop = Hop { peer: Some(CircuitPeer { id: vec![1; 38], addrs: vec![] }), ..Hop::default() };
        let seeds = [
            hello.encode_length_delimited_to_vec(),
            probe.encode_length_delimited_to_vec(),
            hop.encode_length_delimited_to_vec(),
            Vec::new(),
        ];
        mesh_testkit::fuzz::run("nat_messages", &seeds, |bytes| {
            read_all(bytes.to_vec());
            bytes.len()
        });
        for endless in [vec![0xff; 16], vec![0x81, 0x80, 0x80, 0x00], vec![0xff, 0x7f]] {
            assert!(block_on(read::<Hop>(&mut Cursor::new(endless))).is_err());
        }
    }
}
