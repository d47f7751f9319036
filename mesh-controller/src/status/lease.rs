//! One writer among replicas, by a `coordination.k8s.io` Lease. Only what changes is believed: whoever holds the lease
//! is taken for gone when nothing was renewed for a whole period by *our* clock, so that clocks need not agree.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// A holder that renews nothing for this long is gone.
const PERIOD: Duration = Duration::from_secs(15);
/// How often to renew, and to look.
pub(super) const STEP: Duration = Duration::from_secs(4);
/// A holder that could not renew for this long stops writing, before anybody else begins.
const VALID: Duration = Duration::from_secs(10);
const NAME: &str = "selvage-status-writer";

/// Our side of the lease.
pub(super) struct Seat {
    api: Api<Lease>,
    me: String,
    held: Option<Instant>,
    /// What was seen of another holder, and when it changed last.
    seen: Option<(String, Instant)>,
}

impl Seat {
    pub(super) fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, held: None, seen: None }
    }

    /// Whether this replica may write now.
    pub(super) fn is_ours(&self) -> bool {
        self.held.is_some_and(|at| at.elapsed() < VALID)
    }

    /// Takes or renews the lease, if it can be had.
    pub(super) async fn step(&mut self) -> Result<(), kube::Error> {
        let started = Instant::now();
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(0)) };
            return self.won(self.api.create(&PostParams::default(), &lease).await, started);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let mut turns = spec.lease_transitions.unwrap_or_default();
        if holder != self.me {
            let now = format!("{holder} {:?}", spec.renew_time);
            match &self.seen {
                Some((before, since)) if *before == now && since.elapsed() >= PERIOD => {}
                Some((before, _)) if *before == now && !holder.is_empty() => return Ok(self.lost()),
                _ if holder.is_empty() => {}
                _ => {
                    self.seen = Some((now, Instant::now()));
                    return Ok(self.lost());
                }
            }
            turns = turns.saturating_add(1);
        }
        // The version makes sure that of several who try, one succeeds.
        let taken = Lease { metadata: lease.metadata, spec: Some(self.spec(turns)) };
        self.won(self.api.replace(NAME, &PostParams::default(), &taken).await, started)
    }

    fn won(&mut self, result: Result<Lease, kube::Error>, started: Instant) -> Result<(), kube::Error> {
        match result {
            Ok(_) => {
                self.held = Some(started);
                self.seen = None;
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(self.lost()),
            Err(error) => Err(error),
        }
    }

    fn lost(&mut self) {
        self.held = None;
    }

    fn spec(&self, turns: i32) -> LeaseSpec {
        let now = Timestamp::now();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(PERIOD.as_secs()).ok(),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(turns),
            ..LeaseSpec::default()
        }
    }
}
