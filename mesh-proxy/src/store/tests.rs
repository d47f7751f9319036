use mesh_api::{Resource, model};

use super::*;

fn service(name: &str) -> Resource {
    Resource::Service(model::Service {
        host: format!("{name}.default.svc.cluster.local"),
        ..Default::default()
    })
}

fn write(r: &Resource, version: &str) -> Write {
    Write { kind: r.kind(), name: r.name().to_owned(), value: Some((version.to_owned(), r.encode())) }
}

fn open(dir: &Path) -> (Store, Loaded) {
    Store::open(dir, &prometheus::Registry::new()).unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, loaded) = open(dir.path());
    assert!(loaded.resources.is_empty() && !loaded.complete);
    let (a, b) = (service("a"), service("b"));
    let node = Resource::Node(model::Node { name: "edge-a".into(), ..Default::default() });
    assert!(store.write(vec![write(&a, "1"), write(&b, "1"), write(&node, "1")], true).await);
    assert!(
        store
            .write(vec![write(&a, "2"), Write { kind: b.kind(), name: b.name().into(), value: None }], false)
            .await
    );
    // Another process reads the file while the first one has it open: as after a kill.
    let (_other, loaded) = open(dir.path());
    assert!(loaded.complete);
    let seen: Vec<_> = loaded.resources.iter().map(|s| (s.name.as_str(), s.version.as_str())).collect();
    assert_eq!(seen, [("edge-a", "1"), (a.name(), "2")], "nodes come before services");
    assert_eq!(loaded.resources[1].value, a.encode());
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_refilled() {
    for damage in [&b"not a database at all, but long enough to be looked at as a header...."[..], b""] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.db");
        let (store, _) = open(dir.path());
        assert!(store.write(vec![write(&service("a"), "1")], true).await);
        store.close().await;
        if damage.is_empty() {
            // A flipped bit in a value: SQLite does not notice, the sum does.
            let db = rusqlite::Connection::open(&path).unwrap();
            db.execute("UPDATE resource SET value = x'0a0161'", []).unwrap();
        } else {
            std::fs::write(&path, damage).unwrap();
            for beside in ["snapshot.db-wal", "snapshot.db-shm"] {
                std::fs::remove_file(dir.path().join(beside)).ok();
            }
        }
        let (store, loaded) = open(dir.path());
        assert!(loaded.resources.is_empty() && !loaded.complete);
        assert!(dir.path().join("snapshot.db.corrupt").exists());
        assert!(!store.is_degraded());
        assert!(store.write(vec![write(&service("b"), "1")], true).await);
        store.close().await;
        assert_eq!(open(dir.path()).1.resources.len(), 1);
    }
}

#[tokio::test]
async fn a_disk_that_says_no_is_said_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("state");
    // A file where the directory should be: nothing can be made below it, for root too.
    std::fs::write(&blocked, "").unwrap();
    let (store, _) = open(&blocked);
    assert!(store.is_degraded());
    assert!(!store.write(vec![write(&service("a"), "1")], true).await);
    std::fs::remove_file(&blocked).unwrap();
    assert!(store.write(vec![write(&service("b"), "1")], false).await, "the next write works");
    assert!(!store.is_degraded());
    let (_other, loaded) = open(&blocked);
    assert_eq!(loaded.resources.len(), 2, "what could not be written before is there too");
    assert!(loaded.complete);
}

#[tokio::test]
async fn five_thousand_services_load_fast() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let all: Vec<_> = (0..5000).map(|i| write(&service(&format!("s{i}")), "1")).collect();
    assert!(store.write(all, true).await);
    let start = std::time::Instant::now();
    let (_other, loaded) = open(dir.path());
    assert_eq!(loaded.resources.len(), 5000);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
