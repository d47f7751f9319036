//! What a Sidecar says about connections to its workloads (`inboundConnectionPool`, and that of an ingress listener): how
//! many there may be at a time, how long they may take and last. All workers of the node count together.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mesh_core::{Tables, scope::InboundLimits};
use mesh_net::copy::CopyError;

use super::check::Admission;

/// Open connections by the endpoint; only of endpoints with a limit, and while there are some.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<SocketAddr, Weak<AtomicU32>>>);

/// One connection under a limit; given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// There is no place left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Places {
    /// Takes a place. Without a limit nothing is counted.
    pub(super) fn take(&self, to: SocketAddr, max: Option<u32>) -> Result<Option<Place>, Full> {
        let Some(max) = max else { return Ok(None) };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.get(&to).and_then(Weak::upgrade).unwrap_or_default();
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        if all.len() > 1024 {
            all.retain(|_, c| c.strong_count() > 0);
        }
        all.insert(to, Arc::downgrade(&count));
        Ok(Some(Place(count)))
    }
}

/// The limits for an endpoint as the tables say now.
pub(super) fn of(tables: &Tables, admission: &Admission) -> Option<Arc<InboundLimits>> {
    let workload = admission.destination.as_ref()?;
    tables.inbound_limits(workload, admission.endpoint.port()).cloned()
}

/// Lets a copy go on for as long as a connection may live.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    copy: impl Future<Output = Result<T, CopyError>>,
) -> Result<T, CopyError> {
    match limit {
        None => copy.await,
        Some(limit) => tokio::time::timeout(limit, copy).await.unwrap_or(Err(CopyError::Idle)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_for_each_endpoint() {
        let places = Places::default();
        let [one, other] = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse().unwrap());
        let first = places.take(one, Some(1)).unwrap();
        assert_eq!(places.take(one, Some(1)).unwrap_err(), Full);
        assert!(places.take(one, None).unwrap().is_none() && places.take(other, Some(1)).unwrap().is_some());
        drop(first);
        assert!(places.take(one, Some(1)).unwrap().is_some());
    }
}
