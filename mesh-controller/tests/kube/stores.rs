//! One suite for every store of what controllers share.

use std::{
    path::Path,
    sync::{Arc, Barrier},
};

use mesh_ca::{Lives, NodeName, Put, StateDir, StateStore, Step, StoreError, TrustDomain, UseError};
use mesh_controller::state::KubeState;
use mesh_testkit::kube::KubeCluster;

const NOW: u64 = 1_900_000_000;

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// Runs the suite on a directory and on a namespace of a cluster.
pub(crate) async fn both(dir: &Path, kubeconfig: &Path, cluster: &KubeCluster) {
    let directory: Arc<dyn StateStore> = Arc::new(StateDir::new(dir.join("store")));
    tokio::task::spawn_blocking(move || suite(&directory)).await.unwrap();

    cluster.kubectl(&["create", "namespace", "stores"]).unwrap();
    cluster.kubectl(&["create", "configmap", "owner", "-n", "stores"]).unwrap();
    let client = client(kubeconfig).await;
    let state: Arc<dyn StateStore> = Arc::new(KubeState::new(client, "stores", "owner").await.unwrap());
    tokio::task::spawn_blocking(move || suite(&state)).await.unwrap();
    // All of it goes with its owner.
    let all = ["get", "secrets,meshnodes", "-n", "stores", "-o", "name"];
    assert!(cluster.kubectl(&all).unwrap().contains("secret/mesh-ca"));
    cluster.kubectl(&["delete", "configmap", "owner", "-n", "stores"]).unwrap();
    super::until("the state goes with its owner", super::SOON, async || {
        cluster.kubectl(&all).unwrap().trim().is_empty().then_some(())
    })
    .await;
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let file = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn suite(state: &Arc<dyn StateStore>) {
    authority(state);
    tokens(state);
    nodes(state).unwrap();
}

/// What several threads come to that begin at the same moment.
fn at_once<T: Send>(count: usize, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(count);
    let (run, start) = (&run, &start);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|i| {
                scope.spawn(move || {
                    start.wait();
                    run(i)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn authority(state: &Arc<dyn StateStore>) {
    let lives = Lives::default();
    let at = |now| state.authority(&domain(), &lives, now).unwrap();
    let prints = at_once(4, |_| at(NOW).0.fingerprint());
    assert!(prints.iter().all(|p| *p == prints[0]), "two CAs");
    let other = TrustDomain::new("other").unwrap();
    let wrong = state.authority(&other, &lives, NOW).unwrap_err().to_string();
    assert!(wrong.contains("cluster.local") && wrong.contains("other"), "{wrong}");
    assert_eq!(at(NOW + 5).0.fingerprint(), prints[0], "nothing was replaced");
    // Years later all see the same next one, which one of them has made, and then the same one that signs.
    let years = NOW + lives.ca.as_secs() / 3 * 2;
    let seen = at_once(4, |_| at(years));
    assert!(seen.iter().all(|(ca, _)| ca.bundle_pem() == seen[0].0.bundle_pem() && ca.trusted().len() == 2));
    assert_eq!(seen.iter().map(|(_, steps)| steps.len()).sum::<usize>(), 1);
    assert_eq!(seen[0].0.fingerprint(), prints[0]);
    let switched = at_once(4, |_| at(years + lives.overlap.as_secs()));
    assert!(switched.iter().all(|(ca, _)| ca.certificate() == &seen[0].0.trusted()[1]));
    assert_eq!(switched.iter().flat_map(|(_, steps)| steps).collect::<Vec<_>>(), [&Step::Switched]);
    let (last, _) = at(years + lives.overlap.as_secs() * 3);
    assert_eq!(last.trusted().len(), 1);
}

fn tokens(state: &Arc<dyn StateStore>) {
    let tokens = state.tokens().unwrap();
    let make = |name: &str| tokens.create(&node(name), 3600, [7; 32], Vec::new(), 1000).unwrap();
    let token = make("edge-a");
    assert!(matches!(tokens.spend(&token, &node("edge-b"), b"csr", 1001), Err(UseError::WrongNode { .. })));
    assert!(matches!(tokens.spend(&token, &node("edge-a"), b"csr", 4600), Err(UseError::Expired { .. })));
    // Each has a store of its own, as replicas have.
    let won = at_once(6, |i| {
        let own = state.tokens().unwrap();
        own.spend(&token, &node("edge-a"), &[u8::try_from(i).unwrap()], 1001)
    });
    assert_eq!(won.iter().filter(|r| r.is_ok()).count(), 1, "{won:?}");
    assert!(won.iter().all(|r| matches!(r, Ok(()) | Err(UseError::Replayed))), "{won:?}");
    let lost = make("edge-c");
    for at in [1001, 1600] {
        tokens.spend(&lost, &node("edge-c"), b"csr", at).unwrap();
    }
    assert!(matches!(tokens.spend(&lost, &node("edge-c"), b"csr", 1601), Err(UseError::Replayed)));
    let listed: Vec<_> = tokens.list().unwrap().into_iter().map(|t| (t.node, t.used)).collect();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&("edge-c".to_owned(), Some(1001))), "{listed:?}");
    assert!(tokens.remove(&lost.id).unwrap() && !tokens.remove(&lost.id).unwrap());
    assert!(matches!(tokens.spend(&lost, &node("edge-c"), b"csr", 1002), Err(UseError::Unknown)));
    assert_eq!(tokens.purge(4600 + 24 * 3600).unwrap(), 0);
    assert_eq!(tokens.purge(4600 + 24 * 3600 + 1).unwrap(), 1);
    assert!(tokens.list().unwrap().is_empty());
}

fn nodes(state: &Arc<dyn StateStore>) -> Result<(), StoreError> {
    let shelf = state.nodes()?;
    let record = |peer: &str| format!(r#"{{"node":"edge-a","peer_id":"{peer}"}}"#).into_bytes();
    assert!(shelf.get("edge-a")?.is_none());
    assert_eq!(shelf.put("edge-a", &record("0"), Some("1"))?, Put::Conflict, "it is not there");
    let made = at_once(4, |i| state.nodes().unwrap().put("edge-a", &record(&i.to_string()), None).unwrap());
    assert_eq!(made.iter().filter(|p| matches!(p, Put::Done(_))).count(), 1, "{made:?}");
    let first = shelf.get("edge-a")?.unwrap();
    let Put::Done(second) = shelf.put("edge-a", &record("second"), Some(&first.version))? else {
        panic!("not written");
    };
    assert_eq!(shelf.put("edge-a", &record("late"), Some(&first.version))?, Put::Conflict);
    let found = shelf.get("edge-a")?.unwrap();
    let said: serde_json::Value = serde_json::from_slice(&found.content).unwrap();
    assert_eq!((said["peer_id"].as_str(), &found.version), (Some("second"), &second));
    assert_eq!(shelf.versions()?, [("edge-a".to_owned(), second.clone())]);
    assert!(!shelf.remove("edge-a", Some(&first.version))?, "it has changed since");
    assert!(shelf.remove("edge-a", Some(&second))? && !shelf.remove("edge-a", None)?);
    // One stays, for whoever looks at what becomes of it.
    assert!(matches!(shelf.put("edge-a", &record("3"), None)?, Put::Done(_)));
    Ok(())
}
