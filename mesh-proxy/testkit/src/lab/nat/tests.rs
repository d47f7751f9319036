#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use super::{
    packet::{checksum, parse},
    *,
};

fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn router(kind: Nat, change: impl FnOnce(&mut Config)) -> (Router, Instant) {
    let mut config = Config {
        outer: "203.0.113.10".parse().unwrap(),
        lan: "192.168.1.0/24".parse().unwrap(),
        kind,
        hairpin: false,
        udp_timeout_ms: 30_000,
        tcp_timeout_ms: 600_000,
        keep_ports: kind != Nat::Symmetric,
        forward: BTreeMap::new(),
        seed: 7,
    };
    change(&mut config);
    let now = Instant::now();
    (Router::new(config, now), now)
}

/// A packet with right checksums.
fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    let length = u16::try_from(20 + transport.len()).unwrap();
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(transport);
    bytes
}

fn transport_sum(bytes: &[u8]) -> u16 {
    let mut all = bytes[12..20].to_vec();
    all.extend([0, bytes[9]]);
    all.extend(u16::try_from(bytes.len() - 20).unwrap().to_be_bytes());
    all.extend(&bytes[20..]);
    checksum(&all)
}

fn with_sum(mut bytes: Vec<u8>, offset: usize) -> Vec<u8> {
    let sum = transport_sum(&bytes);
    bytes[20 + offset..22 + offset].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn udp(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (at(from), at(to));
    let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    transport.extend([0, 11, 0, 0, b'a', b'b', b'c']);
    with_sum(packet(17, from, to, &transport), 6)
}

fn tcp(from: &str, to: &str, flags: u8) -> Vec<u8> {
    let (from, to) = (at(from), at(to));
    let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    with_sum(packet(6, from, to, &transport), 16)
}

fn echo(from: &str, to: &str, kind: u8, id: u16) -> Vec<u8> {
    let mut transport = vec![kind, 0, 0, 0];
    transport.extend(id.to_be_bytes());
    transport.extend([0, 1, b'x']);
    let sum = checksum(&transport);
    transport[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(1, at(from), at(to), &transport)
}

fn ends(bytes: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let Parsed::Plain(view) = parse(bytes) else { panic!("not plain: {bytes:?}") };
    (view.from, view.to)
}

fn sums_are_right(bytes: &[u8]) {
    assert_eq!(checksum(&bytes[..20]), 0, "IP");
    if bytes[9] == 1 {
        assert_eq!(checksum(&bytes[20..]), 0, "ICMP");
    } else {
        assert_eq!(transport_sum(bytes), 0, "transport");
    }
}

/// Sends a packet out; the outer endpoint that it got.
fn out(router: &mut Router, now: Instant, mut bytes: Vec<u8>) -> SocketAddrV4 {
    assert_eq!(router.handle(now, &mut bytes), Verdict::Pass);
    sums_are_right(&bytes);
    ends(&bytes).0
}

/// Sends a packet in; where it went.
fn into(router: &mut Router, now: Instant, mut bytes: Vec<u8>) -> Result<SocketAddrV4, Verdict> {
    match router.handle(now, &mut bytes) {
        Verdict::Pass => {
            sums_are_right(&bytes);
            Ok(ends(&bytes).1)
        }
        verdict => Err(verdict),
    }
}

const HOST: &str = "192.168.1.5:4000";
const PEER: &str = "198.51.100.1:53";
const OTHER_PORT: &str = "198.51.100.1:54";
const OTHER: &str = "198.51.100.2:53";

#[test]
fn each_kind_maps_and_filters_as_its_name_says() {
    use Verdict::Filtered;
    let host = Ok(at(HOST));
    for (kind, same_port, from_other_port, from_other) in [
        (Nat::FullCone, true, host, host),
        (Nat::AddressRestricted, true, host, Err(Filtered)),
        (Nat::PortRestricted, true, Err(Filtered), Err(Filtered)),
        (Nat::Symmetric, false, Err(Filtered), Err(Filtered)),
    ] {
        for make in [udp as fn(&str, &str) -> Vec<u8>, |a, b| tcp(a, b, 2)] {
            let (mut r, now) = router(kind, |_| ());
            let first = out(&mut r, now, make(HOST, PEER));
            let outer = first.to_string();
            assert_eq!(into(&mut r, now, make(PEER, &outer)), host, "{kind:?}");
            assert_eq!(into(&mut r, now, make(OTHER_PORT, &outer)), from_other_port, "{kind:?}");
            assert_eq!(into(&mut r, now, make(OTHER, &outer)), from_other, "{kind:?}");
            assert_eq!(out(&mut r, now, make(HOST, OTHER)) == first, same_port, "{kind:?}");
            assert_eq!(out(&mut r, now, make(HOST, OTHER_PORT)) == first, same_port, "{kind:?}");
            // Once called, it is let in where it was called from.
            assert_eq!(into(&mut r, now, make(OTHER, &outer)).is_ok(), same_port, "{kind:?}");
            let unknown = format!("203.0.113.10:{}", first.port() ^ 1);
            assert_eq!(into(&mut r, now, make(PEER, &unknown)), Err(Verdict::NoMapping));
        }
    }
}

#[test]
fn outer_ports_are_kept_where_free_and_never_shared() {
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    assert_eq!(out(&mut r, now, udp(HOST, PEER)).port(), 4000);
    let second = out(&mut r, now, udp("192.168.1.6:4000", PEER));
    assert_ne!(second.port(), 4000);
    assert_eq!(into(&mut r, now, udp(PEER, &second.to_string())), Ok(at("192.168.1.6:4000")));
    // Another protocol has ports of its own.
    assert_eq!(out(&mut r, now, tcp(HOST, PEER, 2)).port(), 4000);
    let (mut r, now) = router(Nat::Symmetric, |_| ());
    let ports: std::collections::HashSet<u16> =
        (1..200).map(|p| out(&mut r, now, udp(HOST, &format!("198.51.100.1:{p}"))).port()).collect();
    assert_eq!(ports.len(), 199);
}

#[test]
fn only_what_leaves_keeps_a_mapping_alive() {
    let (mut r, now) = router(Nat::FullCone, |_| ());
    let outer = out(&mut r, now, udp(HOST, PEER)).to_string();
    let later = |s: u64| now + Duration::from_secs(s);
    assert!(into(&mut r, later(29), udp(PEER, &outer)).is_ok());
    assert_eq!(into(&mut r, later(31), udp(PEER, &outer)), Err(Verdict::NoMapping));
    assert_eq!((r.by_inside.len(), r.len()), (0, 0), "both tables forget");
    let outer = out(&mut r, later(40), udp(HOST, PEER)).to_string();
    out(&mut r, later(60), udp(HOST, OTHER));
    assert!(into(&mut r, later(85), udp(PEER, &outer)).is_ok(), "another session keeps the mapping");
    // A filter entry ends by itself even when the mapping lives on.
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    let later = |s: u64| now + Duration::from_secs(s);
    let outer = out(&mut r, now, udp(HOST, PEER)).to_string();
    out(&mut r, later(20), udp(HOST, OTHER));
    assert_eq!(into(&mut r, later(31), udp(PEER, &outer)), Err(Verdict::Filtered));
    assert!(into(&mut r, later(31), udp(OTHER, &outer)).is_ok());
}

#[test]
fn a_tcp_session_lives_as_its_connection_does() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const FIN: u8 = 1;
    const RST: u8 = 4;
    let later = |now: Instant, s: u64| now + Duration::from_secs(s);
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    let outer = out(&mut r, now, tcp(HOST, PEER, SYN)).to_string();
    assert!(into(&mut r, later(now, 61), tcp(PEER, &outer, SYN | ACK)).is_err(), "asked, never answered");
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    let outer = out(&mut r, now, tcp(HOST, PEER, SYN)).to_string();
    into(&mut r, now, tcp(PEER, &outer, SYN | ACK)).unwrap();
    out(&mut r, now, tcp(HOST, PEER, ACK));
    assert!(into(&mut r, later(now, 590), tcp(PEER, &outer, ACK)).is_ok(), "established");
    out(&mut r, later(now, 591), tcp(HOST, PEER, FIN | ACK));
    assert!(into(&mut r, later(now, 900), tcp(PEER, &outer, ACK)).is_ok(), "half closed is still open");
    into(&mut r, later(now, 901), tcp(PEER, &outer, FIN | ACK)).unwrap();
    assert!(into(&mut r, later(now, 920), tcp(PEER, &outer, ACK)).is_err(), "ended on both sides");
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    let outer = out(&mut r, now, tcp(HOST, PEER, SYN)).to_string();
    into(&mut r, now, tcp(PEER, &outer, RST | ACK)).unwrap();
    assert!(into(&mut r, later(now, 11), tcp(PEER, &outer, ACK)).is_err(), "refused");
}

#[test]
fn hairpinning_is_an_option_and_is_filtered_like_anything_else() {
    let second = "192.168.1.6:5000";
    for kind in Nat::CONES_AND_SYMMETRIC {
        let (mut r, now) = router(kind, |_| ());
        let outer = out(&mut r, now, udp(HOST, PEER)).to_string();
        assert_eq!(r.handle(now, &mut udp(second, &outer)), Verdict::Hairpin);
        let (mut r, now) = router(kind, |c| c.hairpin = true);
        let first = out(&mut r, now, udp(HOST, PEER)).to_string();
        let mut bytes = udp(second, &first);
        let verdict = r.handle(now, &mut bytes);
        if kind != Nat::FullCone {
            assert_eq!(verdict, Verdict::Filtered, "{kind:?}");
            continue;
        }
        assert_eq!(verdict, Verdict::Pass);
        sums_are_right(&bytes);
        // It comes from the outer side of its sender's mapping.
        assert_eq!(ends(&bytes), (at("203.0.113.10:5000"), at(HOST)));
    }
}

#[test]
fn echoes_are_translated_by_their_identifier() {
    let (mut r, now) = router(Nat::PortRestricted, |c| c.keep_ports = false);
    let mut request = echo("192.168.1.5:0", "198.51.100.1:0", 8, 77);
    assert_eq!(r.handle(now, &mut request), Verdict::Pass);
    sums_are_right(&request);
    let id = ends(&request).0.port();
    assert_ne!(id, 77);
    let answer = echo("198.51.100.1:0", "203.0.113.10:0", 0, id);
    assert_eq!(into(&mut r, now, answer), Ok(at("192.168.1.5:77")));
    let other = echo("198.51.100.2:0", "203.0.113.10:0", 0, id);
    assert_eq!(into(&mut r, now, other), Err(Verdict::Filtered));
}

#[test]
fn errors_reach_the_host_they_concern() {
    let (mut r, now) = router(Nat::PortRestricted, |c| c.keep_ports = false);
    let mut sent = udp(HOST, PEER);
    assert_eq!(r.handle(now, &mut sent), Verdict::Pass);
    let error = |about: &[u8], from: &str, to: &str| {
        let mut transport = vec![3, 3, 0, 0, 0, 0, 0, 0];
        transport.extend(&about[..28]);
        let sum = checksum(&transport);
        transport[2..4].copy_from_slice(&sum.to_be_bytes());
        packet(1, at(from), at(to), &transport)
    };
    let mut bytes = error(&sent, "198.51.100.1:0", "203.0.113.10:0");
    assert_eq!(r.handle(now, &mut bytes), Verdict::Pass);
    sums_are_right(&bytes);
    assert_eq!(checksum(&bytes[28..48]), 0, "inner IP header");
    assert_eq!(&bytes[16..20], &[192, 168, 1, 5]);
    // Its own packet is quoted as it sent it.
    assert_eq!(&bytes[40..44], &[192, 168, 1, 5]);
    assert_eq!(bytes[48..50], 4000_u16.to_be_bytes());
    // The other way: the host complains of what it was sent.
    let outer = ends(&sent).0;
    let mut got = udp(PEER, &outer.to_string());
    assert_eq!(r.handle(now, &mut got), Verdict::Pass);
    let mut bytes = error(&got, "192.168.1.5:0", "198.51.100.1:0");
    assert_eq!(r.handle(now, &mut bytes), Verdict::Pass);
    sums_are_right(&bytes);
    assert_eq!(&bytes[12..16], &outer.ip().octets());
    assert_eq!(&bytes[44..48], &outer.ip().octets());
    assert_eq!(bytes[50..52], outer.port().to_be_bytes());
}

#[test]
fn forwarded_ports_lead_in_whatever_the_kind() {
    for kind in Nat::CONES_AND_SYMMETRIC {
        let (mut r, now) = router(kind, |c| {
            c.forward.insert(4000, at(HOST));
        });
        assert_eq!(into(&mut r, now, udp(PEER, "203.0.113.10:4000")), Ok(at(HOST)));
        if kind != Nat::Symmetric {
            // The answer leaves by the same port.
            assert_eq!(out(&mut r, now, udp(HOST, PEER)), at("203.0.113.10:4000"));
        }
        assert!(into(&mut r, now + Duration::from_secs(900), udp(OTHER, "203.0.113.10:4000")).is_ok());
    }
}

#[test]
fn tables_are_bounded() {
    let (mut r, now) = router(Nat::Symmetric, |_| ());
    let mut full = 0;
    for i in 0..MAPPINGS + 100 {
        let to = format!("198.51.{}.{}:{}", i / 65_000, i % 250, 1 + i % 65_000);
        full += usize::from(r.handle(now, &mut udp(HOST, &to)) == Verdict::Full);
    }
    assert!(r.len() <= MAPPINGS && full >= 100, "{} {full}", r.len());
    let (mut r, now) = router(Nat::PortRestricted, |_| ());
    for i in 0..SESSIONS + 50 {
        let later = now + Duration::from_millis(i as u64);
        out(&mut r, later, udp(HOST, &format!("198.51.100.1:{}", 1 + i)));
    }
    let mapping = r.by_outside.values().next().unwrap();
    assert_eq!(mapping.sessions.len(), SESSIONS);
    assert!(!mapping.sessions.contains_key(&at("198.51.100.1:1")), "the oldest made room");
}

#[test]
fn damaged_packets_are_lost_and_nothing_else_happens() {
    let (mut r, now) = router(Nat::FullCone, |_| ());
    let good = [udp(HOST, PEER), tcp(HOST, PEER, 2), echo("192.168.1.5:0", PEER, 8, 1)];
    for bytes in &good {
        for cut in 0..bytes.len() {
            let mut part = bytes[..cut].to_vec();
            r.handle(now, &mut part);
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut odd = bytes.clone();
                odd[at] = value;
                r.handle(now, &mut odd);
            }
        }
    }
    let mut fragment = udp(HOST, PEER);
    fragment[6] = 0x20;
    assert_eq!(r.handle(now, &mut fragment), Verdict::Other);
}
