//! Medians, bootstrap intervals and a latency histogram. No clock, no I/O.

/// The middle value; the mean of the two middle ones of an even number. `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if sorted.is_empty() {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let mid = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 { sorted[mid] } else { f64::midpoint(sorted[mid - 1], sorted[mid]) })
}

/// 95 % interval of the median, from 2,000 resamples. `random(n)` is uniform in `0..n`.
pub(crate) fn bootstrap(values: &[f64], mut random: impl FnMut(usize) -> usize) -> Option<(f64, f64)> {
    if values.len() < 3 {
        return None; // an interval of two points says nothing
    }
    let mut medians: Vec<f64> = (0..2000)
        .filter_map(|_| {
            let sample: Vec<f64> = (0..values.len()).map(|_| values[random(values.len())]).collect();
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |q: f64| medians.get(((medians.len() - 1) as f64 * q).round() as usize).copied();
    Some((at(0.025)?, at(0.975)?))
}

const SUB: u32 = 5; // 32 steps an octave: 3 % resolution
const BUCKETS: usize = 40 << SUB;

/// Latencies in nanoseconds, in buckets of 3 %.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0 }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        let bucket = Self::bucket(nanos).min(BUCKETS - 1);
        self.counts[bucket] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
        self.total += other.total;
    }

    /// The latency that a share `q` of all stays below, in microseconds.
    pub(crate) fn quantile_us(&self, q: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((self.total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Self::value(i) as f64 / 1000.0);
            }
        }
        None
    }

    fn bucket(nanos: u64) -> usize {
        let bits = 64 - nanos.leading_zeros();
        if bits <= SUB + 1 {
            return nanos as usize;
        }
        let shift = bits - SUB - 1;
        ((shift as usize) << SUB) + (nanos >> shift) as usize
    }

    /// The middle of a bucket.
    fn value(bucket: usize) -> u64 {
        let shift = (bucket >> SUB).saturating_sub(1) as u32;
        if shift == 0 {
            return bucket as u64;
        }
        let base = (bucket - ((shift as usize) << SUB)) as u64;
        (base << shift) + (1 << (shift - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN, 1.0]), Some(1.0));
    }

    #[test]
    fn bootstrap_holds_the_median_and_is_not_wider_than_the_data() {
        let values: Vec<f64> = (0..9).map(|i| 1.0 + f64::from(i) / 10.0).collect();
        let mut state = 1u64;
        let (low, high) = bootstrap(&values, |n| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        })
        .unwrap();
        assert!((1.0..=1.4).contains(&low) && (1.4..=1.8).contains(&high), "{low} {high}");
        assert!(high > low);
    }

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut h = Histogram::new();
        for us in 1..=1000u64 {
            h.record(us * 1000);
        }
        for (q, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = h.quantile_us(q).unwrap();
            assert!((got / expected - 1.0f64).abs() < 0.04, "{q}: {got}");
        }
        assert_eq!(Histogram::new().quantile_us(0.5), None);
    }

    #[test]
    fn buckets_are_monotonous_and_values_fall_inside() {
        let mut last = 0;
        for n in (0..100_000u64).chain([1 << 30, 1 << 40]) {
            let b = Histogram::bucket(n);
            assert!(b >= last, "{n}");
            last = b;
            assert_eq!(Histogram::bucket(Histogram::value(b)), b, "{n}");
        }
    }
}
