//! Writes statuses, one at a time, only those that are different, and only from the replica that holds the lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use node_rt::Tasks;
use serde_json::{Value, json};

use super::{
    conditions::{Known, without_times},
    desk::{Desk, GATEWAY_API, Key},
    lease::{STEP, Seat},
    metrics::{Gauges, StatusMetrics},
};

/// At most this often, so that ten thousand rules after a start do not crowd out the rest of the cluster.
const PAUSE: Duration = Duration::from_millis(25);
/// After a failure, before the same object is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Where statuses go.
pub(crate) struct Writing {
    /// The cluster.
    pub(crate) client: Client,
    /// Namespace of the lease.
    pub(crate) namespace: String,
    /// With what the lease is collected; of the same namespace.
    pub(crate) owner: Option<OwnerReference>,
    /// This replica.
    pub(crate) identity: String,
}

/// Follows the desk until the drain; without a cluster it counts only.
pub(crate) fn start(desk: Desk, metrics: StatusMetrics, writing: Option<Writing>, tasks: &Tasks) {
    let drain = tasks.drain().clone();
    tasks.spawn("status", async move {
        let cluster = writing.map(|w| Cluster {
            seat: Seat::new(w.client.clone(), &w.namespace, w.identity).owned_by(w.owner),
            client: w.client,
            complaint: String::new(),
        });
        let mut writer = Writer {
            desk,
            writes: metrics.writes.clone(),
            gauges: Gauges::new(metrics),
            objects: BTreeMap::new(),
            dirty: BTreeSet::new(),
            cluster,
        };
        tokio::select! {
            () = writer.run() => {}
            () = drain.stop_accepting() => {}
        }
        if let Some(cluster) = &mut writer.cluster {
            tokio::time::timeout(STEP, cluster.seat.release()).await.ok();
        }
    });
}

struct Entry {
    api_version: String,
    known: Known,
    /// A whole status from the compiler, for Gateway API.
    whole: Option<Value>,
}

struct Cluster {
    client: Client,
    seat: Seat,
    /// What was said last of the lease.
    complaint: String,
}

struct Writer {
    desk: Desk,
    writes: prometheus::IntCounterVec,
    gauges: Gauges,
    objects: BTreeMap<Key, Entry>,
    dirty: BTreeSet<Key>,
    cluster: Option<Cluster>,
}

impl Writer {
    async fn run(&mut self) {
        let news = self.desk.news.clone();
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry_at = tokio::time::Instant::now();
        loop {
            let writable = self.is_writer() && !self.dirty.is_empty();
            tokio::select! {
                biased;
                _ = step.tick() => self.renew().await,
                () = news.notified() => self.read(),
                () = tokio::time::sleep_until(retry_at), if writable => {
                    let pause = if self.write_one().await { PAUSE } else { RETRY };
                    retry_at = tokio::time::Instant::now() + pause;
                }
            }
        }
    }

    fn is_writer(&self) -> bool {
        self.cluster.as_ref().is_some_and(|c| c.seat.is_ours())
    }

    async fn renew(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        let before = cluster.seat.is_ours();
        let complaint = match tokio::time::timeout(STEP, cluster.seat.step()).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => crate::chain(&error),
            Err(_late) => "no answer".to_owned(),
        };
        if !complaint.is_empty() && complaint != cluster.complaint {
            tracing::warn!(error = complaint, "no lease for writing statuses");
        }
        cluster.complaint = complaint;
        let now = cluster.seat.is_ours();
        if now != before {
            tracing::info!(writer = now, "statuses");
            // Whoever wrote before may have left off anywhere.
            self.dirty.extend(self.objects.keys().cloned());
        }
    }

    fn read(&mut self) {
        let inbox = self.desk.take();
        for (key, object) in inbox.objects {
            let old = self.objects.remove(&key);
            let new = object.map(|object| {
                let mut known = Known::of(&key.kind, &object);
                known.findings = old.as_ref().map(|o| o.known.findings.clone()).unwrap_or_default();
                let api_version =
                    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
                Entry { api_version, known, whole: old.as_ref().and_then(|o| o.whole.clone()) }
            });
            self.gauges.change(&key, old.as_ref().map(|o| &o.known), new.as_ref().map(|n| &n.known));
            match new {
                Some(new) => {
                    self.objects.insert(key.clone(), new);
                    self.dirty.insert(key);
                }
                None => {
                    self.gauges.errors(&key, 0);
                    self.dirty.remove(&key);
                }
            }
        }
        for (key, findings) in inbox.findings {
            let Some(entry) = self.objects.get_mut(&key) else { continue };
            entry.known.findings = findings;
            self.gauges.errors(&key, entry.known.errors().count());
            self.dirty.insert(key);
        }
        for (key, status) in inbox.statuses {
            let Some(entry) = self.objects.get_mut(&key) else { continue };
            entry.whole = Some(status);
            self.dirty.insert(key);
        }
        self.dirty.retain(|key| self.objects.get(key).is_some_and(|e| e.patch(key, "").is_some()));
    }

    /// Writes one status; `false` when it could not and should be tried again later.
    async fn write_one(&mut self) -> bool {
        let Some(key) = self.dirty.pop_first() else { return true };
        let Some(cluster) = &self.cluster else { return true };
        let Some(entry) = self.objects.get_mut(&key) else { return true };
        let now = now();
        let Some(patch) = entry.patch(&key, &now) else { return true };
        let api = api(&cluster.client, &key, &entry.api_version);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                self.writes.with_label_values(&["ok"]).inc();
                entry.take(patch);
                true
            }
            // Deleted meanwhile, or without a status: nothing to be done.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.writes.with_label_values(&["gone"]).inc();
                true
            }
            Err(error) => {
                self.writes.with_label_values(&["failed"]).inc();
                tracing::warn!(object = %key, error = crate::chain(&error), "write status");
                self.dirty.insert(key);
                false
            }
        }
    }
}

impl Entry {
    fn patch(&self, key: &Key, now: &str) -> Option<Value> {
        if key.group != GATEWAY_API {
            return self.known.patch(now);
        }
        let whole = self.whole.as_ref()?;
        (without_times(whole) != without_times(&self.known.current)).then(|| json!({ "status": whole }))
    }

    /// The cluster has it now.
    fn take(&mut self, patch: Value) {
        let Some(status) = patch.get("status").and_then(Value::as_object) else { return };
        if !self.known.current.is_object() {
            self.known.current = json!({});
        }
        if let Some(current) = self.known.current.as_object_mut() {
            current.extend(status.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
}

/// To the second, as Kubernetes writes times.
pub(crate) fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

fn api(client: &Client, key: &Key, api_version: &str) -> Api<DynamicObject> {
    let version = api_version.split_once('/').map_or(api_version, |(_, version)| version);
    let kind = GroupVersionKind::gvk(&key.group, version, &key.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural(&key.kind));
    match key.namespace.as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match (kind.strip_suffix('y'), kind.ends_with('s')) {
        // `gateway` keeps its y after the vowel.
        (Some(stem), _) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        (_, true) => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals() {
        for (kind, wanted) in [
            ("VirtualService", "virtualservices"),
            ("ServiceEntry", "serviceentries"),
            ("Telemetry", "telemetries"),
            ("AuthorizationPolicy", "authorizationpolicies"),
            ("Gateway", "gateways"),
            ("GatewayClass", "gatewayclasses"),
            ("HTTPRoute", "httproutes"),
        ] {
            assert_eq!(plural(kind), wanted);
        }
        assert!(now().ends_with('Z'));
    }
}
