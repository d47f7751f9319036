//! The path of one session: where to, connect, pass datagrams on in both directions, say how it went.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use mesh_api::model::tunnel_open::Kind;
use mesh_core::{Client, Cluster, EndpointEntry, Tables, balance::EndpointId};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    net::UdpSocket,
    sync::mpsc,
};

use super::{
    counts::{Drop as Why, End},
    frame::{Frames, HEADER},
    plane::{Plane, Queued},
    table::Key,
};
use crate::{
    outbound::{ClusterState, Early, Purpose, Stream, WorkerState, cluster_name},
    telemetry::{Flags, access_log::Entry},
};

/// Endpoints that one session tries.
const TRIES: usize = 3;
/// DNS: a question and its answer.
const DNS: u16 = 53;

thread_local! {
    /// Where datagrams arrive from endpoints: one place for all sessions of a worker.
    static ARRIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The largest datagram and one byte more, by which a longer one would be noticed.
pub(super) const ROOM: usize = 1 << 16;

/// Gives `f` the place where datagrams arrive.
pub(super) fn with_room<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    ARRIVED.with_borrow_mut(|room| {
        if room.is_empty() {
            *room = vec![0; ROOM];
        }
        f(room)
    })
}

/// Where a session goes.
pub(super) struct Route {
    cluster: Arc<Cluster>,
    /// The only endpoint that may be used.
    pinned: Option<Arc<EndpointEntry>>,
}

impl Route {
    /// What the tables say.
    pub(super) fn find(worker: &Rc<WorkerState>, key: &Key) -> Result<Self, Why> {
        let tables = worker.tables();
        let caller = caller(worker, &tables, key.client);
        if let Some(vip) = tables.udp_by_vip(key.to.ip(), key.to.port()) {
            let cluster = vip.service.udp_cluster(&caller, vip.port.number).ok_or(Why::NoService)?;
            return Ok(Self { cluster: Arc::clone(cluster), pinned: None });
        }
        let pod = tables.udp_pod(key.to.ip(), key.to.port()).ok_or(Why::NoService)?;
        let cluster = pod.service.udp_cluster(&caller, pod.port.number).ok_or(Why::NoService)?;
        Ok(Self { cluster: Arc::clone(cluster), pinned: Some(Arc::clone(pod.endpoint)) })
    }
}

/// The caller as rules look at it.
fn caller<'t>(worker: &'t WorkerState, tables: &'t Tables, client: SocketAddr) -> Client<'t> {
    let source = tables.workload(client.ip());
    source.map_or_else(|| Client::in_namespace(&worker.shared.config.default_namespace), |w| Client::of(w))
}

/// One session.
pub(super) struct Session {
    pub(super) plane: Rc<Plane>,
    pub(super) key: Key,
    pub(super) id: u64,
    /// Datagrams of the client.
    pub(super) asked: Rc<Cell<u64>>,
    /// Why the worker ended it, if it did.
    pub(super) end: Rc<Cell<End>>,
}

/// What leads to the endpoint.
enum Upstream {
    Direct(UdpSocket),
    Tunnel(Box<dyn Stream>),
}

#[derive(Default)]
struct Moved {
    sent: Cell<u64>,
    received: Cell<u64>,
    answers: Cell<u64>,
}

impl Session {
    pub(super) async fn run(self, route: Route, mut queue: mpsc::Receiver<Queued>) {
        let side = &self.plane.udp.counts.outbound;
        side.opened.inc();
        side.active.inc();
        let log = Log::new(&self, &route.cluster);
        let moved = Moved::default();

        // A session begins with a datagram: it is there.
        let first = queue.recv().await;
        let early =
            first.as_ref().map(|f| Early { bytes: Bytes::copy_from_slice(&f.frame), ..Early::default() });
        let (end, upstream, details) = match self.connect(&route, early.as_ref()).await {
            Ok((state, index, upstream)) => {
                let _load = state.endpoints[index].busy();
                let (addr, id) = (state.endpoints[index].addr, state.endpoints[index].id);
                let ahead = early.as_ref().map_or(0, |e| e.sent.get());
                let end = self.pass(upstream, (first, ahead), &mut queue, &moved).await;
                self.lost(&mut queue, Why::NotReached);
                if end == End::Closed && moved.answers.get() == 0 {
                    // It never said anything: others may do better.
                    state.connect_failed(id);
                }
                (end, Some(addr), "")
            }
            Err(why) => {
                self.plane.udp.counts.dropped(why, usize::from(first.is_some()));
                self.lost(&mut queue, why);
                (End::Failed, None, why.as_str())
            }
        };

        self.plane.ended(&self.key, self.id);
        side.active.dec();
        side.closed(end);
        log.write(&self, &moved, upstream, (end, details));
    }

    /// Counts what will not be sent any more.
    fn lost(&self, queue: &mut mpsc::Receiver<Queued>, why: Why) {
        queue.close();
        let mut lost = 0;
        while queue.try_recv().is_ok() {
            lost += 1;
        }
        if lost > 0 {
            self.plane.udp.counts.dropped(why, lost);
        }
    }

    /// A way to one of the endpoints.
    async fn connect(
        &self,
        route: &Route,
        early: Option<&Early>,
    ) -> Result<(Rc<ClusterState>, usize, Upstream), Why> {
        let worker = &self.plane.worker;
        let state = worker.cluster(&route.cluster);
        let mut tried = Vec::new();
        let mut why = Why::NoEndpoint;
        for _ in 0..TRIES {
            let picked = match &route.pinned {
                Some(pod) => state.cluster.endpoints.iter().position(|e| Arc::ptr_eq(&e.endpoint, pod)),
                None => self.pick(&state, &tried),
            };
            let Some(index) = picked else { break };
            let endpoint = &state.endpoints[index];
            match self.reach(&route.cluster, (endpoint.addr, endpoint.node.as_ref()), early).await {
                Ok(upstream) => {
                    state.connected(endpoint.id);
                    return Ok((state, index, upstream));
                }
                Err(error) => {
                    tracing::debug!(%error, to = %self.key.to, endpoint = %endpoint.addr, "no way to the endpoint");
                    state.connect_failed(endpoint.id);
                    tried.push(endpoint.id);
                    why = Why::NotReached;
                }
            }
            if route.pinned.is_some() {
                break;
            }
        }
        Err(why)
    }

    fn pick(&self, state: &ClusterState, tried: &Vec<EndpointId>) -> Option<usize> {
        state.pick(&self.plane.worker, tried, false)
    }

    async fn reach(
        &self,
        cluster: &Cluster,
        (addr, node): (SocketAddr, Option<&Arc<str>>),
        early: Option<&Early>,
    ) -> Result<Upstream, Box<dyn std::error::Error>> {
        let worker = &self.plane.worker;
        let owner = match node {
            Some(owner) if **owner != *worker.shared.node => owner,
            _ => {
                return Ok(Upstream::Direct(
                    mesh_net::udp::connected(addr, worker.shared.config.mark).await?,
                ));
            }
        };
        let tables = worker.tables();
        let source = tables.workload(self.key.client.ip()).cloned();
        drop(tables);
        let key = &cluster.key;
        let purpose = Purpose {
            source: source.as_deref(),
            host: &key.host,
            subset: &key.subset,
            kind: Kind::Udp,
            early,
        };
        let opening = worker.connector.stream(owner, addr, purpose);
        let opened = tokio::time::timeout(cluster.policy.connect_timeout(), opening).await??;
        Ok(Upstream::Tunnel(opened))
    }

    /// Passes datagrams on until one side ends.
    async fn pass(
        &self,
        upstream: Upstream,
        first: (Option<Queued>, usize),
        queue: &mut mpsc::Receiver<Queued>,
        moved: &Moved,
    ) -> End {
        let answering = match self.plane.answering(self.key.to) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, from = %self.key.to, "no answers can be sent from this address");
                self.plane.udp.counts.dropped(Why::NotAnswered, 1);
                return End::Failed;
            }
        };
        let ended = match upstream {
            Upstream::Direct(socket) => tokio::select! {
                ended = self.send_direct(first.0, queue, &socket, moved) => ended,
                ended = self.answer_direct(&socket, &answering, moved) => ended,
            },
            Upstream::Tunnel(stream) => {
                let (read, mut write) = tokio::io::split(stream);
                let ended = tokio::select! {
                    ended = self.send_framed(first, queue, &mut write, moved) => ended,
                    ended = self.answer_framed(Frames::new(read), &answering, moved) => ended,
                };
                // The owner is told; if it does not listen it will notice by itself.
                let _gone = write.shutdown().await;
                ended
            }
        };
        match ended {
            Ok(Ended::ByUs) => self.end.get(),
            Ok(Ended::ByThem) => End::Closed,
            Err(error) => {
                tracing::debug!(%error, to = %self.key.to, "session ended");
                End::Closed
            }
        }
    }

    async fn send_direct(
        &self,
        first: Option<Queued>,
        queue: &mut mpsc::Receiver<Queued>,
        socket: &UdpSocket,
        moved: &Moved,
    ) -> io::Result<Ended> {
        let mut next = first;
        while let Some(queued) = next {
            socket.send(&queued.frame[HEADER..]).await?;
            self.sent(&queued, moved);
            next = queue.recv().await;
        }
        Ok(Ended::ByUs)
    }

    /// `first` may be on its way in part: so many of its bytes travelled with the question for the stream.
    async fn send_framed(
        &self,
        (first, mut ahead): (Option<Queued>, usize),
        queue: &mut mpsc::Receiver<Queued>,
        stream: &mut (impl AsyncWrite + Unpin),
        moved: &Moved,
    ) -> io::Result<Ended> {
        let mut next = first;
        while let Some(queued) = next {
            let rest = queued.frame.get(ahead..).unwrap_or_default();
            if !rest.is_empty() {
                stream.write_all(rest).await?;
                if queue.is_empty() {
                    stream.flush().await?;
                }
            }
            ahead = 0;
            self.sent(&queued, moved);
            next = queue.recv().await;
        }
        Ok(Ended::ByUs)
    }

    fn sent(&self, queued: &Queued, moved: &Moved) {
        let bytes = queued.frame.len() - HEADER;
        self.plane.udp.counts.outbound.sent.add(bytes);
        moved.sent.set(moved.sent.get() + bytes as u64);
    }

    async fn answer_direct(&self, socket: &UdpSocket, to: &UdpSocket, moved: &Moved) -> io::Result<Ended> {
        loop {
            socket.readable().await?;
            let sent = with_room(|room| match socket.try_recv(room) {
                Ok(length) => Ok(Some((length, to.try_send_to(&room[..length], self.key.client)))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(e) => Err(e),
            })?;
            if let Some((length, sent)) = sent {
                self.answered(length, sent, moved);
            }
        }
    }

    async fn answer_framed<R: tokio::io::AsyncRead + Unpin>(
        &self,
        mut frames: Frames<R>,
        to: &UdpSocket,
        moved: &Moved,
    ) -> io::Result<Ended> {
        while let Some(datagram) = frames.next().await? {
            let sent = to.send_to(&datagram, self.key.client).await;
            self.answered(datagram.len(), sent, moved);
        }
        Ok(Ended::ByThem)
    }

    fn answered(&self, length: usize, sent: io::Result<usize>, moved: &Moved) {
        moved.answers.set(moved.answers.get() + 1);
        let done = self.key.to.port() == DNS && moved.answers.get() >= self.asked.get();
        self.plane.answered(&self.key, self.id, done);
        match sent {
            Ok(_) => {
                self.plane.udp.counts.outbound.received.add(length);
                moved.received.set(moved.received.get() + length as u64);
            }
            Err(error) => {
                tracing::debug!(%error, client = %self.key.client, "answer not sent");
                self.plane.udp.counts.dropped(Why::NotAnswered, 1);
            }
        }
    }
}

enum Ended {
    ByUs,
    ByThem,
}

/// One line of the access log.
struct Log {
    began: Instant,
    entry: Option<Box<Entry>>,
}

impl Log {
    fn new(session: &Session, cluster: &Cluster) -> Self {
        let entry = session.plane.worker.shared.access_log.enabled().then(|| {
            Box::new(Entry {
                start: Some(SystemTime::now()),
                protocol: "UDP",
                destination: Some(session.key.to),
                client: Some(session.key.client),
                cluster: cluster_name(cluster),
                ..Entry::default()
            })
        });
        Self { began: Instant::now(), entry }
    }

    fn write(self, session: &Session, moved: &Moved, upstream: Option<SocketAddr>, how: (End, &'static str)) {
        let Some(mut entry) = self.entry else { return };
        let (end, details) = how;
        let flags = match end {
            End::Failed => Flags::CONNECT_FAILURE,
            End::Idle | End::Evicted | End::Closed | End::Draining => Flags::NONE,
        };
        let worker = &session.plane.worker;
        if !worker.shared.access_log.wants(worker.roll(), 0, flags) {
            return;
        }
        entry.flags = flags;
        entry.details = details;
        entry.received = moved.sent.get();
        entry.sent = moved.received.get();
        entry.duration = self.began.elapsed();
        entry.upstream = upstream;
        let source = session.plane.worker.tables().workload(session.key.client.ip().to_canonical()).cloned();
        if worker.telemetry.logs(source.as_deref(), &worker.shared.access_log, &entry) {
            worker.shared.access_log.write(&entry);
        }
    }
}
