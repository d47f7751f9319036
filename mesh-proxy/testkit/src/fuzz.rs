//! Fuzz targets that run on any toolchain: mutations of a seed corpus, bounded in time and from a fixed seed, so that
//! `cargo test` runs each for a moment and finds the same again. An input whose outcome was not seen before joins the
//! corpus: the outcome (which error, which kind of message) stands for coverage.
//!
//! A target is a test whose name begins with `fuzz_`. `SELVAGE_FUZZ_SECONDS` makes each run longer, `SELVAGE_FUZZ_SEED`
//! takes another way (`make fuzz`). An input that fails is written to `target/fuzz/NAME/`; put it beside the target as
//! a case of its own.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Time of a target in an ordinary test run.
const USUAL: Duration = Duration::from_millis(1500);
/// Inputs of a target in an ordinary test run: a fast machine does not need all its time.
const USUAL_INPUTS: u64 = 200_000;
/// Inputs below which a run says nothing.
const AT_LEAST: u64 = 200;
/// Corpus entries that are kept; a new one then takes the place of an old one.
const CORPUS: usize = 4096;
/// Largest input.
const LARGEST: usize = 128 * 1024;
const DEFAULT_SEED: u64 = 0x5e1f_a9e5_eed0_0001;
/// Values at which parsers turn: ends, signs, compression pointers, varints.
const BYTES: [u8; 12] = [0, 1, 0x0a, 0x0d, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xfe, 0xff];

/// A small generator: the same every time.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at a seed other than zero.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit` (0 for a limit of 0).
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.number() % limit).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[3]
    }
}

/// One to seven small changes of an input.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => {
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= 1 << random.below(8)
                }
            }
            1 => {
                if let Some(b) = bytes.get_mut(at) {
                    *b = BYTES[random.below(BYTES.len())]
                }
            }
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.byte()),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 => {
                // A length that is one more or less than true is where most parsers are wrong.
                if let Some(b) = bytes.get_mut(at) {
                    *b = if random.below(2) == 0 { b.wrapping_add(1) } else { b.wrapping_sub(1) };
                }
            }
            7 => {
                let end = (at + random.below(9)).min(bytes.len());
                for b in &mut bytes[at.min(end)..end] {
                    *b = random.byte();
                }
            }
            _ => {
                let end = (at + random.below(64)).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes.truncate(LARGEST);
    bytes
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a target on the seeds and on mutations of them. The target panics on what it does not accept; what it returns
/// is the outcome that tells inputs apart.
///
/// # Panics
/// When the target does; the input is written down first.
pub fn run<O: Hash>(name: &str, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8]) -> O) {
    let seconds = setting("SELVAGE_FUZZ_SECONDS").map(Duration::from_secs);
    let (limit, inputs) = (seconds.unwrap_or(USUAL), if seconds.is_some() { u64::MAX } else { USUAL_INPUTS });
    let mut random = Random::new(setting("SELVAGE_FUZZ_SEED").unwrap_or(DEFAULT_SEED));
    let (mut corpus, mut seen, mut done) = (seeds.to_vec(), HashSet::new(), 0_u64);
    let start = Instant::now();
    // Even a machine that stands still does some.
    while done < AT_LEAST || (done < inputs && start.elapsed() < limit) {
        let seed = usize::try_from(done).ok().and_then(|i| seeds.get(i));
        let bytes = seed.cloned().unwrap_or_else(|| mutate(&mut random, &corpus));
        match catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
            Ok(outcome) => {
                let mut hasher = DefaultHasher::new();
                outcome.hash(&mut hasher);
                if seen.insert(hasher.finish()) {
                    let at = random.below(corpus.len());
                    if corpus.len() < CORPUS { corpus.push(bytes) } else { corpus[at] = bytes }
                }
            }
            Err(panic) => {
                eprintln!("{name} fails on {}", write_down(name, &bytes));
                resume_unwind(panic);
            }
        }
        done += 1;
    }
    println!("{name}: {done} inputs, {} outcomes, {:?}", seen.len(), start.elapsed());
}

/// The variants in a debug text without their values: an outcome that does not differ for each input.
#[must_use]
pub fn shape(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphabetic());
    words.filter(|w| w.starts_with(|c: char| c.is_ascii_uppercase())).take(6).collect()
}

/// Keeps a failing input. Gives its path, or its bytes when it cannot be written.
fn write_down(name: &str, bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz").join(name);
    let file = dir.join(format!("{:016x}", hasher.finish()));
    match std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&file, bytes)) {
        Ok(()) => format!("{} ({} bytes)", file.display(), bytes.len()),
        Err(_) => format!("{bytes:02x?}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]
mod tests {
    use super::*;

    /// Four bytes in a row are out of reach of blind changes; the outcomes lead there.
    fn guarded(bytes: &[u8]) -> usize {
        let deep = bytes.iter().zip(b"DEEP").take_while(|(a, b)| a == b).count();
        assert!(deep < 4, "found");
        deep
    }

    #[test]
    fn a_fault_behind_several_checks_is_found_and_written_down() {
        let failed = catch_unwind(|| run("self_test", &[b"xxxxxx".to_vec()], guarded));
        let text = failed.unwrap_err();
        assert!(text.downcast_ref::<&str>().is_some_and(|t| t.contains("found")), "another failure");
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/self_test");
        let written = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
        assert!(std::fs::read(&written).unwrap().starts_with(b"DEEP"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_run_is_the_same_every_time() {
        let all = || {
            let mut random = Random::new(7);
            (0..500)
                .map(|_| mutate(&mut random, &[b"GET / HTTP/1.1".to_vec(), vec![0; 40]]))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(), all());
    }
}
