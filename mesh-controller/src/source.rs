//! Where objects come from. Sources are interchangeable: each turns what it watches into the same operations.

pub mod dir;
mod documents;
pub mod kube;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_index::{Kind, ObjectKey, Registration};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A change for the index. Batches arrive whole: nothing is compiled in the middle of one.
#[derive(Debug)]
pub(crate) enum Op {
    /// A new or changed object.
    Apply(Value),
    /// A deleted object.
    Delete(ObjectKey),
    /// After a relist: objects of the kind that are not listed are gone.
    Retain(Kind, HashSet<ObjectKey>),
    /// A node joined, moved or was removed.
    Register(String, Option<Registration>),
    /// Everything that exists has been delivered once.
    Synced,
}

/// Which source to use: `kube` or `dir:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourceKind {
    /// A Kubernetes API server: in-cluster, or by kubeconfig.
    Kube,
    /// A folder of manifests, watched.
    Dir(PathBuf),
}

impl FromStr for SourceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err("must be `kube` or `dir:PATH`".to_owned()),
        }
    }
}

impl TryFrom<String> for SourceKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<SourceKind> for String {
    fn from(kind: SourceKind) -> Self {
        match kind {
            SourceKind::Kube => "kube".to_owned(),
            SourceKind::Dir(path) => format!("dir:{}", path.display()),
        }
    }
}

/// What the source says of itself. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<HealthState>>);

/// What is wrong with the source, by what it is wrong with: a file, or a kind of object.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct HealthState {
    /// Problems now.
    pub problems: BTreeMap<String, String>,
    /// Parts that wait for something that is no fault, e.g. for a CRD to be installed.
    pub waiting: BTreeSet<String>,
    /// Problems so far.
    pub errors: u64,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a problem and says it once.
    pub(crate) fn problem(&self, part: &str, reason: String) {
        let mut state = self.lock();
        state.errors += 1;
        if state.problems.get(part) != Some(&reason) {
            tracing::warn!(part, reason, "source");
            state.problems.insert(part.to_owned(), reason);
        }
    }

    /// The part works.
    pub(crate) fn fine(&self, part: &str) {
        let mut state = self.lock();
        state.waiting.remove(part);
        if state.problems.remove(part).is_some() {
            tracing::info!(part, "source works again");
        }
    }

    /// The part waits; that is no fault.
    pub(crate) fn waiting(&self, part: &str) {
        let mut state = self.lock();
        state.problems.remove(part);
        state.waiting.insert(part.to_owned());
    }

    pub(crate) fn snapshot(&self) -> HealthState {
        self.lock().clone()
    }
}
