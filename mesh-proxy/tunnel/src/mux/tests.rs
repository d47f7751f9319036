//! The state machine against itself, and against a peer that breaks the rules.

use std::{
    cell::Cell,
    io,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};

use futures::task::noop_waker_ref;

use super::{
    Config,
    frame::{HEADER, Header, Kind},
    state::{Connection, Role},
};

thread_local! {
    static CLOCK: Cell<Instant> = Cell::new(Instant::now());
}

/// The time of the test: it moves on by a millisecond whenever bytes cross.
fn now() -> Instant {
    CLOCK.get()
}

fn cx() -> Context<'static> {
    Context::from_waker(noop_waker_ref())
}

/// Two ends and the bytes between them.
struct Pair {
    a: Arc<Connection>,
    b: Arc<Connection>,
}

impl Pair {
    fn new(config: Config) -> Self {
        Self {
            a: Arc::new(Connection::new(config, Role::Dialler)),
            b: Arc::new(Connection::new(config, Role::Listener)),
        }
    }

    /// Carries all waiting frames both ways, cut into pieces of `size`; gives how many bytes that were.
    fn carry(&self, size: usize) -> usize {
        let mut total = 0;
        loop {
            let moved = one_way(&self.a, &self.b, size).unwrap() + one_way(&self.b, &self.a, size).unwrap();
            if moved == 0 {
                return total;
            }
            total += moved;
        }
    }

    /// A stream that both ends know.
    fn stream(&self) -> (u32, u32) {
        let id = self.a.open().unwrap();
        assert_eq!(write(&self.a, id, b"!").unwrap(), Some(1));
        self.carry(7);
        let other = accept(&self.b).unwrap();
        assert_eq!(read(&self.b, other).unwrap().unwrap(), b"!");
        (id, other)
    }
}

fn one_way(from: &Connection, to: &Connection, size: usize) -> io::Result<usize> {
    let mut bytes = Vec::new();
    if !from.take_output(&mut bytes, noop_waker_ref()) {
        return Ok(0);
    }
    CLOCK.set(now() + Duration::from_millis(1));
    for piece in bytes.chunks(size) {
        to.receive(piece, now())?;
    }
    Ok(bytes.len())
}

fn accept(c: &Connection) -> Option<u32> {
    match c.poll_accept(&mut cx()) {
        std::task::Poll::Ready(id) => Some(id.unwrap()),
        std::task::Poll::Pending => None,
    }
}

/// None = would wait.
fn write(c: &Connection, id: u32, bytes: &[u8]) -> io::Result<Option<usize>> {
    match c.poll_write(id, &mut cx(), &[io::IoSlice::new(bytes)]) {
        std::task::Poll::Ready(n) => n.map(Some),
        std::task::Poll::Pending => Ok(None),
    }
}

fn read(c: &Connection, id: u32) -> io::Result<Option<Vec<u8>>> {
    let mut buf = vec![0; 1 << 20];
    match c.poll_read(id, &mut cx(), &mut buf, now) {
        std::task::Poll::Ready(n) => n.map(|n| Some(buf[..n].to_vec())),
        std::task::Poll::Pending => Ok(None),
    }
}

fn header(kind: Kind, length: u32, stream: u32) -> [u8; HEADER] {
    Header { kind, length, stream }.encode()
}

#[test]
fn headers_survive_the_wire_and_unknown_kinds_are_refused() {
    for kind in [
        Kind::Data { open: false, end: false },
        Kind::Data { open: true, end: false },
        Kind::Data { open: false, end: true },
        Kind::Data { open: true, end: true },
        Kind::Reset,
        Kind::Credit,
        Kind::Ping,
        Kind::Pong,
    ] {
        let h = Header { kind, length: 0x00ab_cdef, stream: 0x8765_4321 };
        assert_eq!(Header::decode(h.encode()), Some(h));
    }
    for kind in 8..=255 {
        assert_eq!(Header::decode([kind, 0, 0, 0, 0, 0, 0, 1]), None);
    }
}

#[test]
fn bytes_arrive_whole_however_the_transport_cuts_them() {
    for size in [1, 3, 8, 1000, 1 << 20] {
        let pair = Pair::new(Config::default());
        let (a, b) = pair.stream();
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
        let (mut at, mut back) = (0, Vec::new());
        while back.len() < sent.len() {
            while at < sent.len() {
                match write(&pair.a, a, &sent[at..]).unwrap() {
                    Some(n) => at += n,
                    None => break,
                }
            }
            pair.carry(size);
            while let Some(bytes) = read(&pair.b, b).unwrap() {
                back.extend(bytes);
            }
            pair.carry(size);
        }
        assert!(back == sent);
        pair.a.end(a).unwrap();
        pair.carry(size);
        assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"");
    }
}

#[test]
fn a_window_holds_one_stream_and_not_its_neighbour() {
    let config = Config { window: 1000, ..Config::default() };
    let pair = Pair::new(config);
    let (a, b) = pair.stream();
    assert_eq!(write(&pair.a, a, &[1; 5000]).unwrap(), Some(999));
    assert_eq!(write(&pair.a, a, &[1; 5000]).unwrap(), None);
    pair.carry(100);
    assert_eq!(write(&pair.a, a, &[1; 5000]).unwrap(), None, "nobody has read");
    let (a2, b2) = pair.stream();
    assert_eq!(write(&pair.a, a2, b"free").unwrap(), Some(4));
    pair.carry(100);
    assert_eq!(read(&pair.b, b2).unwrap().unwrap(), b"free");
    assert_eq!(read(&pair.b, b).unwrap().unwrap().len(), 999);
    pair.carry(100);
    assert_eq!(write(&pair.a, a, &[1; 5000]).unwrap(), Some(1000));
}

/// Writes and reads as fast as the window lets; gives the most that one round carried.
fn pump(pair: &Pair, a: u32, b: u32) -> usize {
    let mut most = 0;
    for _ in 0..50 {
        let mut written = 0;
        while let Some(n) = write(&pair.a, a, &[0; 1 << 20]).unwrap() {
            written += n;
        }
        most = most.max(written);
        pair.carry(1 << 20);
        while read(&pair.b, b).unwrap().is_some() {}
        pair.carry(1 << 20);
    }
    most
}

#[test]
fn windows_grow_only_within_their_common_bound() {
    let config = Config { window: 1 << 10, max_window: 16 << 10, growth: 20 << 10, ..Config::default() };
    let pair = Pair::new(config);
    let streams = [pair.stream(), pair.stream(), pair.stream()];
    let mut most = [0; 3];
    for (i, (a, b)) in streams.iter().enumerate() {
        most[i] = pump(&pair, *a, *b);
    }
    assert!(most.iter().all(|m| *m <= 16 << 10), "{most:?}");
    assert!(most.iter().sum::<usize>() <= (20 << 10) + 3 * (1 << 10), "{most:?}");
    assert!(most[0] > 2 << 10, "a fast stream's window does not grow: {most:?}");
    // What a stream had is free for others once it is gone.
    for (a, b) in streams {
        pair.a.drop_stream(a);
        pair.b.drop_stream(b);
    }
    pair.carry(1 << 20);
    let (a, b) = pair.stream();
    let most = pump(&pair, a, b);
    assert!(most > 8 << 10, "{most}");
}

#[test]
fn a_new_stream_has_the_window_that_the_last_one_needed() {
    let config = Config { window: 1 << 10, max_window: 16 << 10, growth: 64 << 10, ..Config::default() };
    let pair = Pair::new(config);
    let (a, b) = pair.stream();
    pump(&pair, a, b);
    for end in [&pair.a, &pair.b] {
        end.drop_stream(a);
    }
    pair.carry(1 << 20);
    let all = |a| {
        let mut written = 0;
        while let Some(n) = write(&pair.a, a, &[0; 1 << 20]).unwrap() {
            written += n;
        }
        written
    };
    // One byte of each has told the other end of the stream.
    let (a, b) = pair.stream();
    assert_eq!(all(a), (16 << 10) - 1, "at once");
    // No more than half of the growth goes to those that have not shown that they need it.
    let mut held = vec![(a, b)];
    held.extend((0..3).map(|_| pair.stream()));
    let more: Vec<usize> = held[1..].iter().map(|(a, _)| all(*a)).collect();
    assert_eq!(more, [(16 << 10) - 1, (1 << 10) - 1, (1 << 10) - 1]);
    for (a, b) in held {
        pair.a.drop_stream(a);
        pair.b.drop_stream(b);
    }
    pair.carry(1 << 20);
    // Streams that do not need it lower it.
    for _ in 0..40 {
        let (a, b) = pair.stream();
        pair.a.drop_stream(a);
        pair.b.drop_stream(b);
        pair.carry(1 << 20);
    }
    let (a, _) = pair.stream();
    assert!(all(a) < 2 << 10);
}

#[test]
fn ends_and_resets_are_told_apart() {
    let pair = Pair::new(Config::default());
    // Data, then a reset: what arrived is read, then it is an error, as with TCP.
    let (a, b) = pair.stream();
    write(&pair.a, a, b"before").unwrap();
    pair.a.drop_stream(a);
    pair.carry(5);
    assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"before");
    assert_eq!(read(&pair.b, b).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(write(&pair.b, b, b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // An end, then a drop: the end stays clean, and the other direction learns.
    let (a, b) = pair.stream();
    write(&pair.a, a, b"kept").unwrap();
    pair.a.end(a).unwrap();
    pair.a.drop_stream(a);
    pair.carry(5);
    assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"kept");
    assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"");
    assert_eq!(write(&pair.b, b, b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // The peer's end, then our abort.
    let (a, b) = pair.stream();
    pair.a.end(a).unwrap();
    pair.carry(5);
    assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"");
    pair.b.drop_stream(b);
    pair.carry(5);
    assert_eq!(read(&pair.a, a).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(write(&pair.a, a, b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_failed_connection_gives_what_arrived_and_then_an_error() {
    let pair = Pair::new(Config::default());
    let (a, b) = pair.stream();
    write(&pair.a, a, b"arrived").unwrap();
    pair.carry(5);
    pair.b.fail(io::ErrorKind::ConnectionAborted);
    assert_eq!(read(&pair.b, b).unwrap().unwrap(), b"arrived");
    assert_eq!(read(&pair.b, b).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(pair.b.open().is_err());
}

#[test]
fn one_stream_too_many_is_reset_alone() {
    let pair = Pair::new(Config { max_streams: 2, ..Config::default() });
    let (first, _) = pair.stream();
    let (_second, _) = pair.stream();
    let third = pair.a.open().unwrap();
    write(&pair.a, third, b"x").unwrap();
    pair.carry(9);
    assert_eq!(read(&pair.a, third).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(accept(&pair.b), None);
    assert_eq!(write(&pair.a, first, b"x").unwrap(), Some(1));
}

#[test]
fn a_peer_that_breaks_the_rules_ends_the_connection() {
    let open = Kind::Data { open: true, end: false };
    let data = Kind::Data { open: false, end: false };
    let cases: [(&str, Vec<[u8; HEADER]>); 7] = [
        ("unknown kind", vec![[9, 0, 0, 0, 0, 0, 0, 1]]),
        ("our own number", vec![header(open, 0, 2)]),
        ("number 0", vec![header(open, 0, 0)]),
        ("opened twice", vec![header(open, 0, 1), header(open, 0, 1)]),
        ("beyond the window", vec![header(open, 0, 1), header(data, (64 << 10) + 1, 1)]),
        ("after its end", vec![header(Kind::Data { open: true, end: true }, 0, 1), header(data, 1, 1)]),
        (
            "endless credit",
            std::iter::once(header(open, 0, 1))
                .chain((0..300).map(|_| header(Kind::Credit, (1 << 24) - 1, 1)))
                .collect(),
        ),
    ];
    for (what, frames) in cases {
        let victim = Connection::new(Config::default(), Role::Listener);
        let result = victim.receive(&frames.concat(), now());
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData, "{what}");
    }
    // Asking without end and never reading the answers.
    let victim = Connection::new(Config::default(), Role::Listener);
    let pings = header(Kind::Ping, 0, 0).repeat(100_000);
    let flood = (0..10).try_for_each(|_| victim.receive(&pings, now()));
    assert!(flood.is_err());
}

#[test]
fn late_frames_of_a_stream_that_is_gone_hurt_nobody() {
    let pair = Pair::new(Config::default());
    let (a, b) = pair.stream();
    pair.b.drop_stream(b);
    write(&pair.a, a, &[0; 1000]).unwrap();
    pair.carry(13);
    assert_eq!(read(&pair.a, a).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    pair.stream();
}

#[test]
fn fuzz_frames() {
    // Frames of every kind for a few streams, each with a body of some length.
    let frame = |kind: u8, id: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 0, length[0], length[1], 0, 0, 0, id][..], body].concat()
    };
    let seeds: Vec<Vec<u8>> = (0..8)
        .map(|kind| [frame(0, 1, &[]), frame(kind, 1, b"body"), frame(kind, 3, &[0, 0, 16, 0])].concat())
        .collect();
    mesh_testkit::fuzz::run("mux_frames", &seeds, |bytes| {
        let victim = Connection::new(Config { window: 4096, ..Config::default() }, Role::Listener);
        let mut streams = 0;
        // In two parts: a frame may arrive in pieces.
        for part in bytes.chunks(bytes.len() / 2 + 1) {
            if let Err(error) = victim.receive(part, now()) {
                return (streams, format!("{error:?}").chars().take(24).collect());
            }
            while let Some(id) = accept(&victim) {
                streams += 1;
                if streams % 2 == 0 {
                    victim.drop_stream(id);
                }
            }
        }
        (streams, String::new())
    });
}
