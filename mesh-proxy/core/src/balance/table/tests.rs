use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::endpoint::EndpointEntry;

fn endpoints(n: usize, weight: impl Fn(usize) -> u32) -> Vec<ClusterEndpoint> {
    (0..n)
        .map(|i| {
            let addr: SocketAddr = format!("10.1.{}.{}:80", i / 250, i % 250 + 1).parse().unwrap();
            let endpoint = Arc::new(EndpointEntry::outside(addr.ip()));
            ClusterEndpoint { addr, weight: weight(i), endpoint }
        })
        .collect()
}

const KINDS: [HashTableKind; 3] = [
    HashTableKind::Ring { minimum: 1024 },
    HashTableKind::Ring { minimum: 16_384 },
    HashTableKind::Maglev { size: 65_537 },
];
const KEYS: u64 = 20_000;

fn build(kind: HashTableKind, list: &[ClusterEndpoint]) -> HashTable {
    let members: Vec<u32> = (0..list.len() as u32).collect();
    HashTable::build(kind, list, &members)
}

fn addr_of(table: &HashTable, list: &[ClusterEndpoint], key: u64) -> SocketAddr {
    list[table.find(mix(key + 1), |_| true).unwrap()].addr
}

#[test]
fn keys_of_an_endpoint_that_goes_are_spread_and_few_others_move() {
    for kind in KINDS {
        let before = endpoints(20, |_| 1);
        let mut after = before.clone();
        let gone = after.remove(7).addr;
        let (a, b) = (build(kind, &before), build(kind, &after));
        let (mut moved, mut own, mut new_homes) = (0, 0, std::collections::BTreeSet::new());
        for key in 0..KEYS {
            let (from, to) = (addr_of(&a, &before, key), addr_of(&b, &after, key));
            if from == gone {
                own += 1;
                new_homes.insert(to);
            } else if from != to {
                moved += 1;
            }
        }
        // A ring's endpoints share its least size anew, which moves a few points; Maglev moves a few slots.
        let limit = KEYS / 20;
        assert!(moved <= limit, "{kind:?}: {moved} of {KEYS} moved without need");
        assert!((KEYS / 40..KEYS / 10).contains(&own), "{kind:?}: {own}");
        assert!(new_homes.len() >= 15, "{kind:?}: all on {new_homes:?}");
    }
}

#[test]
fn a_new_endpoint_takes_about_its_share() {
    for kind in KINDS {
        let after = endpoints(21, |_| 1);
        let before = after[..20].to_vec();
        let (a, b) = (build(kind, &before), build(kind, &after));
        let changed =
            (0..KEYS).filter(|k| addr_of(&a, &before, *k) != addr_of(&b, &after, *k)).count() as u64;
        assert!(
            (KEYS / 42..KEYS / 10).contains(&changed),
            "{kind:?}: {changed} of {KEYS}, ideal {}",
            KEYS / 21
        );
    }
}

#[test]
fn the_order_of_endpoints_does_not_matter() {
    for kind in KINDS {
        let list = endpoints(9, |_| 1);
        let mut reversed = list.clone();
        reversed.reverse();
        let (a, b) = (build(kind, &list), build(kind, &reversed));
        assert!((0..1000).all(|k| addr_of(&a, &list, k) == addr_of(&b, &reversed, k)), "{kind:?}");
    }
}

#[test]
fn shares_follow_the_weights() {
    for kind in KINDS {
        let list = endpoints(4, |i| if i == 0 { 3 } else { 1 });
        let table = build(kind, &list);
        let heavy = (0..KEYS).filter(|k| addr_of(&table, &list, *k) == list[0].addr).count() as u64;
        assert!(
            (KEYS * 42 / 100..KEYS * 58 / 100).contains(&heavy),
            "{kind:?}: {heavy} of {KEYS}, ideal a half"
        );
    }
}

#[test]
fn a_table_is_bounded_and_any_size_ends() {
    let list = endpoints(300, |i| if i == 0 { 1 } else { 1_000_000 });
    assert!(build(HashTableKind::Ring { minimum: u32::MAX }, &list).len() <= MAX_RING);
    let few = endpoints(3, |_| 1);
    // Not prime, and none: the next prime is taken.
    for (size, len) in [(0, 2), (100, 101), (65_537, 65_537)] {
        assert_eq!(build(HashTableKind::Maglev { size }, &few).len(), len);
    }
    assert_eq!(build(HashTableKind::Maglev { size: u32::MAX }, &few).len(), MAX_MAGLEV as usize);
    assert!(build(HashTableKind::Maglev { size: 101 }, &[]).is_empty());
    assert_eq!(build(HashTableKind::Ring { minimum: 1024 }, &[]).find(1, |_| true), None);
}
