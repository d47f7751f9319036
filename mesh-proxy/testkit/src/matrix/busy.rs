//! How much slower this machine is than an idle one, as a thread that works a little finds out: its time on a processor
//! and its time in the queue for one. Time limits are stretched by that, and the result says so.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// A factor beyond this says that nothing can be measured here; limits are not stretched further.
const MOST: f64 = 8.0;
const WORK: Duration = Duration::from_millis(2);
const REST: Duration = Duration::from_millis(8);

/// Does something, and says how many times slower than on an idle machine it ran; 1 at least.
pub(super) fn while_doing<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&done));
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watcher.join().unwrap_or(1.0))
    })
}

fn watch(done: &AtomicBool) -> f64 {
    loop {
        let start = Instant::now();
        while start.elapsed() < WORK {
            std::hint::spin_loop();
        }
        if done.load(Ordering::Relaxed) {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
            return factor(&text).clamp(1.0, MOST);
        }
        std::thread::sleep(REST);
    }
}

/// Of "nanoseconds on a processor, nanoseconds in the queue, turns".
fn factor(schedstat: &str) -> f64 {
    let mut numbers = schedstat.split_whitespace().map(|n| n.parse::<f64>().unwrap_or(0.0));
    let (ran, waited) = (numbers.next().unwrap_or(0.0), numbers.next().unwrap_or(0.0));
    if ran > 0.0 { (ran + waited) / ran } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_processor_counts() {
        assert!((factor("1000 0 3\n") - 1.0).abs() < 1e-9);
        assert!((factor("1000 3000 3\n") - 4.0).abs() < 1e-9);
        assert!((factor("") - 1.0).abs() < 1e-9);
        let ((), busy) = while_doing(|| std::thread::sleep(Duration::from_millis(30)));
        assert!((1.0..=MOST).contains(&busy));
    }
}
