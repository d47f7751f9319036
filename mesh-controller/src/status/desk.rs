//! What the engine leaves for the writer. Bounded by the number of objects that exist: a newer state of an object
//! replaces the older one that was not looked at yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_index::{Finding, ObjectKey};
use serde_json::Value;
use tokio::sync::Notify;

/// Groups whose objects have a status that is ours to write.
const GROUPS: [&str; 5] =
    ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io", GATEWAY_API];
/// Its statuses come whole from the compiler.
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl From<&ObjectKey> for Key {
    fn from(key: &ObjectKey) -> Self {
        Self {
            group: key.kind.group().to_owned(),
            kind: key.kind.as_str().to_owned(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }
    }
}

impl From<istio_compat::gateway_api::ObjectRef> for Key {
    fn from(id: istio_compat::gateway_api::ObjectRef) -> Self {
        Self {
            group: id.kind.group().to_owned(),
            kind: id.kind.as_str().to_owned(),
            namespace: id.namespace,
            name: id.name,
        }
    }
}

/// What is new since the writer looked last.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Objects as they are now; `None` for one that is gone.
    pub(super) objects: BTreeMap<Key, Option<Value>>,
    /// Findings of objects for which they have changed.
    pub(super) findings: BTreeMap<Key, Vec<Finding>>,
    /// Statuses of Gateway API that have changed.
    pub(super) statuses: BTreeMap<Key, Value>,
}

#[derive(Debug, Default)]
struct State {
    inbox: Inbox,
    /// Objects that have findings, as last told.
    known: BTreeMap<Key, Vec<Finding>>,
}

/// Between engine and writer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    state: Arc<Mutex<State>>,
    pub(super) news: Arc<Notify>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether objects of this kind have a status that is ours.
    pub(crate) fn wants(key: &ObjectKey) -> bool {
        GROUPS.contains(&key.kind.group())
    }

    /// An object is new or changed.
    pub(crate) fn applied(&self, key: &ObjectKey, object: Value) {
        self.lock().inbox.objects.insert(key.into(), Some(object));
    }

    /// An object is gone.
    pub(crate) fn deleted(&self, key: &ObjectKey) {
        if Self::wants(key) {
            self.lock().inbox.objects.insert(key.into(), None);
        }
    }

    /// A round of the engine is over; these are all findings there are.
    pub(crate) fn round<'a>(&self, findings: impl Iterator<Item = &'a Finding>) {
        let mut now: BTreeMap<Key, Vec<Finding>> = BTreeMap::new();
        for finding in findings.filter(|f| Self::wants(&f.object)) {
            now.entry((&finding.object).into()).or_default().push(finding.clone());
        }
        let mut state = self.lock();
        let keys: BTreeSet<Key> = now.keys().chain(state.known.keys()).cloned().collect();
        for key in keys.into_iter().filter(|k| now.get(k) != state.known.get(k)).collect::<Vec<_>>() {
            let list = now.get(&key).cloned().unwrap_or_default();
            state.inbox.findings.insert(key, list);
        }
        state.known = now;
        drop(state);
        self.news.notify_one();
    }

    /// The compiler's statuses of Gateway API objects.
    pub(crate) fn statuses(&self, statuses: impl Iterator<Item = (Key, Value)>) {
        self.lock().inbox.statuses.extend(statuses);
        self.news.notify_one();
    }

    pub(super) fn take(&self) -> Inbox {
        std::mem::take(&mut self.lock().inbox)
    }
}

#[cfg(test)]
mod tests {
    use mesh_index::{Kind, Level};

    use super::*;

    #[test]
    fn only_what_changed_is_handed_over_and_the_latest_counts() {
        let desk = Desk::default();
        let key = ObjectKey::new(Kind::VirtualService, "shop", "a");
        let finding = |message: &str| Finding {
            object: key.clone(),
            level: Level::Error,
            path: "spec".to_owned(),
            message: message.to_owned(),
        };
        desk.applied(&key, 1.into());
        desk.applied(&key, 2.into());
        desk.round([finding("x")].iter());
        let inbox = desk.take();
        assert_eq!(inbox.objects.values().flatten().collect::<Vec<_>>(), [&Value::from(2)]);
        assert_eq!(inbox.findings[&(&key).into()].len(), 1);
        desk.round([finding("x")].iter());
        assert!(desk.take().findings.is_empty(), "nothing new");
        desk.round([].iter());
        assert_eq!(desk.take().findings[&(&key).into()], [], "they are gone");
        let pod = ObjectKey::new(Kind::Pod, "shop", "a");
        desk.deleted(&pod);
        assert!(desk.take().objects.is_empty());
    }
}
