//! Bodies on their way through: counted, replayable where a rule may retry, never collected.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

/// Most bytes of a request that are kept for another try.
pub(crate) const REPLAY_LIMIT: usize = 64 << 10;

/// How long a body waits for the endpoint's `100 Continue` before it is sent anyway (RFC 9110 asks for an end).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client's side.
    #[error("read the request's body")]
    Client(#[source] hyper::Error),
    /// Another try has taken the body over.
    #[error("the body belongs to another try")]
    Superseded,
}

/// What has passed of a request's body.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) bytes: Cell<u64>,
    pub(crate) ended: Cell<bool>,
}

/// The body of a request to an endpoint.
pub(crate) struct RequestBody {
    kind: Kind,
    meter: Rc<Meter>,
    gate: Option<Box<Gate>>,
}

enum Kind {
    Empty,
    Bytes(Option<Bytes>),
    Direct(Incoming),
    Replay { shared: Rc<RefCell<Replay>>, generation: u32, position: usize },
}

impl RequestBody {
    /// No body.
    pub(crate) fn empty(meter: Rc<Meter>) -> Self {
        meter.ended.set(true);
        Self { kind: Kind::Empty, meter, gate: None }
    }

    /// Bytes that are all there.
    pub(crate) fn bytes(bytes: Bytes, meter: Rc<Meter>) -> Self {
        if bytes.is_empty() {
            return Self::empty(meter);
        }
        Self { kind: Kind::Bytes(Some(bytes)), meter, gate: None }
    }

    /// The client's body, passed on once.
    pub(crate) fn direct(body: Incoming, meter: Rc<Meter>) -> Self {
        if body.is_end_stream() {
            return Self::empty(meter);
        }
        Self { kind: Kind::Direct(body), meter, gate: None }
    }

    /// The client's body for one of several tries.
    pub(crate) fn replay(shared: &Rc<RefCell<Replay>>, meter: Rc<Meter>) -> Self {
        let mut replay = shared.borrow_mut();
        replay.generation += 1;
        let generation = replay.generation;
        drop(replay);
        meter.ended.set(false);
        meter.bytes.set(0);
        Self { kind: Kind::Replay { shared: Rc::clone(shared), generation, position: 0 }, meter, gate: None }
    }

    /// Holds the body back until the endpoint asks for it.
    pub(crate) fn held_by(&mut self, signal: Arc<Signal>) {
        if !matches!(self.kind, Kind::Empty) {
            self.gate = Some(Box::new(Gate { signal, timer: Box::pin(sleep(CONTINUE_WAIT)) }));
        }
    }

    /// Whether there is nothing to send.
    pub(crate) const fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Bytes(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Kind::Direct(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Client),
            Kind::Replay { shared, generation, position } => {
                shared.borrow_mut().poll_at(*generation, position, cx)
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        let frame = ready!(this.poll_kind(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.meter.bytes.set(this.meter.bytes.get() + data.len() as u64);
                }
                if frame.is_trailers() || this.is_end_stream() {
                    this.meter.ended.set(true);
                }
            }
            None => this.meter.ended.set(true),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Bytes(b) => b.is_none(),
            Kind::Direct(body) => body.is_end_stream(),
            Kind::Replay { shared, position, .. } => shared.borrow().is_end(*position),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Bytes(b) => SizeHint::with_exact(b.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Direct(body) => body.size_hint(),
            Kind::Replay { shared, position, .. } => shared.borrow().size_hint(*position),
        }
    }
}

/// A client's body that several tries may read from its start, as long as it stays small.
pub(crate) struct Replay {
    source: Incoming,
    kept: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Too large, or broken: the try that has it now is the last one.
    spent: bool,
    generation: u32,
}

impl Replay {
    pub(crate) fn new(source: Incoming) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            source,
            kept: Vec::new(),
            size: 0,
            trailers: None,
            ended: false,
            spent: false,
            generation: 0,
        }))
    }

    /// Whether another try can send the same body.
    pub(crate) const fn can_repeat(&self) -> bool {
        !self.spent
    }

    /// The whole body, if all of it has passed and was kept.
    pub(crate) fn whole(&self) -> Option<&[Bytes]> {
        (self.ended && !self.spent).then_some(&*self.kept)
    }

    fn poll_at(
        &mut self,
        generation: u32,
        position: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if generation != self.generation {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(bytes) = self.kept.get(*position) {
            *position += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if self.ended {
            // Trailers come once for each try: the position past the data says whether they went.
            if *position == self.kept.len()
                && let Some(trailers) = &self.trailers
            {
                *position += 1;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
            }
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut self.source).poll_frame(cx)) else {
            self.ended = true;
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(e) => {
                self.spent = true;
                return Poll::Ready(Some(Err(BodyError::Client(e))));
            }
        };
        if let Some(data) = frame.data_ref() {
            self.size += data.len();
            if self.size > REPLAY_LIMIT {
                self.spent = true;
                self.kept = Vec::new();
                *position = 0;
            } else if !self.spent {
                self.kept.push(data.clone());
                *position = self.kept.len();
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.ended = true;
            *position = self.kept.len() + 1;
        }
        self.ended |= self.source.is_end_stream();
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end(&self, position: usize) -> bool {
        let trailers_due = self.trailers.is_some() && position <= self.kept.len();
        self.ended && position >= self.kept.len() && !trailers_due
    }

    fn size_hint(&self, position: usize) -> SizeHint {
        let kept: u64 = self.kept.iter().skip(position).map(|b| b.len() as u64).sum();
        let rest = if self.ended { SizeHint::with_exact(0) } else { self.source.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(kept + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(kept + upper);
        }
        hint
    }
}

/// Set when the endpoint says `100 Continue`. The HTTP library calls back from where it likes, hence `Arc`.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    open: std::sync::atomic::AtomicBool,
    waker: futures::task::AtomicWaker,
}

impl Signal {
    pub(crate) fn set(&self) {
        self.open.store(true, std::sync::atomic::Ordering::Release);
        self.waker.wake();
    }
}

struct Gate {
    signal: Arc<Signal>,
    timer: Pin<Box<Sleep>>,
}

impl Gate {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.waker.register(cx.waker());
        if self.signal.open.load(std::sync::atomic::Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.timer.as_mut().poll(cx)
    }
}
