//! Copies of requests: sent and forgotten, few at a time, never in the way of the request itself.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use mesh_core::{Cluster, WorkloadEntry};

use super::{
    super::{cluster::Choice, endpoint::Request, external::Asked, l4, worker::WorkerState},
    body::{Replay, RequestBody},
    client::{Begins, Upstreams},
};
use crate::telemetry::local::Held;

/// Most copies that one worker has under way.
const AT_ONCE: u32 = 256;
/// After which time a copy is given up.
const LIMIT: Duration = Duration::from_secs(15);

/// Copies that wait until the body of their request has been seen whole.
pub(crate) struct Copies {
    worker: Rc<WorkerState>,
    clusters: Vec<Arc<Cluster>>,
    source: Option<Rc<Held<WorkloadEntry>>>,
    head: http::request::Parts,
    h2: bool,
    /// Secret with the certificate that the gateway shows; empty = none.
    own: Box<str>,
}

impl Copies {
    /// Remembers the head of a request for these clusters; none if there are no clusters.
    pub(crate) fn of<B>(
        worker: &Rc<WorkerState>,
        clusters: Vec<Arc<Cluster>>,
        source: Option<&Rc<Held<WorkloadEntry>>>,
        request: &http::Request<B>,
        (h2, own): (bool, &str),
    ) -> Option<Self> {
        if clusters.is_empty() {
            return None;
        }
        let mut head = http::Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        Some(Self {
            worker: Rc::clone(worker),
            clusters,
            source: source.cloned(),
            head: head.into_parts().0,
            h2,
            own: own.into(),
        })
    }

    /// Sends the copies. `body`: what was kept of the request's body; none = it had none.
    pub(crate) fn send(self, body: Option<&Rc<RefCell<Replay>>>) {
        let bytes = match body {
            None => Some(Bytes::new()),
            Some(replay) => replay.borrow().whole().map(|parts| {
                let mut all = BytesMut::new();
                parts.iter().for_each(|p| all.extend_from_slice(p));
                all.freeze()
            }),
        };
        let skipped = &self.worker.shared.telemetry.edges.mirrors_skipped;
        let Some(bytes) = bytes else {
            skipped.inc_by(self.clusters.len() as u64);
            return;
        };
        for cluster in self.clusters {
            let Some(place) = Place::take(&self.worker) else {
                skipped.inc();
                continue;
            };
            let body = RequestBody::bytes(bytes.clone(), Rc::default());
            let request = http::Request::from_parts(self.head.clone(), body);
            let (worker, source) = (Rc::clone(&self.worker), self.source.clone());
            let one = send(worker, cluster, source, request, (self.h2, self.own.clone()));
            tokio::task::spawn_local(async move {
                let _given_up = tokio::time::timeout(LIMIT, one).await;
                drop(place);
            });
        }
    }
}

async fn send(
    worker: Rc<WorkerState>,
    cluster: Arc<Cluster>,
    source: Option<Rc<Held<WorkloadEntry>>>,
    request: Request,
    (h2, own): (bool, Box<str>),
) {
    let host = super::view::authority(request.uri(), request.headers()).to_owned();
    let Ok(state) = l4::resolve(&worker, &cluster, Asked { addr: None, host: &host }).await else { return };
    let begins = Begins::of(&state, None, None, (&host, &own));
    let now = Instant::now();
    let mut upstreams = Upstreams {
        worker,
        state: Rc::clone(&state),
        source,
        pinned: None,
        h2,
        tried: Vec::new(),
        last: None,
        broke: None,
        now,
        choice: Choice::default(),
        begins,
        beside: None,
    };
    let Ok((response, lease)) = upstreams.call(request).await else { return };
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    lease.release(&state.cluster.policy.pool);
}

/// One of the places for copies under way.
struct Place(Rc<WorkerState>);

impl Place {
    fn take(worker: &Rc<WorkerState>) -> Option<Self> {
        let n = worker.mirrors.get();
        (n < AT_ONCE).then(|| {
            worker.mirrors.set(n + 1);
            Self(Rc::clone(worker))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get().saturating_sub(1));
    }
}
