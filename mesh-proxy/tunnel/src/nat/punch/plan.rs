//! Who dials what, when. Pure.
//!
//! With QUIC both sides dial from their listen ports with a handshake each, so roles do not matter: the later of two
//! packets that cross finds the way open. A side behind a symmetric NAT starts a little later than the other, whose
//! packet has then told its own NAT that this host may come in, from whatever port.
//!
//! With TCP one side must be the client of the encryption. It starts first, so that the other's SYN finds it
//! connecting: a simultaneous open then ends on that socket and not at its listener, where it would be a server too.
//! A symmetric NAT makes its side the client, because only its packets can set the mapping.

use std::{net::SocketAddr, time::Duration};

use crate::nat::{candidates::Carrier, kind::NatKind};

/// What one side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) udp: NatKind,
    pub(crate) tcp: NatKind,
    pub(crate) candidates: Vec<(Carrier, SocketAddr)>,
}

/// Who is client of the encryption on a connection that both dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// One dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) after: Duration,
    pub(crate) carrier: Carrier,
    pub(crate) role: Role,
    pub(crate) to: Vec<SocketAddr>,
    /// Dialled again when it fails at once: the other side's NAT may answer with a reset before it is open.
    pub(crate) again: bool,
    /// How often it was dialled before.
    pub(crate) round: u32,
}

/// Head start of the side whose packet must come first.
const LATER: Duration = Duration::from_millis(120);
/// The server of a TCP connection starts this much after its client: more than what busy machines are late by. Were it
/// first, its SYN could meet the client's listener instead of its socket, and both ends would be servers.
const SERVER_LATER: Duration = Duration::from_millis(200);
/// A handshake whose first packet was lost is not waited for: QUIC repeats it after a second.
const REPEATS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(350), Duration::from_millis(1_200)];

/// The dials of one side, in the order of their start. `swaps` gives the sides of a TCP connection the other roles where
/// the NATs leave a choice: what one order of packets cannot open, the other may.
pub(crate) fn plan(mine: &Side, theirs: &Side, leads: bool, swaps: bool) -> Vec<Shot> {
    let to = |carrier| {
        // An address that both sides have is this host's own: two sites use the same prefix.
        let all = theirs.candidates.iter().filter(move |(c, _)| *c == carrier);
        let all = all.filter(|candidate| !mine.candidates.contains(candidate));
        let both = |at: &SocketAddr| mine.candidates.iter().any(|(_, own)| own.is_ipv4() == at.is_ipv4());
        all.map(|(_, at)| *at).filter(both).collect::<Vec<_>>()
    };
    let mut shots = Vec::new();
    let udp = to(Carrier::Udp);
    if !udp.is_empty() {
        let wait = if is_last(mine.udp, theirs.udp) { LATER } else { Duration::ZERO };
        for repeat in REPEATS {
            let to = udp.clone();
            let after = wait + repeat;
            shots.push(Shot { after, carrier: Carrier::Udp, role: Role::Client, to, again: false, round: 0 });
        }
    }
    let tcp = to(Carrier::Tcp);
    if !tcp.is_empty() {
        let role = if is_last(mine.tcp, theirs.tcp) {
            Role::Client
        } else if is_last(theirs.tcp, mine.tcp) || leads == swaps {
            Role::Server
        } else {
            Role::Client
        };
        let after = match role {
            Role::Client if is_last(mine.tcp, theirs.tcp) => LATER,
            Role::Server if !is_last(theirs.tcp, mine.tcp) => SERVER_LATER,
            _ => Duration::ZERO,
        };
        // One by one: an address that leads nowhere must not keep the others from being dialled again.
        let one = |at| Shot { after, carrier: Carrier::Tcp, role, to: vec![at], again: true, round: 0 };
        shots.extend(tcp.into_iter().map(one));
    }
    shots.sort_by_key(|s| s.after);
    shots
}

/// Whether the side behind `mine` must send after the one behind `theirs`.
fn is_last(mine: NatKind, theirs: NatKind) -> bool {
    mine == NatKind::Symmetric && theirs != NatKind::Symmetric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(udp: NatKind, tcp: NatKind, candidates: &[(Carrier, &str)]) -> Side {
        Side { udp, tcp, candidates: candidates.iter().map(|(c, a)| (*c, a.parse().unwrap())).collect() }
    }

    fn two(mine: NatKind, theirs: NatKind) -> (Side, Side) {
        let near = side(mine, mine, &[(Carrier::Udp, "192.0.2.1:1"), (Carrier::Tcp, "192.0.2.1:1")]);
        let far = side(theirs, theirs, &[(Carrier::Udp, "192.0.2.2:2"), (Carrier::Tcp, "192.0.2.2:2")]);
        (near, far)
    }

    fn first(shots: &[Shot], carrier: Carrier) -> (Duration, Role) {
        shots.iter().find(|s| s.carrier == carrier).map(|s| (s.after, s.role)).unwrap()
    }

    #[test]
    fn one_side_is_client_and_starts_first_whatever_the_nats() {
        for mine in NatKind::ALL {
            for theirs in NatKind::ALL {
                let (near, far) = two(mine, theirs);
                let (a, b) = (plan(&near, &far, true, false), plan(&far, &near, false, false));
                let (ta, tb) = (first(&a, Carrier::Tcp), first(&b, Carrier::Tcp));
                assert_ne!(ta.1, tb.1, "{mine:?} {theirs:?}");
                let again = [plan(&near, &far, true, true), plan(&far, &near, false, true)];
                let again = again.map(|side| first(&side, Carrier::Tcp));
                let fixed = (mine == NatKind::Symmetric) != (theirs == NatKind::Symmetric);
                let roles = again.map(|(_, role)| role);
                let other = "other roles where there is a choice";
                assert_eq!(roles == [ta.1, tb.1], fixed, "{other}: {mine:?} {theirs:?}");
                assert_eq!(roles == [tb.1, ta.1], !fixed);
                let server = again.into_iter().find(|(_, role)| *role == Role::Server).unwrap();
                assert_eq!(server.0, if fixed { Duration::ZERO } else { SERVER_LATER });
                let (client, server) = if ta.1 == Role::Client { (ta.0, tb.0) } else { (tb.0, ta.0) };
                match (mine, theirs) {
                    (NatKind::Symmetric, NatKind::Symmetric) => {}
                    (NatKind::Symmetric, _) => assert!(ta.1 == Role::Client && client > server),
                    (_, NatKind::Symmetric) => assert!(tb.1 == Role::Client && client > server),
                    _ => assert!(client < server),
                }
                let (ua, ub) = (first(&a, Carrier::Udp), first(&b, Carrier::Udp));
                assert!(ua.1 == Role::Client && ub.1 == Role::Client, "each has a handshake of its own");
                match (mine == NatKind::Symmetric, theirs == NatKind::Symmetric) {
                    (true, false) => assert!(ua.0 > ub.0),
                    (false, true) => assert!(ua.0 < ub.0),
                    _ => assert_eq!(ua.0, ub.0),
                }
            }
        }
    }

    #[test]
    fn families_that_this_host_has_not_are_left_out() {
        let mine = side(NatKind::None, NatKind::None, &[(Carrier::Udp, "192.0.2.1:1")]);
        let theirs = side(
            NatKind::None,
            NatKind::None,
            &[(Carrier::Udp, "[2001:db8::1]:1"), (Carrier::Tcp, "[2001:db8::1]:1")],
        );
        assert_eq!(plan(&mine, &theirs, true, false), []);
    }

    #[test]
    fn this_hosts_own_address_is_not_dialled_and_each_other_one_is_a_dial_of_its_own() {
        let own = (Carrier::Tcp, "192.168.1.10:15008");
        let mine = side(NatKind::Unknown, NatKind::Unknown, &[(Carrier::Tcp, "203.0.113.1:15008"), own]);
        let theirs = [(Carrier::Tcp, "203.0.113.2:15008"), own, (Carrier::Tcp, "10.0.0.7:15008")];
        let shots = plan(&mine, &side(NatKind::Unknown, NatKind::Unknown, &theirs), true, false);
        let dialled: Vec<_> = shots.iter().map(|s| (s.to.len(), s.to[0].to_string())).collect();
        assert_eq!(dialled, [(1, "203.0.113.2:15008".to_owned()), (1, "10.0.0.7:15008".to_owned())]);
    }
}
