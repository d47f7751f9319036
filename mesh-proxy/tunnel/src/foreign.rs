//! Addresses of this host at which no peer reaches it. kube-proxy in ipvs mode puts the address of every service on a link of
//! its own; a hundred of them would push the host's real addresses out of what peers are told, and whoever dials one reaches
//! a service, or itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, Transport, TransportError,
    core::transport::{DialOpts, ListenerId, TransportEvent},
    multiaddr::Protocol,
};
use nix::ifaddrs::getifaddrs;

/// Links that hold addresses of services, of name servers beside pods, or of agents of the node.
const LINKS: [&str; 5] = ["kube-ipvs0", "nodelocaldns", "edgemesh0", "edge-dummy0", "selvage0"];

/// What is known of this host's addresses.
#[derive(Debug, Default)]
pub(crate) struct Foreign(HashMap<IpAddr, bool>);

impl Foreign {
    /// Whether an address that this host has got is none of its own.
    pub(crate) fn came(&mut self, ip: IpAddr) -> bool {
        if !self.0.contains_key(&ip) {
            // All of them: they come in hundreds.
            self.0.extend(addresses());
        }
        // It may be gone again.
        self.0.get(&ip).copied().unwrap_or_default()
    }

    /// The same of one that is gone.
    pub(crate) fn went(&mut self, ip: IpAddr) -> bool {
        self.0.remove(&ip).unwrap_or_default()
    }
}

fn addresses() -> impl Iterator<Item = (IpAddr, bool)> {
    // Without an answer every address counts.
    getifaddrs().into_iter().flatten().filter_map(|link| {
        let address = link.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => return None,
        };
        Some((ip, LINKS.contains(&link.interface_name.as_str())))
    })
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// A transport that does not tell of such addresses. It listens there all the same.
pub(crate) struct Own<T> {
    inner: T,
    foreign: Foreign,
}

impl<T> Own<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, foreign: Foreign::default() }
    }
}

impl<T: Transport + Unpin> Transport for Own<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        loop {
            let event = std::task::ready!(Pin::new(&mut this.inner).poll(cx));
            let foreign = match &event {
                TransportEvent::NewAddress { listen_addr, .. } => {
                    ip_of(listen_addr).is_some_and(|ip| this.foreign.came(ip))
                }
                TransportEvent::AddressExpired { listen_addr, .. } => {
                    ip_of(listen_addr).is_some_and(|ip| this.foreign.went(ip))
                }
                _ => false,
            };
            if !foreign {
                return Poll::Ready(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_this_host_are_its_own() {
        let mut foreign = Foreign::default();
        assert!(!foreign.came([127, 0, 0, 1].into()) && foreign.0.contains_key(&[127, 0, 0, 1].into()));
        let nobodys = [203, 0, 113, 199].into();
        assert!(!foreign.came(nobodys) && !foreign.went(nobodys));
    }

    #[test]
    fn one_of_a_service_is_not_told_of_until_another_link_has_it() {
        let service = [10, 96, 0, 10].into();
        let mut foreign = Foreign([(service, true)].into());
        // TCP and QUIC listen at it.
        assert!(foreign.came(service) && foreign.came(service));
        assert!(foreign.went(service));
        assert!(!foreign.came(service));
        assert_eq!(ip_of(&"/ip4/10.96.0.10/udp/15008/quic-v1".parse().unwrap()), Some(service));
        assert_eq!(ip_of(&"/dns4/a.example/tcp/1".parse().unwrap()), None);
    }
}
