//! A process in a world: its log, its life and its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::LabError;

const STEP: Duration = Duration::from_millis(10);

/// A process in a world; killed when dropped.
#[derive(Debug)]
pub struct Proc {
    pub(crate) name: String,
    pub(crate) child: Option<Child>,
    pub(crate) pid_file: PathBuf,
    pub(crate) log: PathBuf,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

impl Proc {
    /// Its name in the logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it has said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The process id of the command itself, as this machine sees it.
    ///
    /// # Errors
    /// When it does not start within five seconds.
    pub fn pid(&self) -> Result<i32, LabError> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(pid) = fs::read_to_string(&self.pid_file).ok().and_then(|t| t.trim().parse().ok()) {
                return Ok(pid);
            }
            if Instant::now() > deadline {
                return Err(LabError::Process(format!("{} did not start:\n{}", self.name, self.tail())));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// When that takes longer than `limit`, or the process ends first.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        loop {
            // Asked before reading: what it said last is not missed.
            let running = self.running();
            if self.log().contains(text) {
                return Ok(());
            }
            let why = if !running {
                "ended"
            } else if Instant::now() > deadline {
                "took too long"
            } else {
                std::thread::sleep(STEP);
                continue;
            };
            let (name, tail) = (&self.name, self.tail());
            return Err(LabError::Process(format!("{name} {why} before saying {text:?}:\n{tail}")));
        }
    }

    /// The last lines of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(30)).map(|l| format!("  {l}\n")).collect()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        kill(Pid::from_raw(self.pid()?), signal)
            .map_err(LabError::system(format!("sending {signal} to {}", self.name)))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // An ended process needs no kill.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Waits for its end; `None` when it still runs at the limit.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        let child = self.child.as_mut()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(STEP);
        }
    }

    /// Asks it to end (SIGTERM) and waits; killed at the limit, and `None` then.
    pub fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        // A process that ended by itself needs no signal.
        let _ended = self.signal(Signal::SIGTERM);
        let status = self.wait(limit);
        if status.is_none() {
            self.kill();
        }
        status
    }

    /// Lets it live on after this handle.
    pub fn detach(mut self) {
        self.child = None;
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}
