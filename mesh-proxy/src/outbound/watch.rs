//! The client connections of one worker: told to finish when the worker closes, and given up when a client begins a
//! request and does not end its head, or asks for nothing for very long.
//!
//! Looking at all of them now and then costs less than a timer for each, and a request pays nothing for it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use super::http::ScanState;

/// How long a client may ask for nothing, as in Envoy.
const IDLE: Duration = Duration::from_secs(3600);

/// One connection.
#[derive(Debug)]
pub(crate) struct Watch {
    scan: Arc<ScanState>,
    /// Requests that were begun.
    pub(crate) requests: Cell<u64>,
    /// Requests under way.
    pub(crate) active: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    given_up: Cell<bool>,
    seen: Cell<Seen>,
}

/// What the last look saw.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    requests: u64,
    partial: Option<u64>,
    idle: Duration,
}

impl Watch {
    pub(crate) fn new(scan: Arc<ScanState>) -> Rc<Self> {
        Rc::new(Self {
            scan,
            requests: Cell::new(0),
            active: Cell::new(0),
            waker: RefCell::default(),
            given_up: Cell::new(false),
            seen: Cell::default(),
        })
    }

    /// Whether the connection is to end now, whatever it does.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Compares with the last look, so long ago.
    fn look(&self, ago: Duration) {
        let before = self.seen.get();
        let requests = self.requests.get();
        let quiet = self.active.get() == 0 && requests == before.requests;
        let now = Seen {
            requests,
            partial: self.scan.partial_head(),
            idle: if quiet { before.idle + ago } else { Duration::ZERO },
        };
        self.seen.set(now);
        let same_head = now.partial.is_some() && now.partial == before.partial && quiet;
        if same_head || now.idle >= IDLE {
            self.given_up.set(true);
            self.wake();
        }
    }
}

/// All connections of a worker.
#[derive(Default)]
pub(crate) struct Watches {
    closed: Cell<bool>,
    all: RefCell<HashMap<usize, Rc<Watch>>>,
}

impl Watches {
    /// Whether connections are to finish.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Adds a connection; its task is woken when there is something to notice.
    pub(crate) fn add(&self, watch: &Rc<Watch>, waker: &Waker) {
        *watch.waker.borrow_mut() = Some(waker.clone());
        self.all.borrow_mut().insert(Rc::as_ptr(watch) as usize, Rc::clone(watch));
    }

    /// The connection is over.
    pub(crate) fn remove(&self, watch: &Rc<Watch>) {
        self.all.borrow_mut().remove(&(Rc::as_ptr(watch) as usize));
    }

    /// Looks at all connections; the last look was so long ago.
    pub(crate) fn look(&self, ago: Duration) {
        self.all.borrow().values().for_each(|w| w.look(ago));
    }

    /// Tells all connections to finish.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.all.borrow().values().for_each(|w| w.wake());
    }
}
