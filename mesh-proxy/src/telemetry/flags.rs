//! Envoy's response flags: why a call ended the way it did, as a small set.

/// A set of response flags; the letters are Envoy's, because dashboards and people know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u16);

/// Every flag with its letters and its name, in the order in which Envoy prints them.
const NAMES: [(Flags, &str, &str); 15] = [
    (Flags::NO_HEALTHY_UPSTREAM, "UH", "NoHealthyUpstream"),
    (Flags::UPSTREAM_TIMEOUT, "UT", "UpstreamRequestTimeout"),
    (Flags::UPSTREAM_RESET, "UR", "UpstreamRemoteReset"),
    (Flags::CONNECT_FAILURE, "UF", "UpstreamConnectionFailure"),
    (Flags::UPSTREAM_CLOSED, "UC", "UpstreamConnectionTermination"),
    (Flags::OVERFLOW, "UO", "UpstreamOverflow"),
    (Flags::NO_ROUTE, "NR", "NoRouteFound"),
    (Flags::DELAY_INJECTED, "DI", "DelayInjected"),
    (Flags::FAULT_INJECTED, "FI", "FaultInjected"),
    (Flags::CLIENT_CLOSED, "DC", "DownstreamConnectionTermination"),
    (Flags::RETRY_LIMIT, "URX", "UpstreamRetryLimitExceeded"),
    (Flags::CLIENT_PROTOCOL, "DPE", "DownstreamProtocolError"),
    (Flags::NO_CLUSTER, "NC", "NoClusterFound"),
    (Flags::UPSTREAM_PROTOCOL, "UPE", "UpstreamProtocolError"),
    (Flags::REFUSED_BY_OWNER, "UAEX", "UnauthorizedExternalService"),
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
        let mut out = Vec::new();
        self.write_letters(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    /// Appends the letters.
    pub(crate) fn write_letters(self, out: &mut Vec<u8>) {
        self.write(out, |(_, letters, _)| letters);
    }

    /// Appends the names, as Envoy spells them out.
    pub(crate) fn write_names(self, out: &mut Vec<u8>) {
        self.write(out, |(_, _, name)| name);
    }

    fn write(self, out: &mut Vec<u8>, which: fn(&(Self, &'static str, &'static str)) -> &'static str) {
        let mut separator: &[u8] = b"";
        for flag in NAMES.iter().filter(|n| self.has(n.0)) {
            out.extend_from_slice(separator);
            out.extend_from_slice(which(flag).as_bytes());
            separator = b",";
        }
        if separator.is_empty() {
            out.push(b'-');
        }
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
        let all = NAMES.iter().fold(Flags::NONE, |a, (f, ..)| a.with(*f));
        let mut names = Vec::new();
        all.write_names(&mut names);
        let distinct: std::collections::HashSet<_> = names.split(|b| *b == b',').collect();
        assert_eq!(distinct.len(), NAMES.len());
        assert_eq!(all.0.count_ones() as usize, NAMES.len());
    }
}
