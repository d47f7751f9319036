//! Which results of a try are worth another one, and when.

use std::time::Duration;

use mesh_api::model;

use crate::{
    client::{Dice, DiceKind},
    policy::millis,
};

/// The conditions of `retryOn`, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions(u32);

/// Every word that `retryOn` may hold, at the position of its bit, in the order in which Istio writes its default.
const WORDS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "unavailable",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "retriable-headers",
    "http3-post-connect-failure",
    "retriable-status-codes",
];

impl Conditions {
    const SERVER_ERROR: Self = Self(1);
    const GATEWAY_ERROR: Self = Self(1 << 1);
    const RESET: Self = Self(1 << 2);
    const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    const CONNECT_FAILURE: Self = Self(1 << 4);
    const RATE_LIMITED: Self = Self(1 << 5);
    const RETRIABLE_4XX: Self = Self(1 << 6);
    const REFUSED_STREAM: Self = Self(1 << 7);
    const UNAVAILABLE: Self = Self(1 << 8);
    const CANCELLED: Self = Self(1 << 9);
    const DEADLINE_EXCEEDED: Self = Self(1 << 10);
    const INTERNAL: Self = Self(1 << 11);
    const RESOURCE_EXHAUSTED: Self = Self(1 << 12);
    const STATUS_CODES: Self = Self(1 << 15);

    /// The condition with that name.
    pub fn named(word: &str) -> Option<Self> {
        WORDS.iter().position(|w| *w == word).map(|i| Self(1 << i))
    }

    /// The names in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        WORDS.iter().enumerate().filter(move |(i, _)| self.0 & (1 << i) != 0).map(|(_, w)| *w)
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// How one try ended, as far as retrying looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryResult {
    /// The endpoint answered with that status.
    Status(u16),
    /// The endpoint answered a gRPC call with that `grpc-status`.
    Grpc(u32),
    /// The endpoint says that it is rate limited (`x-envoy-ratelimited`).
    RateLimited,
    /// No connection came about.
    ConnectFailure,
    /// HTTP/2 `REFUSED_STREAM`: certainly not processed.
    RefusedStream,
    /// The connection or stream broke before an answer.
    Reset {
        /// Nothing of the request had been sent.
        before_request: bool,
    },
    /// The try took longer than `perTryTimeout`.
    Timeout,
}

/// A compiled retry policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Retries after the first try.
    pub attempts: u32,
    /// Limit for one try.
    pub per_try_timeout: Option<Duration>,
    /// What is retried.
    pub on: Conditions,
    /// Statuses that are retried.
    pub status_codes: Box<[u16]>,
    /// First back-off interval.
    pub backoff: Duration,
    /// Prefer endpoints that this request has not tried.
    pub ignore_previous_hosts: bool,
    /// Prefer localities that this request has not tried.
    pub remote_localities: bool,
    /// Nothing is said about hosts that were tried: a destination that hashes may get them again.
    pub previous_hosts_by_hash: bool,
}

/// The interval that back-off starts from, as in Istio.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

impl Default for RetryPolicy {
    /// Istio's built-in: two retries of what certainly did no work.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on: Conditions::CONNECT_FAILURE
                .and(Conditions::REFUSED_STREAM)
                .and(Conditions::UNAVAILABLE)
                .and(Conditions::CANCELLED)
                .and(Conditions::STATUS_CODES),
            status_codes: Box::default(),
            backoff: DEFAULT_BACKOFF,
            ignore_previous_hosts: true,
            remote_localities: false,
            previous_hosts_by_hash: true,
        }
    }
}

impl RetryPolicy {
    /// Compiles a policy. Words that are not known are passed over; the translation reports them.
    pub(crate) fn compile(m: &model::RetryPolicy) -> Self {
        let mut on = Conditions::default();
        let mut codes: Vec<u16> = m.status_codes.iter().filter_map(|c| u16::try_from(*c).ok()).collect();
        for word in &m.retry_on {
            if let Some(c) = Conditions::named(word.trim()) {
                on = on.and(c);
            } else if let Ok(code) = word.trim().parse::<u16>() {
                codes.push(code);
            }
        }
        if !codes.is_empty() {
            on = on.and(Conditions::STATUS_CODES);
        }
        if on == Conditions::default() {
            on = Self::default().on;
        }
        Self {
            attempts: m.attempts,
            per_try_timeout: millis(m.per_try_timeout.as_ref()).filter(|d| !d.is_zero()),
            on,
            status_codes: codes.into_boxed_slice(),
            backoff: millis(m.backoff.as_ref()).filter(|d| !d.is_zero()).unwrap_or(DEFAULT_BACKOFF),
            ignore_previous_hosts: m.ignore_previous_hosts,
            remote_localities: m.remote_localities,
            previous_hosts_by_hash: m.previous_hosts_by_hash,
        }
    }

    /// Whether endpoints that were tried are avoided; `hashed` says that the destination hashes.
    pub const fn avoids_previous_hosts(&self, hashed: bool) -> bool {
        self.ignore_previous_hosts && !(self.previous_hosts_by_hash && hashed)
    }

    /// Whether a try that ended so is worth another one. How many there were, and the budget, are the caller's.
    pub fn retries(&self, result: TryResult) -> bool {
        use Conditions as C;
        let wanted = match result {
            TryResult::Status(code) => return self.retries_status(code),
            TryResult::Grpc(1) => C::CANCELLED,
            TryResult::Grpc(4) => C::DEADLINE_EXCEEDED,
            TryResult::Grpc(8) => C::RESOURCE_EXHAUSTED,
            TryResult::Grpc(13) => C::INTERNAL,
            TryResult::Grpc(14) => C::UNAVAILABLE,
            TryResult::Grpc(_) => return false,
            TryResult::RateLimited => C::RATE_LIMITED,
            // No answer at all counts as a 5xx, as that is what the caller would get.
            TryResult::ConnectFailure => C::CONNECT_FAILURE
                .and(C::SERVER_ERROR)
                .and(C::GATEWAY_ERROR)
                .and(C::RESET)
                .and(C::RESET_BEFORE_REQUEST),
            TryResult::RefusedStream => {
                C::REFUSED_STREAM.and(C::SERVER_ERROR).and(C::GATEWAY_ERROR).and(C::RESET)
            }
            TryResult::Reset { before_request: true } => {
                C::RESET.and(C::SERVER_ERROR).and(C::GATEWAY_ERROR).and(C::RESET_BEFORE_REQUEST)
            }
            TryResult::Reset { before_request: false } | TryResult::Timeout => {
                C::RESET.and(C::SERVER_ERROR).and(C::GATEWAY_ERROR)
            }
        };
        self.on.any_of(wanted)
    }

    fn retries_status(&self, code: u16) -> bool {
        use Conditions as C;
        (self.on.any_of(C::SERVER_ERROR) && (500..600).contains(&code))
            || (self.on.any_of(C::GATEWAY_ERROR) && matches!(code, 502..=504))
            || (self.on.any_of(C::RETRIABLE_4XX) && code == 409)
            || (self.on.any_of(C::STATUS_CODES) && self.status_codes.contains(&code))
    }

    /// How long to wait before retry number `n` (from 1): a random part of the doubled interval, at most ten
    /// intervals.
    pub fn backoff_before(&self, n: u32, dice: &mut impl Dice) -> Duration {
        let factor = (1u32 << n.clamp(1, 5)).saturating_sub(1).min(10);
        self.backoff.mul_f64(f64::from(factor) * dice.roll(DiceKind::Backoff))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: &[&str]) -> RetryPolicy {
        RetryPolicy::compile(&model::RetryPolicy {
            attempts: 3,
            retry_on: on.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        })
    }

    #[test]
    fn the_default_does_not_retry_an_answer() {
        let p = RetryPolicy::default();
        assert!(!p.retries(TryResult::Status(503)));
        assert!(p.retries(TryResult::ConnectFailure));
        assert!(p.retries(TryResult::RefusedStream));
        assert!(p.retries(TryResult::Grpc(14)));
        assert!(!p.retries(TryResult::Reset { before_request: false }));
        assert!(!p.retries(TryResult::Timeout));
    }

    #[test]
    fn a_number_is_a_status_of_a_real_answer() {
        let p = policy(&["503"]);
        assert!(p.retries(TryResult::Status(503)));
        assert!(!p.retries(TryResult::Status(500)));
        assert!(!p.retries(TryResult::Reset { before_request: false }));
        assert!(!p.retries(TryResult::ConnectFailure), "given conditions replace the default ones");
    }

    #[test]
    fn conditions_name_results() {
        assert!(policy(&["5xx"]).retries(TryResult::Status(599)));
        assert!(policy(&["5xx"]).retries(TryResult::Timeout));
        assert!(policy(&["gateway-error"]).retries(TryResult::Status(502)));
        assert!(!policy(&["gateway-error"]).retries(TryResult::Status(500)));
        assert!(policy(&["reset"]).retries(TryResult::Reset { before_request: false }));
        assert!(!policy(&["reset-before-request"]).retries(TryResult::Reset { before_request: false }));
        assert!(policy(&["reset-before-request"]).retries(TryResult::Reset { before_request: true }));
        assert!(policy(&["retriable-4xx"]).retries(TryResult::Status(409)));
        let names: Vec<_> = policy(&["unavailable", "5xx"]).on.names().collect();
        assert_eq!(names, ["5xx", "unavailable"]);
    }

    #[test]
    fn back_off_grows_and_is_bounded() {
        let p = RetryPolicy::default();
        let at = |n, x: f64| p.backoff_before(n, &mut |_| x);
        assert_eq!(at(1, 0.0), Duration::ZERO);
        assert_eq!(at(1, 1.0), Duration::from_millis(25));
        assert_eq!(at(2, 1.0), Duration::from_millis(75));
        assert_eq!(at(40, 1.0), Duration::from_millis(250));
    }
}
