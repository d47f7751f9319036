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
    assert_eq!(
        store.write(vec![write(&a, "1"), write(&b, "1"), write(&node, "1")], true).await,
        Written::Durable
    );
    let gone = Write { kind: b.kind(), name: b.name().into(), value: None };
    assert_eq!(store.write(vec![write(&a, "2"), gone], false).await, Written::Durable);
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
        assert_eq!(store.write(vec![write(&service("a"), "1")], true).await, Written::Durable);
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
        assert_eq!(store.write(vec![write(&service("b"), "1")], true).await, Written::Durable);
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
    assert_eq!(store.write(vec![write(&service("a"), "1")], true).await, Written::Kept);
    std::fs::remove_file(&blocked).unwrap();
    assert_eq!(
        store.write(vec![write(&service("b"), "1")], false).await,
        Written::Durable,
        "the next write works"
    );
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
    assert_eq!(store.write(all, true).await, Written::Durable);
    let start = std::time::Instant::now();
    let (_other, loaded) = open(dir.path());
    assert_eq!(loaded.resources.len(), 5000);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Wherever a byte of the file is another one, the store opens, and what it gives is what was written or nothing.
#[tokio::test]
async fn a_flipped_byte_anywhere_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let all: Vec<_> = (0..40).map(|i| service(&format!("s{i}"))).collect();
    assert_eq!(store.write(all.iter().map(|r| write(r, "1")).collect(), true).await, Written::Durable);
    store.close().await;
    let good = std::fs::read(dir.path().join("snapshot.db")).unwrap();
    let mut set_aside = 0;
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = good.clone();
        let at = round * bad.len() / 60 + round % 7;
        bad[at] ^= 0x55;
        std::fs::write(dir.path().join("snapshot.db"), &bad).unwrap();
        let (store, loaded) = open(dir.path());
        for s in &loaded.resources {
            assert!(
                all.iter().any(|r| r.encode() == s.value),
                "byte {at}: {} is not what was written",
                s.name
            );
        }
        set_aside += usize::from(dir.path().join("snapshot.db.corrupt").exists());
        assert_eq!(
            store.write(vec![write(&service("new"), "1")], false).await,
            Written::Durable,
            "byte {at}"
        );
        store.close().await;
    }
    assert!(set_aside > 0, "some of these are damage");
}

/// Damage under an open database: what is lost is said, so that it is sent again.
#[tokio::test]
async fn a_file_that_is_damaged_while_open_is_replaced_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(60);
    let all = |version: &str| {
        (0..3000).map(|i| write(&service(&format!("{long}.{long}.s{i}")), version)).collect::<Vec<_>>()
    };
    let (store, _) = open(dir.path());
    assert_eq!(store.write(all("1"), true).await, Written::Durable);
    store.close().await;
    // More than fits the page cache, so that a write has to read.
    let (store, _) = open(dir.path());
    let path = dir.path().join("snapshot.db");
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size > 1 << 20, "{size}");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; size as usize - 4096], 4096).unwrap();
    assert_eq!(store.write(all("2"), false).await, Written::Lost);
    assert!(dir.path().join("snapshot.db.corrupt").exists());
    assert_eq!(store.write(all("2"), true).await, Written::Durable);
    store.close().await;
    let (_other, loaded) = open(dir.path());
    assert_eq!((loaded.resources.len(), loaded.complete), (3000, true));
}
