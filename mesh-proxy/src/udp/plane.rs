//! A worker's part: takes captured datagrams, finds or begins their session, and ends sessions that are idle.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_net::udp::{self, Captured, Datagram};
use node_rt::Drain;
use tokio::{
    net::UdpSocket,
    sync::{Notify, mpsc},
};

use super::{
    Udp,
    counts::{Drop as Why, End},
    frame::frame,
    session::{self, Route},
    table::{Full, Key, Table},
};
use crate::outbound::WorkerState;

/// How exactly the end of a session is kept.
const TICK: Duration = Duration::from_millis(250);
/// Most addresses at which a worker has a socket before it is needed.
const PLACES: usize = 512;
/// Datagrams of one socket that are taken before other tasks get their turn.
const AT_ONCE: usize = 64;
/// Pause after an error of the listener that is not about one datagram.
const PAUSE: Duration = Duration::from_millis(50);

/// A worker's UDP sessions.
pub(super) struct Plane {
    pub(super) worker: Rc<WorkerState>,
    pub(super) udp: Arc<Udp>,
    pub(super) drain: Drain,
    sessions: RefCell<Table<Handle>>,
    answering: RefCell<HashMap<SocketAddr, Weak<UdpSocket>>>,
    places: RefCell<BTreeMap<SocketAddr, Place>>,
    /// Bytes that wait in all queues.
    queued: Cell<usize>,
    /// The first session after a time without any.
    begun: Notify,
}

/// A session as its worker holds it.
struct Handle {
    queue: mpsc::Sender<Queued>,
    end: Rc<Cell<End>>,
    asked: Rc<Cell<u64>>,
}

/// A datagram on its way to the endpoint, with its length before it.
pub(super) struct Queued {
    pub(super) frame: Vec<u8>,
    plane: Rc<Plane>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.plane.queued.set(self.plane.queued.get().saturating_sub(self.frame.len()));
    }
}

/// A socket at a captured address. Datagrams of pods behind a bridge arrive here: where `bridge-nf-call-iptables` is on,
/// the kernel forgets on the bridge to which listener a rule has handed a packet, and only its address counts.
struct Place {
    socket: Rc<UdpSocket>,
    receiving: tokio::task::JoinHandle<()>,
}

impl Place {
    fn new(plane: &Rc<Plane>, at: SocketAddr, socket: UdpSocket) -> Self {
        let socket = Rc::new(socket);
        let receiving = tokio::task::spawn_local(Rc::clone(plane).receive_at(at, Rc::clone(&socket)));
        Self { socket, receiving }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

/// Serves captured datagrams until the drain says stop.
pub(crate) async fn serve(
    worker: Rc<WorkerState>,
    udp: Arc<Udp>,
    sockets: Vec<std::net::UdpSocket>,
    drain: Drain,
) {
    let plane = Rc::new(Plane {
        sessions: RefCell::new(Table::new(udp.config.sessions, udp.config.idle())),
        worker,
        udp,
        drain: drain.clone(),
        answering: RefCell::default(),
        places: RefCell::default(),
        queued: Cell::new(0),
        begun: Notify::new(),
    });
    for socket in sockets {
        match Captured::new(socket) {
            Ok(captured) => {
                tokio::task::spawn_local(Rc::clone(&plane).listen(captured));
            }
            Err(error) => tracing::error!(%error, "datagrams of services are not served"),
        }
    }
    tokio::select! {
        () = plane.sweep() => {}
        () = plane.clone().follow() => {}
        () = drain.stop_accepting() => {}
    }
    // What is asked now is for the process after us, and datagrams wait for nobody.
    plane.places.borrow_mut().clear();
    for handle in plane.sessions.borrow_mut().drain() {
        handle.end.set(End::Draining);
    }
}

impl Plane {
    async fn listen(self: Rc<Self>, mut captured: Captured) {
        let stop = self.drain.stop_accepting();
        tokio::pin!(stop);
        loop {
            let received = tokio::select! {
                received = captured.receive(|d| self.datagram(&d)) => received,
                () = &mut stop => return,
            };
            match received {
                Ok(0) => {}
                Ok(strange) => self.udp.counts.dropped(Why::NoDestination, strange),
                Err(error) => {
                    tracing::debug!(%error, "udp receive");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn datagram(self: &Rc<Self>, datagram: &Datagram<'_>) {
        if let Err(why) = self.accept(datagram, Instant::now()) {
            self.udp.counts.dropped(why, 1);
            tracing::debug!(client = %datagram.from, to = %datagram.to, reason = why.as_str(), "datagram dropped");
        }
    }

    fn accept(self: &Rc<Self>, datagram: &Datagram<'_>, now: Instant) -> Result<(), Why> {
        let key = Key { client: datagram.from, to: datagram.to };
        if let Some(handle) = self.sessions.borrow_mut().touch(&key, now) {
            handle.asked.set(handle.asked.get() + 1);
            return self.enqueue(&handle.queue, datagram.data);
        }
        let route = Route::find(&self.worker, &key)?;
        let (queue, waiting) = mpsc::channel(self.udp.config.queue);
        self.enqueue(&queue, datagram.data)?;
        let (end, asked) = (Rc::new(Cell::new(End::Idle)), Rc::new(Cell::new(1)));
        let handle = Handle { queue, end: Rc::clone(&end), asked: Rc::clone(&asked) };
        let (id, evicted) =
            self.sessions.borrow_mut().insert(key, handle, now).map_err(|Full| Why::TableFull)?;
        if let Some(evicted) = evicted {
            evicted.end.set(End::Evicted);
        }
        self.begun.notify_one();
        let session = session::Session { plane: Rc::clone(self), key, id, asked, end };
        tokio::task::spawn_local(session.run(route, waiting));
        Ok(())
    }

    fn enqueue(self: &Rc<Self>, queue: &mpsc::Sender<Queued>, data: &[u8]) -> Result<(), Why> {
        let Some(frame) = frame(data) else { return Err(Why::Memory) };
        let queued = self.queued.get() + frame.len();
        if queued > self.udp.config.queue_bytes {
            return Err(Why::Memory);
        }
        self.queued.set(queued);
        queue.try_send(Queued { frame, plane: Rc::clone(self) }).map_err(|_full_or_ending| Why::QueueFull)
    }

    /// A datagram went back to the client. `done`: nothing else is expected.
    pub(super) fn answered(&self, key: &Key, id: u64, done: bool) {
        let idle = if done { self.udp.config.answered() } else { self.udp.config.idle() };
        let mut sessions = self.sessions.borrow_mut();
        sessions.touch(key, Instant::now());
        sessions.set_idle(key, id, idle);
    }

    pub(super) fn ended(&self, key: &Key, id: u64) {
        self.sessions.borrow_mut().remove(key, id);
    }

    /// The socket that answers from an address; all sessions to that address share it.
    pub(super) fn answering(&self, from: SocketAddr) -> io::Result<Rc<UdpSocket>> {
        if let Some(place) = self.places.borrow().get(&from) {
            return Ok(Rc::clone(&place.socket));
        }
        let mut all = self.answering.borrow_mut();
        if let Some(socket) = all.get(&from).and_then(Weak::upgrade) {
            return Ok(socket);
        }
        let socket = Rc::new(udp::answering(from, self.worker.shared.config.mark)?);
        all.insert(from, Rc::downgrade(&socket));
        Ok(socket)
    }

    /// Keeps a socket at every address that is captured, up to a bound; others get one when they first answer.
    async fn follow(self: Rc<Self>) {
        let Some(mut updates) = self.udp.updates.clone() else { return std::future::pending().await };
        updates.mark_changed();
        let mut seen = None;
        while updates.changed().await.is_ok() {
            let vips = updates.borrow_and_update().vips;
            if seen.replace(vips) == Some(vips) {
                continue;
            }
            let tables = self.worker.tables();
            let wanted: BTreeSet<SocketAddr> = tables.udp_vips().map(SocketAddr::from).collect();
            let mut places = self.places.borrow_mut();
            places.retain(|at, _| wanted.contains(at));
            for at in wanted.iter().take(PLACES) {
                if places.contains_key(at) {
                    continue;
                }
                match udp::answering(*at, self.worker.shared.config.mark) {
                    Ok(socket) => _ = places.insert(*at, Place::new(&self, *at, socket)),
                    Err(error) => {
                        tracing::warn!(%error, %at, "another program is in the way of this service's datagrams");
                    }
                }
            }
        }
    }

    async fn receive_at(self: Rc<Self>, at: SocketAddr, socket: Rc<UdpSocket>) {
        loop {
            // An ICMP error about an earlier answer is no end.
            let _error = socket.readable().await;
            for _ in 0..AT_ONCE {
                let received = session::with_room(|room| {
                    let (length, from) = socket.try_recv_from(room)?;
                    let data = room.get(..length).unwrap_or_default();
                    self.datagram(&Datagram { from, to: at, data });
                    Ok::<_, io::Error>(())
                });
                if received.is_err() {
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends idle sessions. Sleeps while there are none.
    async fn sweep(&self) {
        loop {
            self.begun.notified().await;
            while self.sessions.borrow().len() > 0 {
                tokio::time::sleep(TICK).await;
                let now = Instant::now();
                // A dropped handle ends its session.
                while self.sessions.borrow_mut().expired(now).is_some() {}
            }
            self.answering.borrow_mut().retain(|_, socket| socket.strong_count() > 0);
        }
    }
}
