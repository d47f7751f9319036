//! The state machine of one multiplexed connection: streams, windows, and the bytes that wait to be sent. Does no I/O.

mod receive;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    Config,
    buffer::Received,
    frame::{HEADER, Header, Kind, MAX_LENGTH, MAX_PAYLOAD},
};

/// Streams wait with writing while this much is not yet taken by the transport.
const OUTPUT: usize = 256 << 10;
/// A peer that makes us owe it this much (answers, credit) without reading any is cut.
const OUTPUT_MAX: usize = 4 << 20;
/// Pause between two measurements of the round trip.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A connection's buffer of this size is given back when there are no streams.
const KEEP: usize = 16 << 10;

/// Who opened the connection; decides which stream numbers are whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Dialler,
    Listener,
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    Clean,
    Reset,
}

#[derive(Debug)]
struct Entry {
    /// Received and not yet read.
    received: Received,
    receiving: Ended,
    /// What the peer may still send.
    window: u32,
    window_max: u32,
    /// Read since the last credit.
    unacknowledged: u32,
    credited: Option<Instant>,
    reader: Option<Waker>,
    /// What we may still send.
    credit: u32,
    sending: Ended,
    /// The peer knows of the stream.
    announced: bool,
    writer: Option<Waker>,
    waits_for_output: bool,
    /// Read in all.
    taken: u64,
}

/// Stream numbers are ours or an authenticated peer's: no need for a keyed hash.
#[derive(Debug, Default)]
pub(crate) struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 << 8) | u64::from(*b);
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Debug)]
struct Inner {
    config: Config,
    role: Role,
    streams: HashMap<u32, Entry, BuildHasherDefault<Number>>,
    next: u32,
    /// Frames that wait for the transport.
    output: Vec<u8>,
    driver: Option<Waker>,
    /// Streams whose writers wait for room in `output`.
    waiting: Vec<u32>,
    accepted: VecDeque<u32>,
    acceptor: Option<Waker>,
    failed: Option<io::ErrorKind>,
    /// A header of which a part has arrived.
    head: [u8; HEADER],
    head_len: usize,
    /// The data frame whose payload is arriving: stream, bytes left, whether it ends the direction.
    body: Option<(u32, u32, bool)>,
    /// What windows have grown by.
    grown: usize,
    /// The window that a stream of this line needed: later ones have it from the start.
    learned: u32,
    rtt: Option<Duration>,
    pinged: Option<Instant>,
    ping_open: bool,
    /// Woken once the lock is released.
    wake: Vec<Waker>,
}

#[derive(Debug)]
pub(crate) struct Connection(Mutex<Inner>);

fn violation(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    pub(crate) fn new(config: Config, role: Role) -> Self {
        Self(Mutex::new(Inner {
            config,
            role,
            streams: HashMap::default(),
            next: if role == Role::Dialler { 1 } else { 2 },
            output: Vec::new(),
            driver: None,
            waiting: Vec::new(),
            accepted: VecDeque::new(),
            acceptor: None,
            failed: None,
            head: [0; HEADER],
            head_len: 0,
            body: None,
            grown: 0,
            learned: config.window,
            rtt: None,
            pinged: None,
            ping_open: false,
            wake: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` and then, without the lock, wakes whom it concerns.
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = f(&mut inner);
        let mut wake = std::mem::take(&mut inner.wake);
        drop(inner);
        wake.drain(..).for_each(Waker::wake);
        if wake.capacity() > 0 {
            // The allocation is worth keeping; another thread may have put its own there meanwhile.
            let mut inner = self.lock();
            if inner.wake.is_empty() && inner.wake.capacity() < wake.capacity() {
                inner.wake = wake;
            }
        }
        result
    }

    // === the connection's task ===

    /// Moves waiting frames into the empty `sending`. False when there are none: `driver` is then woken by the next.
    pub(crate) fn take_output(&self, sending: &mut Vec<u8>, driver: &Waker) -> bool {
        self.with(|inner| {
            if inner.output.is_empty() {
                if !inner.driver.as_ref().is_some_and(|w| w.will_wake(driver)) {
                    inner.driver = Some(driver.clone());
                }
                if inner.failed.is_none() && inner.streams.is_empty() && inner.output.capacity() > KEEP {
                    inner.output = Vec::new();
                    *sending = Vec::new();
                }
                return false;
            }
            std::mem::swap(&mut inner.output, sending);
            for id in std::mem::take(&mut inner.waiting) {
                if let Some(entry) = inner.streams.get_mut(&id) {
                    entry.waits_for_output = false;
                    inner.wake.extend(entry.writer.take());
                }
            }
            true
        })
    }

    /// Takes bytes that arrived. `Err` is a violation of the protocol, which ends the connection.
    pub(crate) fn receive(&self, bytes: &[u8], now: Instant) -> io::Result<()> {
        self.with(|inner| inner.receive(bytes, now))
    }

    /// How much of the frame that is arriving, and of the next header, may be read at once into a piece.
    pub(crate) fn room(&self) -> Option<usize> {
        self.lock().room()
    }

    /// Takes the first `n` bytes of a piece that was filled as [`Connection::room`] allows.
    pub(crate) fn receive_piece(&self, piece: Box<[u8]>, n: usize, now: Instant) -> io::Result<()> {
        self.with(|inner| inner.receive_piece(piece, n, now))
    }

    /// Ends every stream; those that still have received bytes give them first.
    pub(crate) fn fail(&self, kind: io::ErrorKind) {
        self.with(|inner| {
            if inner.failed.is_some() {
                return;
            }
            inner.failed = Some(kind);
            inner.output = Vec::new();
            for entry in inner.streams.values_mut() {
                inner.wake.extend(entry.reader.take());
                inner.wake.extend(entry.writer.take());
            }
            inner.wake.extend(inner.acceptor.take());
            inner.wake.extend(inner.driver.take());
        });
    }

    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut inner = self.lock();
        if let Some(id) = inner.accepted.pop_front() {
            return Poll::Ready(Ok(id));
        }
        if let Some(kind) = inner.failed {
            return Poll::Ready(Err(kind.into()));
        }
        inner.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A new stream. The peer learns of it with its first frame.
    pub(crate) fn open(&self) -> io::Result<u32> {
        let mut inner = self.lock();
        if let Some(kind) = inner.failed {
            return Err(kind.into());
        }
        let id = inner.next;
        inner.next = id.checked_add(2).ok_or_else(|| violation("stream numbers are used up"))?;
        let entry = Entry::new(inner.config.window, false);
        inner.streams.insert(id, entry);
        Ok(id)
    }

    // === streams ===

    /// `now` is asked only when credit is due.
    pub(crate) fn poll_read(
        &self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        now: impl FnOnce() -> Instant,
    ) -> Poll<io::Result<usize>> {
        self.with(|inner| inner.poll_read(id, cx, buf, now))
    }

    pub(crate) fn poll_write(
        &self,
        id: u32,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|inner| inner.poll_write(id, cx, bufs))
    }

    /// Ends our direction cleanly.
    pub(crate) fn end(&self, id: u32) -> io::Result<()> {
        self.with(|inner| {
            if let Some(kind) = inner.failed {
                return Err(kind.into());
            }
            let Some(entry) = inner.streams.get_mut(&id) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            match entry.sending {
                Ended::Clean => return Ok(()),
                Ended::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
                Ended::No => {}
            }
            entry.sending = Ended::Clean;
            let open = !std::mem::replace(&mut entry.announced, true);
            inner.push(Header { kind: Kind::Data { open, end: true }, length: 0, stream: id });
            if open {
                inner.head_start(id);
            }
            Ok(())
        })
    }

    /// The stream's owner is done with it. Anything but two clean ends is a reset for the peer.
    pub(crate) fn drop_stream(&self, id: u32) {
        self.with(|inner| {
            let Some(entry) = inner.streams.remove(&id) else { return };
            inner.grown -= (entry.window_max - inner.config.window) as usize;
            inner.learn(&entry);
            let over = entry.receiving == Ended::Reset
                || entry.sending == Ended::Reset
                || (entry.sending == Ended::Clean && entry.receiving == Ended::Clean);
            if entry.announced && !over && inner.failed.is_none() {
                inner.push(Header { kind: Kind::Reset, length: 0, stream: id });
            }
        });
    }
}

impl Entry {
    fn new(window: u32, announced: bool) -> Self {
        Self {
            received: Received::default(),
            receiving: Ended::No,
            window,
            window_max: window,
            unacknowledged: 0,
            credited: None,
            reader: None,
            credit: window,
            sending: Ended::No,
            announced,
            writer: None,
            waits_for_output: false,
            taken: 0,
        }
    }
}

impl Inner {
    /// Adds a frame without payload and wakes the connection's task.
    fn push(&mut self, header: Header) {
        self.output.extend_from_slice(&header.encode());
        self.wake.extend(self.driver.take());
    }

    fn poll_read(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        now: impl FnOnce() -> Instant,
    ) -> Poll<io::Result<usize>> {
        let Some(entry) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let n = entry.received.read(buf);
        if n > 0 {
            // `n` is at most a window.
            entry.unacknowledged += n as u32;
            entry.taken += n as u64;
            if entry.receiving == Ended::No && entry.unacknowledged >= entry.window_max / 2 {
                self.give_credit(id, now());
            }
            return Poll::Ready(Ok(n));
        }
        match (entry.receiving, self.failed) {
            (Ended::Clean, _) => Poll::Ready(Ok(0)),
            (Ended::Reset, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (Ended::No, Some(_)) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (Ended::No, None) => {
                entry.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Notes what window a stream that is over has needed.
    fn learn(&mut self, entry: &Entry) {
        if entry.window_max <= self.config.window {
            return;
        }
        if entry.taken >= u64::from(entry.window_max) {
            self.learned = entry.window_max;
        } else {
            // It had a head start and did not need it.
            self.learned = (self.learned - self.learned / 8).max(self.config.window);
        }
    }

    /// Lets the peer send on a new stream as much as the last ones needed, instead of growing there again in each: on a long
    /// line that takes several round trips. Half of the growth is left to streams that show that they need it.
    fn head_start(&mut self, id: u32) {
        let more = self.learned.saturating_sub(self.config.window);
        if more == 0 || self.grown + more as usize > self.config.growth / 2 {
            return;
        }
        let Some(entry) = self.streams.get_mut(&id) else { return };
        entry.window += more;
        entry.window_max += more;
        self.grown += more as usize;
        self.push(Header { kind: Kind::Credit, length: more, stream: id });
    }

    /// Lets the peer send more. The window doubles when the peer used half of it within two round trips.
    fn give_credit(&mut self, id: u32, now: Instant) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        let mut credit = entry.unacknowledged;
        let fast = match (entry.credited, self.rtt) {
            (Some(before), Some(rtt)) => now.saturating_duration_since(before) < rtt * 2,
            _ => false,
        };
        let more = entry.window_max.min(self.config.max_window - entry.window_max);
        if fast && more > 0 && self.grown + more as usize <= self.config.growth {
            entry.window_max += more;
            self.grown += more as usize;
            credit += more;
        }
        let credit = credit.min(MAX_LENGTH);
        entry.unacknowledged = 0;
        entry.window += credit;
        entry.credited = Some(now);
        self.push(Header { kind: Kind::Credit, length: credit, stream: id });
        if !self.ping_open && self.pinged.is_none_or(|p| now.saturating_duration_since(p) >= PING_EVERY) {
            self.pinged = Some(now);
            self.ping_open = true;
            self.push(Header { kind: Kind::Ping, length: 0, stream: 0 });
        }
    }

    fn poll_write(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let Some(entry) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match entry.sending {
            Ended::Clean => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Ended::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Ended::No => {}
        }
        let wanted: usize = bufs.iter().map(|b| b.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if entry.credit == 0 || self.output.len() >= OUTPUT {
            entry.writer = Some(cx.waker().clone());
            if entry.credit > 0 && !entry.waits_for_output {
                entry.waits_for_output = true;
                self.waiting.push(id);
            }
            return Poll::Pending;
        }
        let n = wanted.min(entry.credit as usize).min(MAX_PAYLOAD);
        // `n` fits: it is at most `MAX_PAYLOAD`.
        entry.credit -= n as u32;
        let open = !std::mem::replace(&mut entry.announced, true);
        self.push(Header { kind: Kind::Data { open, end: false }, length: n as u32, stream: id });
        let mut left = n;
        for buf in bufs {
            let part = left.min(buf.len());
            self.output.extend_from_slice(&buf[..part]);
            left -= part;
        }
        if open {
            self.head_start(id);
        }
        Poll::Ready(Ok(n))
    }
}
