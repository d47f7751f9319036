//! Why a path is not better, in one sentence that names what would change it. Pure.

use super::PunchOutcome;
use crate::nat::kind::NatKind;

/// What the sentence is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Name of this node.
    pub own: &'a str,
    /// Name of the peer.
    pub peer: &'a str,
    /// `lan`, `direct`, `punched`, `relayed`, or empty when the peer is not reached.
    pub path: &'a str,
    /// Kind of this node's NAT.
    pub own_nat: NatKind,
    /// Kind of the peer's NAT.
    pub peer_nat: NatKind,
    /// Whether UDP reaches the relays; none: not known.
    pub udp_works: Option<bool>,
    /// Punching is switched on.
    pub punch_enabled: bool,
    /// A punch is under way.
    pub punching: bool,
    /// How the last punch ended, and how many there were.
    pub last: Option<(PunchOutcome, u32)>,
    /// Relays in the registry.
    pub relays: usize,
    /// Reservations that this node holds.
    pub reservations: usize,
}

/// The sentence; empty for a path that has no better one.
pub fn why_not_better(f: &Facts<'_>) -> String {
    match f.path {
        "lan" | "direct" => String::new(),
        "punched" => format!(
            "{} and {} are both behind NATs that let the hole through; a forwarded port on either router would make \
             the path direct",
            f.own, f.peer
        ),
        "relayed" => relayed(f),
        _ => unreached(f),
    }
}

fn relayed(f: &Facts<'_>) -> String {
    let Facts { own, peer, .. } = f;
    if !f.punch_enabled {
        return "hole punching is switched off here; set tunnel.nat.punch to true".to_owned();
    }
    if !f.own_nat.can_punch(f.peer_nat) {
        return format!(
            "{}; no hole can be punched between these: open UDP 15008 on either router, or make the {} NAT map ports \
             alike for all destinations",
            both(f),
            NatKind::Symmetric.as_str()
        );
    }
    if f.punching {
        return format!("a hole punch with {peer} is under way");
    }
    if f.udp_works == Some(false) && f.last.is_some() {
        return format!(
            "UDP does not leave the network of {own}, and TCP found no way in; allow outgoing UDP 15008 there, or \
             forward TCP 15008 on either router"
        );
    }
    match f.last {
        None => format!("{peer} was reached through a relay a moment ago; a hole punch follows"),
        Some((PunchOutcome::Ok, _)) => {
            format!("the direct connection with {peer} was lost; a hole punch follows")
        }
        Some((PunchOutcome::NoAnswer, n)) => format!(
            "{peer} did not answer {} for a hole punch, it may run an older version or have punching switched off; the \
             next one follows by itself",
            times(n, "a request", "requests")
        ),
        Some((PunchOutcome::NoCandidates, _)) => format!(
            "neither side knows an outer address of the other; a second relay, or tunnel.advertise on {peer}, would \
             show one"
        ),
        Some((PunchOutcome::Failed, n)) => {
            let tries = times(n, "hole punch", "hole punches");
            match (f.own_nat, f.peer_nat) {
                (NatKind::Unknown, _) | (_, NatKind::Unknown) => format!(
                    "{tries} failed and the NAT of {} is not known yet, a firewall may drop UDP; allow UDP 15008 \
                     outgoing on both sides, or forward it on either router",
                    if f.own_nat == NatKind::Unknown { own } else { peer }
                ),
                (NatKind::None, NatKind::None) => format!(
                    "{tries} failed though neither {own} nor {peer} is behind a NAT, so a firewall is between them; \
                     allow TCP or UDP 15008"
                ),
                _ => format!(
                    "{}; this pair can be punched but {tries} failed, so a firewall may be in the way; the next one \
                     follows by itself, or open UDP 15008 on either router",
                    both(f)
                ),
            }
        }
    }
}

fn unreached(f: &Facts<'_>) -> String {
    let Facts { own, peer, .. } = f;
    if f.relays == 0 {
        return format!(
            "{peer} has no address that {own} reaches and the registry names no relay; give a node with a public \
             address tunnel.relay.enabled"
        );
    }
    if f.reservations == 0 {
        return format!(
            "{own} reaches none of the {} in the registry; allow TCP 15008 or UDP 15008 outgoing",
            times(u32::try_from(f.relays).unwrap_or(u32::MAX), "relay", "relays")
        );
    }
    format!("{peer} is at no relay and none of its addresses answers; it is probably off")
}

/// Both NATs.
fn both(f: &Facts<'_>) -> String {
    let one = |name: &str, kind: NatKind| match kind {
        NatKind::Unknown => format!("{name} is behind a NAT of unknown kind"),
        NatKind::None => format!("{name} is behind no NAT"),
        kind => format!("{name} is behind {} {} NAT", article(kind), kind.as_str()),
    };
    format!("{} and {}", one(f.peer, f.peer_nat), one(f.own, f.own_nat))
}

const fn article(kind: NatKind) -> &'static str {
    match kind {
        NatKind::AddressRestricted => "an",
        _ => "a",
    }
}

fn times(n: u32, one: &str, many: &str) -> String {
    match n {
        0 | 1 => one.to_owned(),
        n => format!("{n} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOMES: [Option<(PunchOutcome, u32)>; 6] = [
        None,
        Some((PunchOutcome::Ok, 1)),
        Some((PunchOutcome::Failed, 1)),
        Some((PunchOutcome::Failed, 7)),
        Some((PunchOutcome::NoAnswer, 2)),
        Some((PunchOutcome::NoCandidates, 1)),
    ];

    fn facts(path: &'static str) -> Facts<'static> {
        Facts {
            own: "edge-a",
            peer: "edge-b",
            path,
            own_nat: NatKind::PortRestricted,
            peer_nat: NatKind::Symmetric,
            udp_works: Some(true),
            punch_enabled: true,
            punching: false,
            last: Some((PunchOutcome::Failed, 3)),
            relays: 2,
            reservations: 2,
        }
    }

    #[test]
    fn every_combination_gives_one_sentence_that_says_something() {
        let mut different = std::collections::HashSet::new();
        for path in ["lan", "direct", "punched", "relayed", ""] {
            for own_nat in NatKind::ALL {
                for peer_nat in NatKind::ALL {
                    for last in OUTCOMES {
                        for bits in 0..16u8 {
                            let f = Facts {
                                own_nat,
                                peer_nat,
                                last,
                                udp_works: [None, Some(true), Some(false)][usize::from(bits & 3) % 3],
                                punch_enabled: bits & 4 == 0,
                                punching: bits & 8 != 0,
                                relays: usize::from(bits & 3),
                                reservations: usize::from(bits & 1),
                                ..facts(path)
                            };
                            let text = why_not_better(&f);
                            if matches!(path, "lan" | "direct") {
                                assert_eq!(text, "");
                                continue;
                            }
                            assert!(text.len() > 20 && text.len() < 300, "{f:?}: {text}");
                            assert!(
                                !text.ends_with('.') && !text.contains('\n') && !text.contains("  "),
                                "{text}"
                            );
                            different.insert(text);
                        }
                    }
                }
            }
        }
        assert!(different.len() > 60, "{}", different.len());
    }

    #[test]
    fn the_reason_and_the_remedy_are_named() {
        let relayed = why_not_better(&facts("relayed"));
        assert_eq!(
            relayed,
            "edge-b is behind a symmetric NAT and edge-a is behind a port-restricted NAT; no hole can be punched \
             between these: open UDP 15008 on either router, or make the symmetric NAT map ports alike for all \
             destinations"
        );
        let cones = Facts { peer_nat: NatKind::AddressRestricted, ..facts("relayed") };
        assert!(why_not_better(&cones).starts_with("edge-b is behind an address-restricted NAT and"));
        assert!(why_not_better(&cones).contains("3 hole punches failed"));
        let blocked = Facts { udp_works: Some(false), peer_nat: NatKind::Unknown, ..facts("relayed") };
        assert!(why_not_better(&blocked).contains("UDP does not leave the network of edge-a"));
        let alone = Facts { relays: 0, ..facts("") };
        assert!(why_not_better(&alone).contains("tunnel.relay.enabled"));
        let off = Facts { punch_enabled: false, ..facts("relayed") };
        assert!(why_not_better(&off).contains("tunnel.nat.punch"));
    }
}
