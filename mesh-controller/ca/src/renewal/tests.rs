//! The years of a mesh in a moment: the clock is an argument, and certificates are checked as TLS checks them.

use rcgen::KeyPair;
use rustls::{RootCertStore, crypto::aws_lc_rs, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};

use super::*;
use crate::{Authority, NodeName, StateDir, StateStore};

const START: u64 = 1_900_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// A CA for 90 days, a leaf for one.
const LIVES: Lives = Lives {
    ca: Duration::from_secs(90 * DAY),
    leaf: Duration::from_secs(DAY),
    overlap: Duration::from_secs(DAY),
};

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// As rustls decides it of a server's or a client's chain.
fn is_trusted(chain: &[CertificateDer<'static>], roots: &[CertificateDer<'static>], now: u64) -> bool {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let leaf = ParsedCertificate::try_from(&chain[0]).unwrap();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &store, &chain[1..], now, algorithms)
        .is_ok()
}

/// What joining with a pin comes to.
fn is_trusted_by_pin(chain: &[CertificateDer<'static>], pin: [u8; 32], now: u64) -> bool {
    let pinned = chain[1..].iter().find(|c| <[u8; 32]>::from(Sha256::digest(c)) == pin);
    pinned.is_some_and(|root| is_trusted(chain, std::slice::from_ref(root), now))
}

struct Node {
    name: NodeName,
    csr: Vec<u8>,
    leaf: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    renewed: u64,
}

impl Node {
    fn join(name: &str, ca: &Authority, now: u64) -> Self {
        let key = KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let name = NodeName::new(name).unwrap();
        let leaf = ca.sign_node(&name, &csr, LIVES.leaf, now).unwrap();
        Self { name, csr, leaf, roots: ca.trusted().to_vec(), renewed: now }
    }

    fn renew(&mut self, ca: &Authority, now: u64) {
        self.leaf = ca.sign_node(&self.name, &self.csr, LIVES.leaf, now).unwrap();
        (self.roots, self.renewed) = (ca.trusted().to_vec(), now);
    }
}

/// A controller that reads the state some time after the other one.
struct Replica {
    ca: Authority,
    chain: Vec<CertificateDer<'static>>,
}

impl Replica {
    fn of(ca: Authority, now: u64) -> Self {
        let chain = ca.issue_controller(&["c".to_owned()], LIVES.leaf * 7, now).unwrap().chain;
        Self { ca, chain }
    }
}

#[test]
fn nobody_is_locked_out_while_three_cas_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let lives = Lives { ca: Duration::from_secs(30 * DAY), ..LIVES };
    let look = |now| StateStore::authority(&state, &domain(), &lives, now).unwrap();
    let first = look(START).0;
    // Nodes renew at different hours; the last one does not hear of anything until its certificate has all but ended.
    let mut nodes: Vec<Node> =
        (0..4).map(|i| Node::join(&format!("n{i}"), &first, START + i * 3 * HOUR)).collect();
    let pause = [16, 16, 16, 23];
    let [mut a, mut b] = [Replica::of(first, START), Replica::of(look(START).0, START)];
    let (mut seen, mut signers) = (Vec::new(), std::collections::BTreeSet::new());
    // A join token is good for a day.
    let mut token = (a.ca.fingerprint(), START);
    for hour in 10..(70 * 24) {
        let now = START + hour * HOUR;
        let (ca, steps) = look(now);
        seen.extend(steps.iter().map(|step| (*step, hour / 24)));
        signers.insert(ca.fingerprint());
        assert!(ca.trusted().len() <= 2 || steps.contains(&Step::Announced), "{}", ca.trusted().len());
        // Its own certificate is made anew when the CAs change, and each day.
        if ca.bundle_pem() != a.ca.bundle_pem() || hour % 24 == 0 {
            a = Replica::of(ca, now);
        }
        for (node, pause) in nodes.iter_mut().zip(pause) {
            for (which, replica) in [("first", &a), ("late", &b)] {
                let what = format!("{} and the {which} controller on day {}", node.name, hour / 24);
                assert!(is_trusted(&replica.chain, &node.roots, now), "{what}: node");
                let own = std::slice::from_ref(&node.leaf);
                assert!(is_trusted(own, replica.ca.trusted(), now), "{what}: controller");
            }
            if now >= node.renewed + pause * HOUR {
                // Whichever answers.
                node.renew(if hour % 2 == 0 { &a.ca } else { &b.ca }, now);
            }
        }
        assert!(is_trusted_by_pin(&a.chain, token.0, now), "a token of {} h ago", (now - token.1) / HOUR);
        if now >= token.1 + DAY - HOUR {
            token = (a.ca.fingerprint(), now);
        }
        if b.ca.bundle_pem() != a.ca.bundle_pem() || hour % 24 == 0 {
            b = Replica::of(look(now).0, now);
        }
    }
    let days: Vec<(Step, u64)> = seen;
    assert_eq!(
        days,
        [
            (Step::Announced, 20),
            (Step::Switched, 21),
            (Step::Left, 22),
            (Step::Announced, 40),
            (Step::Switched, 41),
            (Step::Left, 42),
            (Step::Announced, 60),
            (Step::Switched, 61),
            (Step::Left, 62),
        ]
    );
    assert_eq!(signers.len(), 4);
}

#[test]
fn the_next_ca_is_trusted_before_it_signs_and_the_former_one_until_its_last_leaf_has_ended() {
    let first = Kept::new(&domain(), &LIVES, START).unwrap();
    let at = |day: u64| START + day * DAY;
    assert!(first.step(&domain(), &LIVES, at(59)).unwrap().is_none());
    let (two, step) = first.step(&domain(), &LIVES, at(60)).unwrap().unwrap();
    assert_eq!(step, Step::Announced);
    let authority = |kept: &Kept| Authority::of(kept, &domain(), std::path::Path::new("x")).unwrap();
    let (before, during) = (authority(&first), authority(&two));
    assert_eq!(before.fingerprint(), during.fingerprint(), "the old one signs");
    assert_eq!(during.trusted().len(), 2);
    assert!(two.step(&domain(), &LIVES, at(61) - 1).unwrap().is_none());
    let (three, step) = two.step(&domain(), &LIVES, at(61)).unwrap().unwrap();
    assert_eq!(step, Step::Switched);
    let after = authority(&three);
    assert_eq!(after.certificate(), &during.trusted()[1]);
    assert_eq!(after.trusted()[1], *before.certificate());
    let bundle: Vec<_> =
        CertificateDer::pem_slice_iter(after.bundle_pem().as_bytes()).map(Result::unwrap).collect();
    assert_eq!(bundle, after.trusted());
    // The last leaf of the first one ends a day after the switch.
    assert!(three.step(&domain(), &LIVES, at(62)).unwrap().is_none());
    let (four, step) = three.step(&domain(), &LIVES, at(63)).unwrap().unwrap();
    assert_eq!((step, authority(&four).trusted().len()), (Step::Left, 1));
    let shown = format!("{three:?} {:?}", three.others);
    assert!(!shown.contains("BEGIN"), "{shown}");
}

#[test]
fn who_knows_only_the_former_ca_finds_a_way_to_the_new_one() {
    let first = Kept::new(&domain(), &LIVES, START).unwrap();
    let old = Authority::of(&first, &domain(), std::path::Path::new("x")).unwrap();
    let now = START + 60 * DAY;
    let (two, _) = first.step(&domain(), &LIVES, now).unwrap().unwrap();
    let (three, _) = two.step(&domain(), &LIVES, now + DAY).unwrap().unwrap();
    let new = Authority::of(&three, &domain(), std::path::Path::new("x")).unwrap();
    let (now, name) = (now + DAY, ["c".to_owned()]);
    let chain = new.issue_controller(&name, LIVES.leaf, now).unwrap().chain;
    assert!(is_trusted(&chain, old.trusted(), now));
    assert!(is_trusted_by_pin(&chain, old.fingerprint(), now));
    // When the former one has left there is no way any more.
    let (four, _) = three.step(&domain(), &LIVES, now + 2 * DAY).unwrap().unwrap();
    let alone = Authority::of(&four, &domain(), std::path::Path::new("x")).unwrap();
    let chain = alone.issue_controller(&name, LIVES.leaf, now + 2 * DAY).unwrap().chain;
    assert!(!is_trusted(&chain, old.trusted(), now + 2 * DAY));
    let node = Node::join("edge-a", &old, now + 2 * DAY);
    assert!(!is_trusted(std::slice::from_ref(&node.leaf), alone.trusted(), now + 2 * DAY));
}

#[test]
fn no_leaf_outlives_its_ca_and_a_ca_that_has_ended_is_not_replaced_by_itself() {
    let kept = Kept::new(&domain(), &LIVES, START).unwrap();
    let ca = Authority::of(&kept, &domain(), std::path::Path::new("x")).unwrap();
    let node = Node::join("edge-a", &ca, START + 90 * DAY - HOUR);
    let (_, parsed) = x509_parser::parse_x509_certificate(&node.leaf).unwrap();
    assert_eq!(parsed.validity().not_after.timestamp() as u64, START + 90 * DAY);
    // The clock may be wrong: that must not cost the mesh its CA.
    let error = kept.step(&domain(), &LIVES, START + 91 * DAY).unwrap_err();
    assert!(error.to_string().contains("clock"), "{error}");
    // Controllers that come back late make the best of what is left.
    let late = START + 90 * DAY - 2 * HOUR;
    let (two, step) = kept.step(&domain(), &LIVES, late).unwrap().unwrap();
    assert_eq!(step, Step::Announced);
    assert!(two.step(&domain(), &LIVES, late + 59).unwrap().is_none());
    assert_eq!(two.step(&domain(), &LIVES, late + 60).unwrap().unwrap().1, Step::Switched);
    // A next one that is there is enough, whatever the time.
    assert_eq!(two.step(&domain(), &LIVES, START + 200 * DAY).unwrap().unwrap().1, Step::Switched);
}

#[test]
fn a_power_cut_between_any_two_files_leaves_a_ca() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let look = |now| StateStore::authority(&state, &domain(), &LIVES, now).unwrap();
    let first = look(START).0;
    look(START + 60 * DAY);
    let read = || {
        ["renewal.json", "ca.crt", "ca.key"].map(|f| std::fs::read(dir.path().join("ca").join(f)).unwrap())
    };
    let before = read();
    let (new, steps) = look(START + 61 * DAY);
    assert_eq!(steps, [Step::Switched]);
    let after = read();
    let between: serde_json::Value = {
        let (old, new): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&before[0]).unwrap(), serde_json::from_slice(&after[0]).unwrap());
        serde_json::json!({ "next": old["next"], "former": new["former"] })
    };
    // Files are written in this order, the first of them twice.
    for written in 1..=4 {
        let files = [
            if written < 4 { between.to_string().into_bytes() } else { after[0].clone() },
            if written < 2 { before[1].clone() } else { after[1].clone() },
            if written < 3 { before[2].clone() } else { after[2].clone() },
        ];
        for (name, content) in ["renewal.json", "ca.crt", "ca.key"].iter().zip(&files) {
            std::fs::write(dir.path().join("ca").join(name), content).unwrap();
        }
        let plain = state.authority(&domain(), START + 61 * DAY).unwrap();
        let expected = if written < 2 { &first } else { &new };
        assert_eq!(plain.fingerprint(), expected.fingerprint(), "after {written} files");
        assert_eq!(plain.trusted().len(), 2, "after {written} files");
        let (found, _) = look(START + 61 * DAY);
        assert_eq!(found.fingerprint(), new.fingerprint(), "after {written} files");
        assert_eq!(found.trusted().len(), 2, "after {written} files");
    }
}

#[test]
fn controllers_that_look_at_once_make_one_next_ca() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    StateStore::authority(&state, &domain(), &LIVES, START).unwrap();
    let bundles = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (ca, _) = StateStore::authority(&state, &domain(), &LIVES, START + 60 * DAY).unwrap();
                bundles.lock().unwrap().push(ca.bundle_pem().to_owned());
            });
        }
    });
    let bundles = bundles.into_inner().unwrap();
    assert!(bundles.iter().all(|b| *b == bundles[0] && b.matches("BEGIN").count() == 2), "{bundles:?}");
}

#[test]
fn who_asks_gets_the_next_ca_before_its_time_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let at = |now: u64| StateStore::authority(&state, &domain(), &LIVES, now).unwrap();
    let (first, _) = at(START);
    // Made since then, and by a clock that is ahead.
    for asked in [START, START + HOUR] {
        state.renew_ca(asked).unwrap();
        assert_eq!(at(START + 60).1, [], "{asked}");
    }
    let (announced, steps) = at(START + HOUR);
    assert_eq!((steps, announced.trusted().len()), (vec![Step::Announced], 2));
    assert_eq!(announced.certificate(), first.certificate(), "it does not sign yet");
    let mut seen = Vec::new();
    for hour in 1..80 {
        seen.extend(at(START + HOUR + hour * HOUR).1);
    }
    assert_eq!(seen, [Step::Switched, Step::Left]);
    assert_ne!(at(START + 100 * HOUR).0.certificate(), first.certificate());
}
