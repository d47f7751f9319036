//! Ejection of one endpoint because of its answers: failures in a row, then a time out of service that grows.

use std::time::{Duration, Instant};

use crate::policy::OutlierPolicy;

/// The longest ejection, as in Istio.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// How an exchange with an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// Below 500.
    Ok,
    /// 5xx that is not a gateway error.
    ServerError,
    /// 502, 503 or 504, as the endpoint answered.
    GatewayError,
    /// No answer of the endpoint: a reset, no connection, no answer in time.
    LocalFailure,
}

impl Exchange {
    /// What a status says.
    pub const fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Ok,
        }
    }
}

/// What is remembered about one endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct OutlierState {
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

impl OutlierState {
    /// Whether the endpoint is out of service.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|t| now < t)
    }

    /// When it was or will be back in service, if it was ever ejected.
    pub const fn back_at(&self) -> Option<Instant> {
        self.ejected_until
    }

    /// Counts an exchange. True: the endpoint is to be ejected, if [`may_eject`] allows it.
    pub fn record(&mut self, policy: &OutlierPolicy, exchange: Exchange) -> bool {
        match exchange {
            Exchange::Ok => {
                self.consecutive_5xx = 0;
                self.consecutive_gateway = 0;
                self.consecutive_local = 0;
            }
            Exchange::ServerError => {
                self.consecutive_5xx += 1;
                self.consecutive_gateway = 0;
                self.consecutive_local = 0;
            }
            Exchange::GatewayError => {
                self.consecutive_5xx += 1;
                self.consecutive_gateway += 1;
                self.consecutive_local = 0;
            }
            Exchange::LocalFailure if policy.split_local_origin => self.consecutive_local += 1,
            // Without the split a failure of ours is what the client would see: a gateway error.
            Exchange::LocalFailure => {
                self.consecutive_5xx += 1;
                self.consecutive_gateway += 1;
            }
        }
        let over = |count: u32, limit: u32| limit > 0 && count >= limit;
        over(self.consecutive_5xx, policy.consecutive_5xx)
            || over(self.consecutive_gateway, policy.consecutive_gateway)
            || over(self.consecutive_local, policy.consecutive_local_origin)
    }

    /// A connection came about: nothing is wrong with the way there.
    pub fn connected(&mut self) {
        self.consecutive_local = 0;
    }

    /// Ejects the endpoint, each time for longer.
    pub fn eject(&mut self, policy: &OutlierPolicy, now: Instant) {
        self.consecutive_5xx = 0;
        self.consecutive_gateway = 0;
        self.consecutive_local = 0;
        self.ejections += 1;
        let time =
            policy.base_ejection.saturating_mul(self.ejections).min(MAX_EJECTION.max(policy.base_ejection));
        self.ejected_until = Some(now + time);
    }

    /// To be called every interval: an endpoint that stayed in service is trusted more again.
    pub fn on_interval(&mut self, now: Instant) {
        if !self.is_ejected(now) {
            self.ejected_until = None;
            self.ejections = self.ejections.saturating_sub(1);
        }
    }
}

/// Whether one more of `total` endpoints may be ejected when `ejected` are. One always may.
pub fn may_eject(policy: &OutlierPolicy, ejected: usize, total: usize) -> bool {
    ejected == 0 || (ejected + 1) * 100 <= total * policy.max_ejection_percent as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> OutlierPolicy {
        OutlierPolicy {
            consecutive_5xx: 3,
            consecutive_gateway: 2,
            split_local_origin: false,
            consecutive_local_origin: 0,
            error_codes: Box::default(),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 50,
            min_health_percent: 0,
        }
    }

    #[test]
    fn failures_in_a_row_eject() {
        let (p, mut s) = (policy(), OutlierState::default());
        assert!(!s.record(&p, Exchange::ServerError));
        assert!(!s.record(&p, Exchange::GatewayError));
        assert!(!s.record(&p, Exchange::Ok), "a success starts the count again");
        assert!(!s.record(&p, Exchange::of_status(503)));
        assert!(s.record(&p, Exchange::of_status(504)), "two gateway errors");
    }

    #[test]
    fn each_ejection_is_longer_and_good_conduct_helps() {
        let (p, mut s) = (policy(), OutlierState::default());
        let t = Instant::now();
        s.eject(&p, t);
        assert!(s.is_ejected(t + Duration::from_secs(29)) && !s.is_ejected(t + Duration::from_secs(30)));
        s.eject(&p, t);
        assert!(s.is_ejected(t + Duration::from_secs(59)) && !s.is_ejected(t + Duration::from_secs(60)));
        for _ in 0..50 {
            s.eject(&p, t);
        }
        assert!(!s.is_ejected(t + Duration::from_secs(300)), "bounded");
        for _ in 0..60 {
            s.on_interval(t + Duration::from_secs(400));
        }
        s.eject(&p, t);
        assert!(!s.is_ejected(t + Duration::from_secs(30)), "back to the first length");
    }

    #[test]
    fn a_share_stays_in_service_but_one_may_always_go() {
        let p = policy();
        assert!(may_eject(&p, 0, 1));
        assert!(may_eject(&p, 1, 4));
        assert!(!may_eject(&p, 2, 4));
    }

    #[test]
    fn local_failures_count_for_themselves_when_split() {
        let p = OutlierPolicy { split_local_origin: true, consecutive_local_origin: 2, ..policy() };
        let mut s = OutlierState::default();
        assert!(!s.record(&p, Exchange::LocalFailure));
        assert!(!s.record(&p, Exchange::GatewayError), "an answer says that the way there works");
        assert!(!s.record(&p, Exchange::LocalFailure));
        s.connected();
        assert!(!s.record(&p, Exchange::LocalFailure));
        assert!(s.record(&p, Exchange::LocalFailure));
        // Without the split it is a gateway error; the limit of the split does not count.
        let (p, mut s) = (policy(), OutlierState::default());
        assert!(!s.record(&p, Exchange::LocalFailure));
        assert!(s.record(&p, Exchange::LocalFailure));
    }

    #[test]
    fn the_rule_may_say_which_codes_count() {
        let p = OutlierPolicy { error_codes: [429, 503].into(), ..policy() };
        assert_eq!(p.exchange(429), Exchange::ServerError);
        assert_eq!(p.exchange(503), Exchange::GatewayError);
        assert_eq!(p.exchange(500), Exchange::Ok);
        assert_eq!(policy().exchange(500), Exchange::ServerError);
    }
}
