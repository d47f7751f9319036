use mesh_ca::DirShelf;

use super::*;

fn shelf(dir: &tempfile::TempDir) -> Arc<dyn Shelf> {
    Arc::new(DirShelf::open(dir.path()).unwrap())
}

fn open(shelf: Arc<dyn Shelf>, changes: mpsc::Sender<Vec<Op>>) -> Result<Registry, StoreError> {
    Registry::open(shelf, changes).map(|(registry, _)| registry)
}

fn by(peer_id: &str) -> Joined {
    Joined { peer_id: peer_id.to_owned(), ..Joined::default() }
}

#[test]
fn records_survive_a_restart_and_bad_ones_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut receiver) = mpsc::channel(16);
    let registry = open(shelf(&dir), sender.clone()).unwrap();
    let said = |version: &str| Said {
        addresses: vec!["/ip4/1.2.3.4/tcp/1".to_owned()],
        relay: true,
        nat: "symmetric".to_owned(),
        reservations: vec!["/ip4/5.6.7.8/tcp/1/p2p/12D3/p2p-circuit".to_owned()],
        version: version.to_owned(),
    };
    assert!(!registry.reported("a", &said(""), 5).unwrap());
    registry.joined("a", &by("peer-1"), 1).unwrap();
    registry.joined("b", &by("peer-2"), 2).unwrap();
    assert!(registry.reported("a", &said("v1"), 5).unwrap());
    // The same again is no change.
    let written = registry.shelf.versions().unwrap();
    assert!(registry.reported("a", &said("v1"), 9).unwrap());
    assert_eq!(registry.shelf.versions().unwrap(), written, "a heartbeat writes nothing");
    registry.joined("a", &by("peer-3"), 7).unwrap();
    assert!(registry.remove("b").unwrap() && !registry.remove("b").unwrap());
    let mut seen = 0;
    while receiver.try_recv().is_ok() {
        seen += 1;
    }
    assert_eq!(seen, 5);
    std::fs::write(dir.path().join("c.json"), "garbage").unwrap();
    let again = open(shelf(&dir), sender).unwrap();
    assert_eq!(again.list().len(), 1);
    let a = again.get("a").unwrap();
    assert_eq!((a.peer_id.as_str(), a.joined, a.reported), ("peer-3", 1, 5));
    assert_eq!(a.addresses, ["/ip4/1.2.3.4/tcp/1"]);
    assert_eq!((a.relay, a.nat.as_str(), a.reservations.len()), (true, "symmetric", 1));
    again.joined("c", &by("peer-4"), 8).unwrap();
    assert_eq!(again.get("c").unwrap().peer_id, "peer-4", "a damaged record is no obstacle");
}

#[test]
fn two_controllers_on_one_shelf_know_the_same_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut receiver) = mpsc::channel(16);
    let one = open(shelf(&dir), mpsc::channel(16).0).unwrap();
    let two = open(shelf(&dir), sender).unwrap();
    one.joined("a", &by("peer-1"), 1).unwrap();
    assert!(two.get("a").is_none());
    assert!(two.refresh().unwrap().is_empty());
    assert!(two.get("a").is_some());
    let told = receiver.try_recv().unwrap();
    assert!(matches!(&told[..], [Op::Register(node, Some(r))] if node == "a" && r.peer_id == "peer-1"));
    assert!(two.refresh().unwrap().is_empty() && receiver.try_recv().is_err(), "nothing is new");
    // What a controller writes itself is not news to it.
    two.joined("b", &by("peer-2"), 2).unwrap();
    receiver.try_recv().unwrap();
    two.refresh().unwrap();
    assert!(receiver.try_recv().is_err());
    // One that is not known yet is looked up, not refused.
    assert!(one.reported("b", &Said::default(), 3).unwrap());
    assert!(one.remove("b").unwrap());
    assert_eq!(two.refresh().unwrap(), ["b"]);
    assert!(matches!(&receiver.try_recv().unwrap()[..], [Op::Register(node, None)] if node == "b"));
    assert!(two.get("b").is_none() && two.find("b").unwrap().is_none());
}

#[test]
fn two_controllers_that_change_one_record_lose_neither_change() {
    let dir = tempfile::tempdir().unwrap();
    let one = open(shelf(&dir), mpsc::channel(64).0).unwrap();
    let two = open(shelf(&dir), mpsc::channel(64).0).unwrap();
    one.joined("a", &by("peer-1"), 1).unwrap();
    assert!(two.reported("a", &Said { nat: "none".to_owned(), ..Said::default() }, 2).unwrap());
    // `one` has not seen the report, and does not undo it.
    one.joined("a", &by("peer-2"), 3).unwrap();
    let record = one.get("a").unwrap();
    assert_eq!((record.peer_id.as_str(), record.nat.as_str()), ("peer-2", "none"));
    // Removed elsewhere: a report does not bring it back.
    assert!(two.remove("a").unwrap());
    assert!(!one.reported("a", &Said::default(), 4).unwrap());
    assert!(one.get("a").is_none());
    assert_eq!((one.found_gone(), one.found_gone()), (vec!["a".to_owned()], vec![]), "told once");
}

#[test]
fn a_watch_that_is_late_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(shelf(&dir), mpsc::channel(64).0).unwrap();
    let at = |version: &str, peer: &str| {
        let record = NodeRecord { peer_id: peer.to_owned(), ..NodeRecord::new("a", 1) };
        Seen::There(Document { content: serde_json::to_vec(&record).unwrap(), version: version.to_owned() })
    };
    let gone = |version: &str| Seen::Gone { version: version.to_owned() };
    assert!(registry.take("a", at("10", "new")).0.is_some());
    assert!(registry.take("a", at("9", "old")).0.is_none());
    assert_eq!(registry.get("a").unwrap().peer_id, "new");
    assert!(registry.take("a", gone("9")).0.is_none(), "joined again since");
    let (operation, left) = registry.take("a", gone("11"));
    assert!(matches!(operation, Some(Op::Register(_, None))));
    assert_eq!(left.as_deref(), Some("a"));
}
