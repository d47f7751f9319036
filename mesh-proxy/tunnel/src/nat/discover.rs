//! Where peers are when the registry does not know it: mDNS on the LAN, and Kademlia under a name of our own, which asks
//! the nodes that are reached where they have seen a peer. What is found is only another address to try: who answers
//! there must prove the peer's key, and peers that are not in the view are not looked at.

use std::{
    collections::HashMap,
    io,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    kad::{self, store::MemoryStore},
    mdns,
    multiaddr::Protocol,
};

use super::candidates::{may_be_dialled, socket_of};

/// Name of our Kademlia: no node of another network speaks it.
const KAD: StreamProtocol = StreamProtocol::new("/selvage/kad/1");
/// Peers at one distance. The tables of all 256 distances are made at once, 87 KiB for each place: Kademlia's usual 20
/// would cost 1.7 MiB, for networks whose members come and go by the minute.
const KAD_BUCKET: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// A query that takes longer helps nobody who waits.
const KAD_QUERY: Duration = Duration::from_secs(4);
/// How often the LAN is asked when nothing happens.
const MDNS_QUERY: Duration = Duration::from_secs(30);
/// Found addresses that are kept for one peer.
const MAX_ADDRESSES: usize = 8;
/// Time for which an address is tried that Kademlia found.
pub(super) const KAD_AGE: Duration = Duration::from_secs(600);
/// The same for mDNS, which says itself when an answer is old.
pub(super) const MDNS_AGE: Duration = Duration::from_secs(3_600);

pub(super) fn mdns(own: PeerId) -> io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { query_interval: MDNS_QUERY, ..mdns::Config::default() };
    mdns::tokio::Behaviour::new(config, own)
}

pub(super) fn kad(own: PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(KAD);
    // Nothing is stored for others and nothing is asked without a reason.
    config
        .set_kbucket_size(KAD_BUCKET)
        .set_query_timeout(KAD_QUERY)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_periodic_bootstrap_interval(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_max_packet_size(16 << 10);
    let mut kad = kad::Behaviour::with_config(own, MemoryStore::new(own), config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// An address as it is dialled: without the peer id at its end; none if nobody should send anything there.
pub(super) fn usable(address: &Multiaddr, loopback: bool) -> Option<Multiaddr> {
    let (_, at) = socket_of(address)?;
    let bare: Multiaddr = address.iter().filter(|p| !matches!(p, Protocol::P2p(_))).collect();
    may_be_dialled(at, loopback).then_some(bare)
}

/// Addresses that were found, by peer.
#[derive(Debug, Default)]
pub(super) struct Found {
    peers: HashMap<PeerId, Vec<(Multiaddr, Instant)>>,
}

impl Found {
    /// Notes an address until `until`; says whether it is new. The newest come first.
    pub(super) fn add(&mut self, peer: PeerId, address: Multiaddr, until: Instant) -> bool {
        let known = self.peers.entry(peer).or_default();
        let before = known.len();
        known.retain(|(a, _)| *a != address);
        let new = known.len() == before;
        known.insert(0, (address, until));
        known.truncate(MAX_ADDRESSES);
        new
    }

    pub(super) fn remove(&mut self, peer: &PeerId, address: &Multiaddr) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.retain(|(a, _)| a != address);
        }
    }

    pub(super) fn of(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.peers.get(peer).into_iter().flatten().map(|(a, _)| a)
    }

    /// Forgets what is old and whom nobody wants.
    pub(super) fn retain(&mut self, wanted: impl Fn(&PeerId) -> bool, now: Instant) {
        self.peers.retain(|peer, known| {
            known.retain(|(_, until)| *until > now);
            !known.is_empty() && wanted(peer)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_bounded_and_ends() {
        let (mut found, peer, now) = (Found::default(), PeerId::random(), Instant::now());
        let address = |n: u16| format!("/ip4/10.0.0.1/tcp/{n}").parse::<Multiaddr>().unwrap();
        let until = now + Duration::from_secs(10);
        for n in 1..100 {
            assert!(found.add(peer, address(n), until));
        }
        assert_eq!(found.of(&peer).count(), MAX_ADDRESSES);
        assert_eq!(found.of(&peer).next(), Some(&address(99)));
        assert!(!found.add(peer, address(98), until + Duration::from_secs(10)));
        found.retain(|_| true, until);
        assert_eq!(found.of(&peer).collect::<Vec<_>>(), [&address(98)]);
        found.retain(|_| false, now);
        assert!(found.peers.is_empty());
    }

    #[test]
    fn addresses_that_lead_nowhere_are_not_found() {
        let id = PeerId::random();
        let one = |a: &str| usable(&format!("{a}/p2p/{id}").parse().unwrap(), false).map(|a| a.to_string());
        assert_eq!(one("/ip4/10.0.0.1/udp/1/quic-v1").as_deref(), Some("/ip4/10.0.0.1/udp/1/quic-v1"));
        assert_eq!(one("/ip4/10.0.0.1/tcp/1").as_deref(), Some("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(one("/ip4/127.0.0.1/tcp/1"), None);
        assert_eq!(one("/dns4/edge.example/tcp/1"), None);
        assert_eq!(one("/ip4/10.0.0.1/tcp/1/ws"), None);
    }
}
