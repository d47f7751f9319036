//! Messages of NAT-PMP (RFC 6886) and PCP (RFC 6887), as far as opening ports needs them. Pure; any bytes are read
//! without a panic, and what is no answer is nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::nat::candidates::Carrier;

/// Port of a router that answers.
pub(crate) const ROUTER: u16 = 5351;
/// Port to which a router announces that it has started anew.
pub(crate) const ANNOUNCED: u16 = 5350;
/// The longest message of PCP.
pub(crate) const LONGEST: usize = 1100;

const PCP: u8 = 2;
const NAT_PMP: u8 = 0;
const RESPONSE: u8 = 0x80;
const MAP: u8 = 1;
const ANNOUNCE: u8 = 0;
const UDP: u8 = 17;
const TCP: u8 = 6;
const HEADER: usize = 24;
const MAP_BODY: usize = 36;

/// Which of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    Pcp,
    NatPmp,
}

/// A port of this host.
pub(crate) type Port = (Carrier, u16);
/// Tells this host's mappings from those of whoever had its address before.
pub(crate) type Nonce = [u8; 12];

/// A request for a port; a lifetime of 0 closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) port: Port,
    /// The outer port that would be best; 0: any.
    pub(crate) outer: u16,
    /// Seconds.
    pub(crate) lifetime: u32,
    pub(crate) nonce: Nonce,
    /// This host as the router sees it. An IPv6 address asks for a way through its firewall.
    pub(crate) host: IpAddr,
}

/// Why a router opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// It speaks another version, or not this one.
    Version,
    /// It is told not to.
    NotAuthorized,
    /// It has no more, or no outer address now: later, perhaps.
    Unable,
    /// Anything else.
    Other,
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Says {
    /// A port is open for so many seconds, or closed (0). NAT-PMP names the outer address in a message of its own.
    Open { port: Port, outer: u16, address: Option<IpAddr>, lifetime: u32, nonce: Option<Nonce> },
    /// Its outer address.
    Address(Ipv4Addr),
    /// It lives.
    Alive,
    /// It opens nothing; of which port, if it says so.
    Refused(Option<Port>, Refusal),
}

/// A message of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Answer {
    pub(crate) dialect: Dialect,
    /// Seconds since the router lost its mappings. Absent where it says nothing about that.
    pub(crate) epoch: Option<u32>,
    pub(crate) says: Says,
}

/// An address in the form in which PCP has both families.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn header(op: u8, lifetime: u32, host: IpAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + MAP_BODY);
    out.extend([PCP, op, 0, 0]);
    out.extend(lifetime.to_be_bytes());
    out.extend(octets(host));
    out
}

/// The request for a port.
pub(crate) fn ask(dialect: Dialect, ask: &Ask) -> Vec<u8> {
    let (carrier, inner) = ask.port;
    match dialect {
        Dialect::Pcp => {
            let mut out = header(MAP, ask.lifetime, ask.host);
            out.extend(ask.nonce);
            out.extend([if carrier == Carrier::Udp { UDP } else { TCP }, 0, 0, 0]);
            out.extend(inner.to_be_bytes());
            out.extend(ask.outer.to_be_bytes());
            // Whatever outer address it has, of the same family.
            out.extend(octets(match ask.host {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            }));
            out
        }
        Dialect::NatPmp => {
            let mut out = vec![NAT_PMP, if carrier == Carrier::Udp { 1 } else { 2 }, 0, 0];
            out.extend(inner.to_be_bytes());
            // To close a port, the outer one is 0 as well.
            out.extend(if ask.lifetime == 0 { [0, 0] } else { ask.outer.to_be_bytes() });
            out.extend(ask.lifetime.to_be_bytes());
            out
        }
    }
}

/// Asks whether the router lives, since when, and NAT-PMP for its outer address.
pub(crate) fn hello(dialect: Dialect, host: IpAddr) -> Vec<u8> {
    match dialect {
        Dialect::Pcp => header(ANNOUNCE, 0, host),
        Dialect::NatPmp => vec![NAT_PMP, 0],
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ip_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

/// Reads what a router sent.
pub(crate) fn read(bytes: &[u8]) -> Option<Answer> {
    let (version, op) = (*bytes.first()?, *bytes.get(1)?);
    if bytes.len() > LONGEST || op & RESPONSE == 0 {
        return None;
    }
    match version {
        PCP => read_pcp(bytes, op & !RESPONSE),
        NAT_PMP => read_nat_pmp(bytes, op & !RESPONSE),
        _ => None,
    }
}

fn read_pcp(bytes: &[u8], op: u8) -> Option<Answer> {
    let (result, lifetime, epoch) = (*bytes.get(3)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    let body = bytes.get(HEADER..)?;
    let carrier = match body.get(12) {
        Some(&UDP) => Some(Carrier::Udp),
        Some(&TCP) => Some(Carrier::Tcp),
        _ => None,
    };
    let port = carrier.filter(|_| op == MAP).zip(u16_at(body, 16)).filter(|(_, inner)| *inner != 0);
    let refusal = match result {
        0 => None,
        1 => Some(Refusal::Version),
        2 => Some(Refusal::NotAuthorized),
        7 | 8 | 10 | 11 => Some(Refusal::Unable),
        _ => Some(Refusal::Other),
    };
    let says = match (refusal, op) {
        (Some(why), _) => Says::Refused(port, why),
        (None, ANNOUNCE) => Says::Alive,
        (None, MAP) => Says::Open {
            port: port?,
            outer: u16_at(body, 18)?,
            address: Some(ip_at(body, 20)?),
            lifetime,
            nonce: body.get(..12).and_then(|n| n.try_into().ok()),
        },
        _ => return None,
    };
    // A router that does not know the version says so with whatever it has for a clock.
    let epoch = (refusal != Some(Refusal::Version)).then_some(epoch);
    Some(Answer { dialect: Dialect::Pcp, epoch, says })
}

fn read_nat_pmp(bytes: &[u8], op: u8) -> Option<Answer> {
    let result = u16_at(bytes, 2)?;
    let refusal = match result {
        0 => None,
        1 | 5 => Some(Refusal::Version),
        2 => Some(Refusal::NotAuthorized),
        3 | 4 => Some(Refusal::Unable),
        _ => Some(Refusal::Other),
    };
    let carrier = match op {
        1 => Some(Carrier::Udp),
        2 => Some(Carrier::Tcp),
        _ => None,
    };
    let port = carrier.zip(u16_at(bytes, 8)).filter(|(_, inner)| *inner != 0);
    let epoch = if refusal == Some(Refusal::Version) { None } else { u32_at(bytes, 4) };
    let says = match (refusal, op) {
        (Some(why), _) => Says::Refused(port, why),
        (None, 0) => Says::Address(Ipv4Addr::from(u32_at(bytes, 8)?)),
        (None, 1 | 2) => Says::Open {
            port: port?,
            outer: u16_at(bytes, 10)?,
            address: None,
            lifetime: u32_at(bytes, 12)?,
            nonce: None,
        },
        _ => return None,
    };
    Some(Answer { dialect: Dialect::NatPmp, epoch, says })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a router would answer to a request, for the tests of the state machine too.
    pub(in crate::nat::mapping) fn open(
        request: &[u8],
        epoch: u32,
        outer: u16,
        address: IpAddr,
        lifetime: u32,
    ) -> Vec<u8> {
        let mut out;
        if request[0] == PCP {
            out = vec![PCP, request[1] | RESPONSE, 0, 0];
            out.extend(lifetime.to_be_bytes());
            out.extend(epoch.to_be_bytes());
            out.extend([0; 12]);
            if request[1] == MAP {
                out.extend(&request[24..42]);
                out.extend(outer.to_be_bytes());
                out.extend(octets(address));
            }
            return out;
        }
        out = vec![NAT_PMP, request[1] | RESPONSE, 0, 0];
        out.extend(epoch.to_be_bytes());
        if request[1] == 0 {
            out.extend(&octets(address)[12..]);
        } else {
            out.extend(&request[4..6]);
            out.extend(outer.to_be_bytes());
            out.extend(lifetime.to_be_bytes());
        }
        out
    }

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

    fn some_ask(carrier: Carrier) -> Ask {
        Ask {
            port: (carrier, 15008),
            outer: 40000,
            lifetime: 3600,
            nonce: [7; 12],
            host: Ipv4Addr::new(10, 0, 0, 2).into(),
        }
    }

    #[test]
    fn requests_are_as_the_rfcs_draw_them() {
        let pcp = ask(Dialect::Pcp, &some_ask(Carrier::Tcp));
        assert_eq!(pcp.len(), 60);
        assert_eq!(pcp[..8], [2, 1, 0, 0, 0, 0, 0x0e, 0x10]);
        assert_eq!(pcp[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
        assert_eq!(pcp[24..44], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 0, 0, 0, 0x3a, 0xa0, 0x9c, 0x40]);
        assert_eq!(hello(Dialect::Pcp, ADDRESS).len(), HEADER);
        let pmp = ask(Dialect::NatPmp, &some_ask(Carrier::Udp));
        assert_eq!(pmp, [0, 1, 0, 0, 0x3a, 0xa0, 0x9c, 0x40, 0, 0, 0x0e, 0x10]);
        let close = ask(Dialect::NatPmp, &Ask { lifetime: 0, ..some_ask(Carrier::Tcp) });
        assert_eq!(close, [0, 2, 0, 0, 0x3a, 0xa0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(hello(Dialect::NatPmp, ADDRESS), [0, 0]);
    }

    #[test]
    fn answers_are_read() {
        for dialect in [Dialect::Pcp, Dialect::NatPmp] {
            for carrier in [Carrier::Udp, Carrier::Tcp] {
                let answer = read(&open(&ask(dialect, &some_ask(carrier)), 77, 40001, ADDRESS, 900)).unwrap();
                let pcp = dialect == Dialect::Pcp;
                let says = Says::Open {
                    port: (carrier, 15008),
                    outer: 40001,
                    address: pcp.then_some(ADDRESS),
                    lifetime: 900,
                    nonce: pcp.then_some([7; 12]),
                };
                assert_eq!(answer, Answer { dialect, epoch: Some(77), says });
            }
        }
        let says = |bytes: &[u8]| read(bytes).map(|a| (a.epoch, a.says));
        let alive = open(&hello(Dialect::Pcp, ADDRESS), 5, 0, ADDRESS, 0);
        assert_eq!(says(&alive), Some((Some(5), Says::Alive)));
        let address = open(&hello(Dialect::NatPmp, ADDRESS), 5, 0, ADDRESS, 0);
        assert_eq!(says(&address), Some((Some(5), Says::Address(Ipv4Addr::new(203, 0, 113, 9)))));
        // A router that only knows NAT-PMP, asked for PCP.
        assert_eq!(says(&[0, 0x81, 0, 1, 0, 0, 0, 9]), Some((None, Says::Refused(None, Refusal::Version))));
        let mut refused = open(&ask(Dialect::Pcp, &some_ask(Carrier::Udp)), 5, 0, ADDRESS, 30);
        refused[3] = 2;
        let why = Says::Refused(Some((Carrier::Udp, 15008)), Refusal::NotAuthorized);
        assert_eq!(says(&refused), Some((Some(5), why)));
    }

    #[test]
    fn a_way_through_the_firewall_of_ipv6_is_asked_for_with_that_address() {
        let host: IpAddr = "2001:db8::7".parse().unwrap();
        let request = ask(Dialect::Pcp, &Ask { host, ..some_ask(Carrier::Udp) });
        assert_eq!(request.len(), 60);
        assert_eq!((&request[8..24], &request[44..60]), (&octets(host)[..], &[0; 16][..]));
        let answer = read(&open(&request, 7, 15008, host, 600)).unwrap();
        let Says::Open { address, outer, .. } = answer.says else { panic!("{answer:?}") };
        assert_eq!((address, outer), (Some(host), 15008));
    }

    #[test]
    fn fuzz_what_routers_send() {
        let seeds: Vec<Vec<u8>> = [Dialect::Pcp, Dialect::NatPmp]
            .into_iter()
            .flat_map(|d| [ask(d, &some_ask(Carrier::Tcp)), hello(d, ADDRESS)])
            .flat_map(|request| [open(&request, 1, 2, ADDRESS, 3), request])
            .collect();
        mesh_testkit::fuzz::run("router_messages", &seeds, |bytes| {
            let answer = read(bytes);
            if let Some(Answer { says: Says::Open { port, .. }, .. }) = answer {
                assert_ne!(port.1, 0);
            }
            answer.map(|a| (a.dialect, std::mem::discriminant(&a.says), a.epoch.is_some()))
        });
    }
}
