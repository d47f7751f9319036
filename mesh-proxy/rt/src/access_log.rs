//! The access log: lines are formatted into a bounded buffer and written by a thread of their own,
//! so that a slow disk or pipe never slows a request. When the buffer is full, lines are dropped
//! and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the writer gathers lines before it writes: fewer wake-ups and fewer system calls.
const GATHER: Duration = Duration::from_millis(10);

/// Longest wait for the output when the log ends.
const LAST: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The writer holds lines that it has not written yet.
    writing: bool,
    closed: bool,
    /// The writer has ended.
    done: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    dropped: AtomicU64,
    written: AtomicU64,
}

struct Owner {
    shared: Arc<Shared>,
}

/// Handle to write lines. Cheap to clone; dropping the last clone writes what is left, for a second
/// at most, and ends the thread.
#[derive(Clone)]
pub struct AccessLog {
    owner: Arc<Owner>,
}

impl AccessLog {
    /// Starts the writer thread; at most `capacity` bytes wait to be written.
    pub fn new(output: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            capacity,
            dropped: AtomicU64::new(0),
            written: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            theirs.write_all(output);
            theirs.lock().done = true;
            theirs.changed.notify_all();
        })?;
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    /// Adds one line; `format` writes it into the buffer without a line feed. Never blocks on the
    /// output. Returns whether the line was taken.
    pub fn line(&self, format: impl FnOnce(&mut Vec<u8>)) -> bool {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.buffer.len() >= shared.capacity {
            drop(state);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let wake = state.buffer.is_empty();
        format(&mut state.buffer);
        state.buffer.push(b'\n');
        drop(state);
        if wake {
            shared.changed.notify_all();
        }
        true
    }

    /// Lines dropped because the output was too slow.
    pub fn dropped(&self) -> u64 {
        self.owner.shared.dropped.load(Ordering::Relaxed)
    }

    /// Bytes handed to the output.
    pub fn written(&self) -> u64 {
        self.owner.shared.written.load(Ordering::Relaxed)
    }

    /// Waits until everything that was logged before is written, or `within` is over. Blocks.
    pub fn flush(&self, within: Duration) -> bool {
        let shared = &self.owner.shared;
        let busy = |state: &mut State| !state.buffer.is_empty() || state.writing;
        let waited = shared.changed.wait_timeout_while(shared.lock(), within, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut output: impl Write) {
        let mut lines = Vec::new();
        loop {
            let idle = |state: &mut State| state.buffer.is_empty() && !state.closed;
            let waited = self.changed.wait_while(self.lock(), idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            if state.buffer.is_empty() {
                return;
            }
            if !state.closed {
                drop(state);
                std::thread::sleep(GATHER);
                state = self.lock();
            }
            lines.clear();
            std::mem::swap(&mut lines, &mut state.buffer);
            state.writing = true;
            drop(state);
            // Nobody can be told but the counter: the log itself is what is broken.
            match output.write_all(&lines).and_then(|()| output.flush()) {
                Ok(()) => self.written.fetch_add(lines.len() as u64, Ordering::Relaxed),
                Err(_) => {
                    let lost = lines.iter().filter(|byte| **byte == b'\n').count();
                    self.dropped.fetch_add(lost as u64, Ordering::Relaxed)
                }
            };
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        // The process is about to end, and its last lines say why.
        let _late = self.shared.changed.wait_timeout_while(state, LAST, |state| !state.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[derive(Default)]
    struct Pipe {
        state: Mutex<(bool, Vec<u8>)>,
        opened: Condvar,
    }

    /// An output that blocks until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<Pipe>);

    impl Gate {
        fn open(&self) {
            self.0.state.lock().unwrap().0 = true;
            self.0.opened.notify_all();
        }
        fn text(&self) -> String {
            String::from_utf8(self.0.state.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let guard = self.0.opened.wait_while(self.0.state.lock().unwrap(), |state| !state.0);
            guard.unwrap().1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let gate = Gate::default();
        gate.open();
        let log = AccessLog::new(gate.clone(), 1 << 20).unwrap();
        for n in 0..1000 {
            assert!(log.line(|line| line.extend_from_slice(format!("line {n}").as_bytes())));
        }
        assert!(log.flush(LONG));
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(gate.text(), expected);
        assert_eq!((log.dropped(), log.written()), (0, expected.len() as u64));
    }

    #[test]
    fn the_last_lines_are_written_before_the_log_is_gone() {
        let gate = Gate::default();
        gate.open();
        let log = AccessLog::new(gate.clone(), 1 << 20).unwrap();
        log.line(|line| line.extend_from_slice(b"last"));
        drop(log);
        assert_eq!(gate.text(), "last\n");
    }

    #[test]
    fn a_stuck_output_drops_and_counts_instead_of_blocking() {
        let gate = Gate::default();
        let log = AccessLog::new(gate.clone(), 100).unwrap();
        let taken = (0..1000).filter(|_| log.line(|line| line.extend_from_slice(b"0123456789"))).count();
        assert!(taken < 100, "{taken} lines taken by a buffer of 100 bytes");
        assert_eq!(log.dropped() as usize, 1000 - taken);
        assert!(!log.flush(Duration::from_millis(20)));
        gate.open();
        assert!(log.flush(LONG));
        assert_eq!(gate.text().lines().count(), taken);
    }
}
