use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
    time::SystemTime,
};

use libp2p::Multiaddr;
use prometheus::IntCounter;
use tokio::sync::{Notify, mpsc};

use super::*;

const SPREAD: Spread = Spread { max_connections: 2, at_streams: 2 };

const TCP: Path = Path::new(PathKind::Direct, PathTransport::Tcp);
const QUIC: Path = Path::new(PathKind::Direct, PathTransport::Quic);
const PUNCHED: Path = Path::new(PathKind::Punched, PathTransport::Quic);
const RELAYED: Path = Path::new(PathKind::Relayed, PathTransport::Tcp);

fn conn(table: &Table, peer: PeerId, id: usize, path: Path, worker: Option<Worker>) -> Arc<Conn> {
    let (opens, receiver) = mpsc::channel(1);
    // As the connection's task would.
    std::mem::forget(receiver);
    let counted = || Counted::new(IntCounter::new("x", "x").unwrap());
    Arc::new(Conn {
        id: ConnectionId::new_unchecked(id),
        peer,
        path,
        relay: None,
        remote: Multiaddr::empty(),
        dialled: true,
        worker,
        opens,
        since: (SystemTime::UNIX_EPOCH, Instant::now()),
        streams: AtomicUsize::new(0),
        load: table.load(peer),
        rtt_us: AtomicU64::new(0),
        probes: Default::default(),
        sent: counted(),
        received: counted(),
        signs: AtomicU64::new(0),
        socket: None,
        closed: AtomicBool::new(false),
        retired: AtomicBool::new(false),
        told: AtomicBool::new(false),
        suspect: AtomicBool::new(false),
        generation: Arc::default(),
        shaken: AtomicBool::new(false),
        probing: AtomicBool::new(false),
        doubt: Notify::new(),
    })
}

fn used(step: Step) -> (usize, bool) {
    match step {
        Step::Use { conn, spread, .. } => (format!("{}", conn.id).parse().unwrap(), spread),
        other => panic!("{other:?}"),
    }
}

#[test]
fn concurrent_openers_share_one_dial_and_a_failure_holds_the_next() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
    let Step::Wait { start: false, end, until: None } = table.step(peer, None, SPREAD, now) else { panic!() };
    table.dialled(peer, Err("refused".into()), now, |n| Duration::from_secs(n.into()));
    assert!(end.borrow().as_ref().unwrap().is_err());
    assert!(matches!(table.step(peer, None, SPREAD, now), Step::Held { wait, .. } if wait.as_secs() == 1));
    let later = now + Duration::from_secs(2);
    assert!(matches!(table.step(peer, None, SPREAD, later), Step::Wait { start: true, .. }));
    table.dialled(peer, Err("refused".into()), later, |n| Duration::from_secs(n.into()));
    assert!(matches!(table.step(peer, None, SPREAD, later), Step::Held { wait, .. } if wait.as_secs() == 2));
    table.forgive(peer);
    assert!(matches!(table.step(peer, None, SPREAD, later), Step::Wait { start: true, .. }));
}

#[test]
fn tcp_comes_before_quic_and_the_own_worker_before_another() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    table.established(conn(&table, peer, 1, QUIC, Some(0)));
    assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 1);
    table.established(conn(&table, peer, 2, TCP, Some(1)));
    assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 2);
    table.established(conn(&table, peer, 3, TCP, Some(0)));
    assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 3);
    assert_eq!(used(table.step(peer, Some(1), SPREAD, now)).0, 2);
    table.closed(peer, ConnectionId::new_unchecked(3)).unwrap();
    assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 2);
}

#[test]
fn a_second_connection_is_asked_for_once_and_only_under_load() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    let first = conn(&table, peer, 1, TCP, Some(0));
    table.established(first.clone());
    assert!(!used(table.step(peer, Some(1), SPREAD, now)).1);
    first.streams.store(2, Ordering::Relaxed);
    assert!(!used(table.step(peer, Some(0), SPREAD, now)).1, "this worker has its own");
    assert!(used(table.step(peer, Some(1), SPREAD, now)).1);
    assert!(!used(table.step(peer, Some(1), SPREAD, now)).1, "the dial is under way");
    table.established(conn(&table, peer, 2, TCP, Some(1)));
    table.dialled(peer, Ok(()), now, |_| Duration::ZERO);
    assert!(!used(table.step(peer, Some(2), SPREAD, now)).1, "at the bound");
}

#[test]
fn nothing_stays_behind_when_a_peer_is_gone() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    for id in 0..50 {
        assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
        table.established(conn(&table, peer, id, TCP, None));
        table.dialled(peer, Ok(()), now, |_| Duration::ZERO);
        table.closed(peer, ConnectionId::new_unchecked(id)).unwrap();
        assert_eq!(table.len(), 0);
    }
    table.established(conn(&table, peer, 99, TCP, None));
    assert_eq!(table.remove_unwanted(|_| false), [peer]);
    table.closed(peer, ConnectionId::new_unchecked(99)).unwrap();
    assert_eq!(table.len(), 0);
}

#[test]
fn placement_balances_the_peer_first() {
    let (table, peer, other) = (Table::default(), PeerId::random(), PeerId::random());
    assert_eq!(table.place(peer, 0), None);
    assert_eq!(table.place(peer, 2), Some(0));
    table.established(conn(&table, peer, 1, TCP, Some(0)));
    assert_eq!(table.place(peer, 2), Some(1));
    assert_eq!(table.place(other, 2), Some(1), "fewest of all");
}

#[test]
fn new_streams_take_the_best_path_at_once_and_fall_back_when_it_goes() {
    let changes = IntCounterVec::new(prometheus::Opts::new("c", "c"), &["from", "to"]).unwrap();
    let (table, peer, now) = (Table::new(changes.clone()), PeerId::random(), Instant::now());
    let relayed = conn(&table, peer, 1, RELAYED, None);
    table.established(relayed.clone());
    assert!(!relayed.is_superseded());
    let punched = conn(&table, peer, 2, PUNCHED, None);
    table.established(punched.clone());
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 2);
    assert!(relayed.is_superseded() && !punched.is_superseded());
    assert_eq!(punched.generation.load(Ordering::Relaxed), 1, "pools are told");
    assert_eq!(table.path(&peer), Some(PUNCHED));
    table.closed(peer, ConnectionId::new_unchecked(2)).unwrap();
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 1);
    assert!(!relayed.is_superseded() && punched.is_superseded());
    relayed.retired.store(true, Ordering::Relaxed);
    table.refresh(peer);
    assert_eq!(table.path(&peer), None);
    assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
    let count = |from, to| changes.with_label_values(&[from, to]).get();
    assert_eq!((count("relayed", "punched"), count("punched", "relayed")), (1, 1));
}

#[test]
fn a_connection_that_does_not_answer_waits_behind_every_other() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    let straight = conn(&table, peer, 1, TCP, None);
    table.established(straight.clone());
    table.established(conn(&table, peer, 2, RELAYED, None));
    straight.suspect.store(true, Ordering::Relaxed);
    table.refresh(peer);
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 2);
    straight.suspect.store(false, Ordering::Relaxed);
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 1);
    // Alone and silent: another one is dialled, once, and those who come meanwhile wait for it or for a sign of life.
    table.closed(peer, ConnectionId::new_unchecked(2)).unwrap();
    straight.suspect.store(true, Ordering::Relaxed);
    assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
    let Step::Wait { end, start: false, until: Some(until) } = table.step(peer, None, SPREAD, now) else {
        panic!("no wait")
    };
    assert_eq!(until, now + PATIENCE);
    table.answered(peer);
    assert!(end.borrow().is_some(), "those who wait are woken");
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 1);
    table.dialled(peer, Err("no".into()), now, |_| Duration::from_secs(9));
    assert_eq!(used(table.step(peer, None, SPREAD, now)).0, 1);
}

fn waits(step: Step) -> (bool, Option<Instant>) {
    match step {
        Step::Wait { start, until, .. } => (start, until),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_asks_for_a_silent_peer_is_told_soon_and_dials_go_on() {
    let (table, peer, start) = (Table::default(), PeerId::random(), Instant::now());
    let at = |millis| start + Duration::from_millis(millis);
    let step = |millis| table.step(peer, None, SPREAD, at(millis));
    let alone = conn(&table, peer, 1, TCP, None);
    table.established(alone.clone());
    alone.suspect.store(true, Ordering::Relaxed);
    assert_eq!(waits(step(0)), (true, Some(at(1_500))));
    assert_eq!(waits(step(1_000)), (false, Some(at(1_500))), "no longer than the first one");
    assert!(matches!(step(1_500), Step::Silent { since } if since.as_millis() == 1_500));
    // The dial fails: nobody waits until the next one may start.
    table.dialled(peer, Err("no".into()), at(5_000), |_| Duration::from_secs(1));
    assert!(matches!(step(5_100), Step::Silent { .. }));
    assert_eq!(waits(step(6_100)), (true, Some(at(7_600))));
    // A dial that fails at once says little of a connection that may only be slow: it gets its time too.
    table.answered(peer);
    table.dialled(peer, Err("no address".into()), at(6_200), |_| Duration::from_secs(60));
    assert!(matches!(step(8_000), Step::Use { until: Some(until), .. } if until == at(9_500)));
    assert!(matches!(step(9_500), Step::Silent { .. }));
    // What is left when it was given up; and later it is a peer like any other.
    table.closed(peer, ConnectionId::new_unchecked(1)).unwrap();
    table.forgive(peer);
    assert_eq!(waits(step(9_600)), (true, None));
    table.dialled(peer, Ok(()), at(9_700), |_| Duration::ZERO);
    let again = conn(&table, peer, 2, TCP, None);
    table.established(again.clone());
    again.suspect.store(true, Ordering::Relaxed);
    assert_eq!(waits(step(20_000)), (true, Some(at(21_500))));
    table.closed(peer, ConnectionId::new_unchecked(2)).unwrap();
    assert_eq!(waits(step(20_500)), (false, Some(at(21_500))));
    assert!(matches!(step(22_000), Step::Silent { .. }));
    assert_eq!(waits(step(60_000)), (false, None), "nobody has asked for long");
}

#[test]
fn a_silent_relay_and_a_long_line_get_more_time() {
    let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
    let relayed = conn(&table, peer, 1, RELAYED, None);
    table.established(relayed.clone());
    relayed.suspect.store(true, Ordering::Relaxed);
    assert_eq!(waits(table.step(peer, None, SPREAD, now)), (true, Some(now + RELAYED_PATIENCE)));
    let far = PeerId::random();
    let slow = conn(&table, far, 2, TCP, None);
    slow.measured(Duration::from_millis(600));
    table.established(slow.clone());
    slow.suspect.store(true, Ordering::Relaxed);
    assert_eq!(waits(table.step(far, None, SPREAD, now)), (true, Some(now + Duration::from_millis(4_800))));
}
