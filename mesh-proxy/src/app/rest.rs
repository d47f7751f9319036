//! Gives memory back when the proxy comes to rest: after its start, and after each time of much work. Code that runs only
//! then stays mapped otherwise, and what a burst of connections needed stays with the allocator, for as long as the process
//! lives.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use node_rt::{Drain, Readiness};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Of one CPU, from this on it is work: what a proxy at rest does by itself is a tenth of it.
const WORK: f64 = 0.02;

/// Whether there is something to give back, from how much CPU time the process has used.
#[derive(Debug)]
struct Rest {
    used: Duration,
    worked: bool,
}

impl Rest {
    /// A start is work.
    const fn new(used: Duration) -> Self {
        Self { used, worked: true }
    }

    /// `used` so far, `passed` since the last look: whether the process has just come to rest.
    fn comes(&mut self, used: Duration, passed: Duration) -> bool {
        let more = used.saturating_sub(std::mem::replace(&mut self.used, used));
        if more >= passed.mul_f64(WORK) {
            self.worked = true;
            return false;
        }
        std::mem::take(&mut self.worked)
    }
}

/// Looks until the drain begins.
pub(super) async fn watch(readiness: Readiness, drain: Drain) {
    let mut rest = Rest::new(cpu_time());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = drain.begun() => return,
        }
        // Until then the start goes on, however slowly.
        if readiness.is_ready() && rest.comes(cpu_time(), LOOK) {
            mesh_net::memory::release_unused();
            let code = mesh_net::memory::release_startup_code();
            tracing::debug!(bytes = code, "at rest: free memory, and pages of the program, are let go");
        }
    }
}

/// Of this process so far; nothing where the system does not tell, and then only the start counts.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let of = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
    };
    of(usage.user_time()) + of(usage.system_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_comes_once_after_the_start_and_once_after_work() {
        let ms = Duration::from_millis;
        let mut rest = Rest::new(ms(150));
        assert!(!rest.comes(ms(400), LOOK), "the start goes on");
        assert!(rest.comes(ms(410), LOOK));
        assert!(!rest.comes(ms(420), LOOK), "there is nothing new to give back");
        assert!(!rest.comes(ms(520), LOOK), "a fiftieth of a CPU is work");
        assert!(!rest.comes(ms(9_000), LOOK));
        assert!(rest.comes(ms(9_099), LOOK), "and then it rests");
        assert!(!rest.comes(ms(9_100), LOOK));
    }

    #[test]
    fn cpu_time_moves_with_work() {
        let before = cpu_time();
        let mut sum = 0_u64;
        while cpu_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time() > before);
    }
}
