use super::{super::wire::tests::open, *};
use crate::nat::candidates::Carrier;

const TCP: Port = (Carrier::Tcp, 15008);
const UDP: Port = (Carrier::Udp, 15008);
const OUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

fn book(now: Instant) -> Book {
    book_of("10.0.0.1", "10.0.0.2", now)
}

fn book_of(router: &str, host: &str, now: Instant) -> Book {
    let gateway = Gateway::new(router.parse().unwrap(), 0, host.parse().unwrap());
    let mut book = Book::new(gateway, [3; 32], now);
    assert!(book.want(&BTreeSet::from([TCP, UDP]), now).is_empty());
    book
}

/// Has a router answer all that is sent, in one dialect.
fn answer(book: &mut Book, dialect: Dialect, epoch: u32, now: Instant) -> usize {
    let sent = book.send(now);
    let version = if dialect == Dialect::Pcp { 2 } else { 0 };
    for request in sent.iter().filter(|r| r[0] == version) {
        book.receive(&open(request, epoch, 40_000, OUTER, LIFETIME), now);
    }
    sent.len()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn ports_are_opened_renewed_at_half_their_life_and_given_back() {
    for dialect in [Dialect::Pcp, Dialect::NatPmp] {
        let start = Instant::now();
        let mut it = book(start);
        let mut now = start;
        while it.open(now).len() < 2 {
            assert!(now < start + seconds(5), "{dialect:?}");
            answer(&mut it, dialect, 10, now);
            now = if it.open(now).len() < 2 { it.next() } else { now };
        }
        let all = BTreeMap::from([TCP, UDP].map(|p| (p, SocketAddr::new(OUTER, 40_000))));
        assert_eq!(it.open(now), all);
        let (mut renewals, mut last) = (0, now);
        while renewals < 4 {
            now = it.next();
            let epoch = 10 + u32::try_from((now - start).as_secs()).unwrap();
            let asked = it.leases.values().filter(|l| l.at <= now).count();
            answer(&mut it, dialect, epoch, now);
            if asked > 0 {
                renewals += asked;
                last = now;
            }
            assert_eq!(it.open(now), all, "open all the time");
        }
        let halves = seconds(u64::from(LIFETIME)) / 2 * 2;
        assert!(last - start >= halves && last - start < halves + seconds(10), "{:?}", last - start);
        let farewell = it.leave();
        assert_eq!(farewell.len(), 2);
        let lifetime = if dialect == Dialect::Pcp { 4..8 } else { 8..12 };
        assert!(farewell.iter().all(|f| f[lifetime.clone()] == [0, 0, 0, 0]));
        assert_eq!(
            it.want(&BTreeSet::from([TCP]), now).len(),
            1,
            "one that is not wanted any more is closed"
        );
        assert_eq!(it.open(now).len(), 1);
    }
}

#[test]
fn a_router_that_starts_anew_is_asked_again_at_once() {
    let start = Instant::now();
    let mut it = book(start);
    answer(&mut it, Dialect::Pcp, 5_000, start);
    assert_eq!(it.open(start).len(), 2);
    let now = start + seconds(61);
    // Asked for its clock, it says that all is well.
    assert_eq!(answer(&mut it, Dialect::Pcp, 5_061, now), 1);
    assert!(it.next() > now);
    let later = now + seconds(20);
    let announced = open(&wire::hello(Dialect::Pcp, OUTER), 1, 0, OUTER, 0);
    it.receive(&announced, later);
    assert_eq!(it.next(), later);
    assert_eq!(answer(&mut it, Dialect::Pcp, 2, later), 2, "both ports");
    assert!(it.next() > later && it.open(later).len() == 2);
}

#[test]
fn a_way_through_the_firewall_of_ipv6_is_asked_for_by_pcp_only() {
    let start = Instant::now();
    let host: IpAddr = "2001:db8::2".parse().unwrap();
    let mut it = book_of("fe80::1", "2001:db8::2", start);
    let mut sent = Vec::new();
    while !it.is_in_vain() {
        sent.extend(it.send(it.next()));
    }
    assert!(!sent.is_empty() && sent.iter().all(|r| r[0] == 2));
    let mut it = book_of("fe80::1", "2001:db8::2", start);
    for request in it.send(start) {
        it.receive(&open(&request, 9, 15008, host, LIFETIME), start);
    }
    assert_eq!(it.open(start), BTreeMap::from([TCP, UDP].map(|p| (p, SocketAddr::new(host, 15008)))));
    // A router that does not know the version.
    let mut it = book_of("fe80::1", "2001:db8::2", start);
    it.receive(&[0, 0x81, 0, 1, 0, 0, 0, 9], start);
    assert!(it.is_in_vain());
}

#[test]
fn clocks_tell_a_new_start() {
    for (before, now, passed, lost) in [
        (100, 160, 60, false),
        (100, 163, 60, false),
        (100, 157, 62, false),
        (100, 99, 0, false),
        (100, 90, 60, true),
        (100, 100, 60, true),
        (100, 400, 60, true),
        (0, 86_400, 84_000, false),
        (u32::MAX, 0, 1, true),
    ] {
        assert_eq!(is_new_start(before, now, passed), lost, "{before} {now} {passed}");
    }
}

#[test]
fn silence_and_refusals_are_left_alone_for_a_while() {
    let start = Instant::now();
    let mut it = book(start);
    let (mut now, mut sent) = (start, 0);
    while !it.is_in_vain() {
        now = it.next();
        sent += it.send(now).len();
        assert!(now < start + seconds(60) && sent < 40);
    }
    assert!(it.next() >= start + HELLO, "it rests");
    assert!(it.open(now).is_empty() && it.leave().is_empty());

    let mut it = book(start);
    for request in it.send(start) {
        let mut refused = open(&request, 1, 0, OUTER, 0);
        refused[3] = 2;
        it.receive(&refused, start);
    }
    assert!(it.is_in_vain() && it.open(start).is_empty());

    let mut it = book(start);
    it.unreachable(start);
    assert!(it.is_in_vain(), "nothing listens");
}

#[test]
fn what_others_opened_and_what_was_not_asked_for_is_no_answer() {
    let start = Instant::now();
    let mut it = book(start);
    for request in it.send(start) {
        let mut other = request.clone();
        other[24] ^= 1;
        it.receive(&open(&other, 1, 40_000, OUTER, 600), start);
    }
    assert!(it.open(start).is_empty());
    let stranger = wire::ask(Dialect::NatPmp, &it.ask((Carrier::Tcp, 22), 22, 600));
    it.receive(&open(&stranger, 1, 22, OUTER, 600), start);
    it.receive(&[2, 0x81], start);
    it.receive(&[0xff; 2_000], start);
    assert!(it.open(start).is_empty());
    // A lease that is not renewed ends.
    let mut it = book(start);
    answer(&mut it, Dialect::Pcp, 1, start);
    assert_eq!(it.open(start + seconds(u64::from(LIFETIME)) - seconds(1)).len(), 2);
    assert!(it.open(start + seconds(u64::from(LIFETIME))).is_empty());
}

#[test]
fn the_nonce_is_the_same_after_a_restart_and_another_for_another_node() {
    let now = Instant::now();
    assert_eq!(book(now).nonce(TCP), book(now).nonce(TCP));
    assert_ne!(book(now).nonce(TCP), book(now).nonce(UDP));
    let other = Book::new(book(now).gateway(), [4; 32], now);
    assert_ne!(book(now).nonce(TCP), other.nonce(TCP));
}
