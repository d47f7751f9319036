//! One writer among replicas, by a `coordination.k8s.io` Lease. Only what changes is believed: whoever holds the lease
//! is taken for gone when nothing was renewed for a whole period by *our* clock, so that clocks need not agree.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// A holder that renews nothing for this long is gone.
const PERIOD: Duration = Duration::from_secs(9);
/// How often to renew, and to look.
pub(crate) const STEP: Duration = Duration::from_secs(2);
/// A holder that could not renew for this long stops writing, before anybody else begins.
const VALID: Duration = Duration::from_secs(6);
const NAME: &str = "selvage-status-writer";

/// Our side of the lease.
pub(crate) struct Seat {
    api: Api<Lease>,
    name: &'static str,
    /// With what the lease is collected.
    owner: Option<OwnerReference>,
    me: String,
    held: Option<Instant>,
    watch: Watch,
}

/// What was seen of another holder, and when it changed last.
#[derive(Debug, Default)]
struct Watch(Option<(String, Instant)>);

impl Watch {
    /// Whether the lease of `holder`, as it looks now, can be taken.
    fn may_take(&mut self, holder: &str, sight: &str, now: Instant) -> bool {
        if holder.is_empty() {
            return true;
        }
        let seen = format!("{holder} {sight}");
        match &self.0 {
            Some((before, since)) if *before == seen => now.saturating_duration_since(*since) >= PERIOD,
            _ => {
                self.0 = Some((seen, now));
                false
            }
        }
    }
}

impl Seat {
    pub(super) fn new(client: Client, namespace: &str, me: String) -> Self {
        Self::named(client, namespace, NAME, me)
    }

    /// Our side of another lease.
    pub(crate) fn named(client: Client, namespace: &str, name: &'static str, me: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name,
            owner: None,
            me,
            held: None,
            watch: Watch::default(),
        }
    }

    /// A lease that is collected with an object of its namespace.
    pub(crate) fn owned_by(self, owner: Option<OwnerReference>) -> Self {
        Self { owner, ..self }
    }

    /// Whether this replica may write now.
    pub(crate) fn is_ours(&self) -> bool {
        self.held.is_some_and(|at| at.elapsed() < VALID)
    }

    /// Takes or renews the lease, if it can be had.
    pub(crate) async fn step(&mut self) -> Result<(), kube::Error> {
        let started = Instant::now();
        let Some(lease) = self.api.get_opt(self.name).await? else {
            let metadata = ObjectMeta {
                name: Some(self.name.to_owned()),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(self.spec(0)) };
            return self.won(self.api.create(&PostParams::default(), &lease).await, started);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let mut turns = spec.lease_transitions.unwrap_or_default();
        if holder != self.me {
            let sight = format!("{:?}", spec.renew_time);
            if !self.watch.may_take(&holder, &sight, Instant::now()) {
                self.lost();
                return Ok(());
            }
            turns = turns.saturating_add(1);
        }
        // The version makes sure that of several who try, one succeeds.
        let taken = Lease { metadata: lease.metadata, spec: Some(self.spec(turns)) };
        self.won(self.api.replace(self.name, &PostParams::default(), &taken).await, started)
    }

    fn won(&mut self, result: Result<Lease, kube::Error>, started: Instant) -> Result<(), kube::Error> {
        match result {
            Ok(_) => {
                self.held = Some(started);
                self.watch = Watch::default();
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.lost();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the lease back, so that another replica need not wait for it to run out.
    pub(crate) async fn release(&mut self) {
        if !self.is_ours() {
            return;
        }
        self.lost();
        let Ok(Some(lease)) = self.api.get_opt(self.name).await else { return };
        let turns = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or_default();
        if lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref()) == Some(&self.me) {
            let spec = LeaseSpec { holder_identity: None, ..self.spec(turns) };
            let free = Lease { metadata: lease.metadata, spec: Some(spec) };
            // Whoever comes next waits a few seconds if this fails.
            self.api.replace(self.name, &PostParams::default(), &free).await.ok();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_holder_that_renews_nothing_is_gone() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(watch.may_take("", "", at(0)), "nobody has it");
        assert!(!watch.may_take("a", "1", at(0)), "seen for the first time");
        assert!(!watch.may_take("a", "1", at(8)));
        assert!(!watch.may_take("a", "2", at(9)), "renewed");
        assert!(!watch.may_take("b", "2", at(17)), "another one has it");
        assert!(!watch.may_take("b", "2", at(25)));
        assert!(watch.may_take("b", "2", at(26)));
    }
}
