//! What can be done to a running world: cut, lose, slow down, delay.
//!
//! A fault sits at the far end of a place's link, where the network is and not the machine: a sender there
//! sees packets vanish, as on a real link, and never an error from its own kernel. The kernel here has no
//! netem; loss is a random filter, rate a token bucket, delay a relay program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
};

use serde::{Deserialize, Serialize};

use super::{
    Kind, LabError, Nat, PlaceInfo, World,
    plan::Uplink,
    relay,
    state::{read_json, write_json},
};

/// One thing that is wrong with the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// Nothing passes between two places; `to` absent: nothing passes the place's link at all.
    Cut {
        /// One side.
        at: String,
        /// The other.
        to: Option<String>,
    },
    /// A share of the packets on a place's link vanishes, in each direction.
    Loss {
        /// The place.
        at: String,
        /// In percent.
        percent: f64,
    },
    /// A place's link carries no more than that, in each direction.
    Rate {
        /// The place.
        at: String,
        /// Kilobits per second.
        kbit: u32,
        /// How long a packet may wait in the queue.
        queue_ms: u32,
    },
    /// Every packet on a place's link takes longer, in each direction.
    Delay {
        /// The place.
        at: String,
        /// One way.
        ms: u32,
    },
}

impl Fault {
    fn at(&self) -> &str {
        match self {
            Self::Cut { at, .. } | Self::Loss { at, .. } | Self::Rate { at, .. } | Self::Delay { at, .. } => {
                at
            }
        }
    }

    fn touches(&self, a: &str, b: Option<&str>) -> bool {
        match (self, b) {
            (Self::Cut { at, to }, Some(b)) => {
                (at == a && to.as_deref() == Some(b)) || (at == b && to.as_deref() == Some(a))
            }
            (_, Some(_)) => false,
            (Self::Cut { at, to }, None) => at == a || to.as_deref() == Some(a),
            (_, None) => self.at() == a,
        }
    }

    /// The same kind of fault at the same place: a later one replaces it.
    fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cut { .. }, Self::Cut { .. }) => self == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other) && self.at() == other.at(),
        }
    }
}

impl World {
    /// Cuts two places off each other; the first off everything when there is no second.
    ///
    /// # Errors
    /// When there is no such place, or the two share no link that could be cut.
    pub fn cut(&self, a: &str, b: Option<&str>) -> Result<(), LabError> {
        let (at, to) = (a.to_owned(), b.filter(|b| *b != "all").map(str::to_owned));
        self.add_fault(Fault::Cut { at, to })
    }

    /// Loses that share of a place's packets, 0 to 100; 0 ends it.
    ///
    /// # Errors
    /// When there is no such place or the share is out of range.
    pub fn loss(&self, at: &str, percent: f64) -> Result<(), LabError> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(LabError::Invalid(vec![format!("loss of {percent} % is not between 0 and 100")]));
        }
        self.add_fault(Fault::Loss { at: at.to_owned(), percent })
    }

    /// Limits a place's link; 0 ends it.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn rate(&self, at: &str, kbit: u32, queue_ms: u32) -> Result<(), LabError> {
        self.add_fault(Fault::Rate { at: at.to_owned(), kbit, queue_ms })
    }

    /// Makes a place's link longer; 0 ends it.
    ///
    /// # Errors
    /// When there is no such place, or no TUN device can be had.
    pub fn delay(&self, at: &str, ms: u32) -> Result<(), LabError> {
        self.add_fault(Fault::Delay { at: at.to_owned(), ms })
    }

    /// Ends every fault.
    ///
    /// # Errors
    /// When the filters cannot be changed.
    pub fn heal(&self) -> Result<(), LabError> {
        self.change_faults(|faults| faults.clear())
    }

    /// Ends the faults of one place, or the cut between two.
    ///
    /// # Errors
    /// When the filters cannot be changed.
    pub fn heal_one(&self, a: &str, b: Option<&str>) -> Result<(), LabError> {
        self.place(a)?;
        self.change_faults(|faults| faults.retain(|f| !f.touches(a, b)))
    }

    /// The faults that hold now.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        read_json(&self.files().faults()).unwrap_or_default()
    }

    fn add_fault(&self, fault: Fault) -> Result<(), LabError> {
        // Refuses what cannot be applied before anything is written down.
        self.filter_of(&fault)?;
        self.change_faults(|faults| {
            faults.retain(|f| !fault.replaces(f));
            faults.push(fault);
        })
    }

    fn change_faults(&self, change: impl FnOnce(&mut Vec<Fault>)) -> Result<(), LabError> {
        let path = self.files().dir.join("faults.lock");
        let lock = File::create(&path).map_err(LabError::file("create", &path))?;
        lock.lock().map_err(LabError::file("lock", &path))?;
        let before = self.faults();
        let mut now = before.clone();
        change(&mut now);
        now.retain(|f| !matches!(f, Fault::Rate { kbit: 0, .. } | Fault::Delay { ms: 0, .. }));
        now.retain(|f| !matches!(f, Fault::Loss { percent, .. } if *percent == 0.0));
        self.apply_filters(&before, &now)?;
        self.apply_rates(&before, &now)?;
        relay::apply(self, &delays(&before), &delays(&now))?;
        write_json(&self.files().faults(), &now)
    }

    fn apply_filters(&self, before: &[Fault], now: &[Fault]) -> Result<(), LabError> {
        let mut rules: BTreeMap<(String, bool), [String; 2]> = BTreeMap::new();
        for fault in before {
            if let Some((uplink, _)) = self.filter_of(fault)? {
                rules.entry((uplink.outer.clone(), uplink.bridged)).or_default();
            }
        }
        for fault in now {
            if let Some((uplink, [inbound, outbound])) = self.filter_of(fault)? {
                let [pre, post] = rules.entry((uplink.outer.clone(), uplink.bridged)).or_default();
                for (text, key, filters) in [(pre, "iifname", inbound), (post, "oifname", outbound)] {
                    for filter in filters {
                        let _infallible =
                            writeln!(text, "  {key} \"{}\" {filter} drop;", uplink.outer_device);
                    }
                }
            }
        }
        for ((outer, bridged), [pre, post]) in rules {
            let family = if bridged { "bridge" } else { "inet" };
            let text = format!(
                "table {family} lab\ndelete table {family} lab\ntable {family} lab {{\n\
                 chain pre {{ type filter hook prerouting priority -310; policy accept;\n{pre}}}\n\
                 chain post {{ type filter hook postrouting priority 310; policy accept;\n{post}}}\n}}\n"
            );
            self.run_in(&outer, "nft", &["-f", "-"], &text)?;
        }
        Ok(())
    }

    /// Where a fault's filters sit, and what they match from the place and to it.
    #[expect(clippy::type_complexity, reason = "one private caller; a type of its own would say less")]
    fn filter_of(&self, fault: &Fault) -> Result<Option<(Uplink, [Vec<String>; 2])>, LabError> {
        match fault {
            Fault::Loss { at, percent } => {
                let uplink = self.uplink(at)?;
                let share = format!("numgen random mod 100000 < {}", (percent * 1000.0).round());
                Ok(Some((uplink, [vec![share.clone()], vec![share]])))
            }
            Fault::Cut { at, to: None } => {
                Ok(Some((self.uplink(at)?, [vec![String::new()], vec![String::new()]])))
            }
            Fault::Cut { at, to: Some(to) } => self.cut_between(at, to).map(Some),
            Fault::Rate { at, .. } => self.uplink(at).map(|_| None),
            Fault::Delay { at, .. } => relay::link_of(self, at).map(|_| None),
        }
    }

    fn cut_between(&self, a: &str, b: &str) -> Result<(Uplink, [Vec<String>; 2]), LabError> {
        let (mut a, mut b) = (self.place(a)?.info(), self.place(b)?.info());
        if b.kind == Kind::Pod && a.kind != Kind::Pod {
            (a, b) = (b, a);
        }
        let all = || [vec![String::new()], vec![String::new()]];
        if a.kind == Kind::Pod && a.node.as_ref() == Some(&b.name) {
            return Ok((self.uplink(&a.name)?, all()));
        }
        if a.kind == Kind::Pod && a.node != b.node {
            return Err(LabError::Invalid(vec![format!(
                "{} and {} share no link: cut their nodes, or the pod from all",
                a.name, b.name
            )]));
        }
        // Inside a site the router is everywhere: the node's own link is the one to cut.
        if a.kind == Kind::Router && b.site.as_ref() == Some(&a.name) {
            return Ok((self.uplink(&b.name)?, all()));
        }
        if b.kind == Kind::Router && a.site.as_ref() == Some(&b.name) {
            return Ok((self.uplink(&a.name)?, all()));
        }
        let seen = self.seen_from(a, b);
        let rule = |key: &str| seen.iter().map(|s| format!("ip {key} {s}")).collect();
        Ok((self.uplink(&a.name)?, [rule("daddr"), rule("saddr")]))
    }

    /// The addresses by which packets between two places carry the second.
    fn seen_from(&self, a: &PlaceInfo, b: &PlaceInfo) -> BTreeSet<String> {
        let own = [Some(b.address.to_string()), b.pods.map(|p| p.to_string())];
        let mut seen: BTreeSet<String> = own.into_iter().flatten().collect();
        seen.insert(b.public_address.to_string());
        if b.kind == Kind::Router {
            let site = self.spec().sites.get(&b.name).filter(|s| s.nat.kind == Nat::None);
            seen.extend(site.map(|s| s.lan.to_string()));
        }
        if a.site.is_some() && a.site == b.site {
            // The router's address would cut more than the neighbour.
            seen.remove(&b.public_address.to_string());
            seen.insert(b.address.to_string());
        }
        seen
    }

    pub(crate) fn uplink(&self, at: &str) -> Result<Uplink, LabError> {
        let place = self.place(at)?;
        let none = || LabError::Invalid(vec![format!("{at} has no link")]);
        place.info().uplink.clone().ok_or_else(none)
    }

    fn apply_rates(&self, before: &[Fault], now: &[Fault]) -> Result<(), LabError> {
        let rates = |faults: &[Fault]| -> BTreeMap<String, (u32, u32)> {
            let rate = |f: &Fault| match f {
                Fault::Rate { at, kbit, queue_ms } => Some((at.clone(), (*kbit, *queue_ms))),
                _ => None,
            };
            faults.iter().filter_map(rate).collect()
        };
        let (before, now) = (rates(before), rates(now));
        for (at, wanted) in now.iter().filter(|(at, w)| before.get(*at) != Some(*w)) {
            let uplink = self.uplink(at)?;
            for (place, device) in [(&uplink.outer, &uplink.outer_device), (at, &uplink.device)] {
                let (kbit, queue) = wanted;
                // A bucket of 10 ms, and never less than a few full packets.
                let burst = (kbit * 10 / 8).max(6_000);
                let line = format!(
                    "qdisc replace dev {device} root tbf rate {kbit}kbit burst {burst} latency {queue}ms\n"
                );
                self.run_in(place, "tc", &["-batch", "-"], &line)?;
            }
        }
        for at in before.keys().filter(|at| !now.contains_key(*at)) {
            let uplink = self.uplink(at)?;
            for (place, device) in [(&uplink.outer, &uplink.outer_device), (at, &uplink.device)] {
                self.run_in(place, "tc", &["qdisc", "del", "dev", device, "root"], "")?;
            }
        }
        Ok(())
    }
}

fn delays(faults: &[Fault]) -> BTreeMap<String, u32> {
    let delay = |f: &Fault| match f {
        Fault::Delay { at, ms } => Some((at.clone(), *ms)),
        _ => None,
    };
    faults.iter().filter_map(delay).collect()
}
