//! Envoy's response flags: why a call ended the way it did, as a small set.

/// A set of response flags; the letters are Envoy's, because dashboards and people know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u16);

/// Every flag with its letters, in the order in which Envoy prints them.
const NAMES: [(Flags, &str); 15] = [
    (Flags::NO_HEALTHY_UPSTREAM, "UH"),
    (Flags::UPSTREAM_TIMEOUT, "UT"),
    (Flags::UPSTREAM_RESET, "UR"),
    (Flags::CONNECT_FAILURE, "UF"),
    (Flags::UPSTREAM_CLOSED, "UC"),
    (Flags::OVERFLOW, "UO"),
    (Flags::NO_ROUTE, "NR"),
    (Flags::DELAY_INJECTED, "DI"),
    (Flags::FAULT_INJECTED, "FI"),
    (Flags::CLIENT_CLOSED, "DC"),
    (Flags::RETRY_LIMIT, "URX"),
    (Flags::CLIENT_PROTOCOL, "DPE"),
    (Flags::NO_CLUSTER, "NC"),
    (Flags::UPSTREAM_PROTOCOL, "UPE"),
    (Flags::REFUSED_BY_OWNER, "UAEX"),
];

impl Flags {
    /// Nothing to say.
    pub const NONE: Self = Self(0);
    /// No endpoint that could be used.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// The route's or the try's time ran out.
    pub const UPSTREAM_TIMEOUT: Self = Self(1 << 1);
    /// The upstream reset the stream.
    pub const UPSTREAM_RESET: Self = Self(1 << 2);
    /// No connection to the upstream.
    pub const CONNECT_FAILURE: Self = Self(1 << 3);
    /// The upstream closed the connection before it answered.
    pub const UPSTREAM_CLOSED: Self = Self(1 << 4);
    /// A limit of the destination was reached.
    pub const OVERFLOW: Self = Self(1 << 5);
    /// No rule matched.
    pub const NO_ROUTE: Self = Self(1 << 6);
    /// A fault rule delayed the call.
    pub const DELAY_INJECTED: Self = Self(1 << 7);
    /// A fault rule answered the call.
    pub const FAULT_INJECTED: Self = Self(1 << 8);
    /// The client went away.
    pub const CLIENT_CLOSED: Self = Self(1 << 9);
    /// All retries were used.
    pub const RETRY_LIMIT: Self = Self(1 << 10);
    /// The client broke the protocol.
    pub const CLIENT_PROTOCOL: Self = Self(1 << 11);
    /// The rule names a destination that does not exist.
    pub const NO_CLUSTER: Self = Self(1 << 12);
    /// The upstream broke the protocol.
    pub const UPSTREAM_PROTOCOL: Self = Self(1 << 14);
    /// The endpoint's node refused the call.
    pub const REFUSED_BY_OWNER: Self = Self(1 << 13);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all flags of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The letters, comma-separated, `-` for none.
    pub fn letters(self) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        let mut out = String::new();
        for (flag, name) in NAMES {
            if self.has(flag) {
                if !out.is_empty() {
                    out.push(',');
                }
                out.push_str(name);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_envoys_and_every_flag_has_its_own() {
        assert_eq!(Flags::NONE.letters(), "-");
        assert_eq!(Flags::FAULT_INJECTED.with(Flags::DELAY_INJECTED).letters(), "DI,FI");
        assert_eq!(Flags::CONNECT_FAILURE.with(Flags::RETRY_LIMIT).letters(), "UF,URX");
        let all = NAMES.iter().fold(Flags::NONE, |a, (f, _)| a.with(*f));
        assert_eq!(all.0.count_ones() as usize, NAMES.len());
    }
}
