//! Processes that cannot outlive the test: each runs under a small shell that kills it when the test's end of a pipe
//! closes, whatever ended the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::KubeError;

/// Runs `"$@"` in the background as a process group of its own, and kills that group when standard input ends. Its exit
/// status is the program's.
const GUARD: &str = r#"exec 3<&0
setsid "$@" </dev/null 3<&- &
child=$!
{ cat <&3 >/dev/null 2>&1; kill -KILL "-$child" 2>/dev/null; } &
exec 3<&-
wait "$child""#;

/// Changes a command before it is started, for example to run it inside a network namespace.
#[derive(Clone)]
pub struct Wrap(Option<Arc<dyn Fn(Command) -> Command + Send + Sync>>);

impl Wrap {
    /// Commands run as they are.
    pub fn none() -> Self {
        Self(None)
    }

    /// Commands pass through `change`. It must keep arguments, environment and standard streams.
    pub fn with(change: impl Fn(Command) -> Command + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(change)))
    }

    /// Commands run as arguments of `prefix`, such as `["nsenter", "--net=/run/netns/a"]`.
    pub fn prefix(prefix: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let prefix: Vec<String> = prefix.into_iter().map(Into::into).collect();
        Self::with(move |command| {
            let Some((first, rest)) = prefix.split_first() else { return command };
            let mut out = Command::new(first);
            out.args(rest).arg(command.get_program()).args(command.get_args());
            for (key, value) in command.get_envs() {
                if let Some(value) = value {
                    out.env(key, value);
                }
            }
            out
        })
    }

    pub(super) fn apply(&self, command: Command) -> Command {
        match &self.0 {
            None => command,
            Some(change) => {
                let mut out = change(command);
                // A Command does not tell its streams, so they are set again here.
                out.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                out
            }
        }
    }

    /// A check that something listens at `address`, made where the commands run.
    pub(super) fn connect_probe(&self, address: &str) -> impl FnMut() -> Result<(), String> + use<> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let script = format!("exec 3<>/dev/tcp/{host}/{port}");
        let wrap = self.clone();
        move || {
            let mut command = Command::new("bash");
            command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let output = wrap.apply(command).output().map_err(|e| e.to_string())?;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        }
    }
}

/// One running program. Dropping it kills it and waits for its end.
pub struct Daemon {
    program: &'static str,
    guard: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, with its output appended to `log`.
    pub fn spawn(
        program: &'static str,
        wrap: &Wrap,
        command: Command,
        log: &Path,
    ) -> Result<Self, KubeError> {
        let command = wrap.apply(command);
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(KubeError::io(format!("open {}", log.display())))?;
        let err = out.try_clone().map_err(KubeError::io(format!("open {}", log.display())))?;
        let mut guarded = Command::new("sh");
        guarded.args(["-c", GUARD, "sh"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                guarded.env(key, value);
            }
        }
        let guard = guarded
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(KubeError::io(format!("start {program}")))?;
        Ok(Self { program, guard, log: log.to_owned() })
    }

    /// The root of its process tree: the guarding shell.
    pub fn pid(&self) -> u32 {
        self.guard.id()
    }

    /// Waits until `probe` passes; fails at once when the program ends.
    pub fn wait_ready(
        &mut self,
        limit: Duration,
        mut probe: impl FnMut() -> Result<(), String>,
    ) -> Result<(), KubeError> {
        let start = Instant::now();
        loop {
            let reason = match probe() {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            let ended = self.guard.try_wait().map_err(KubeError::io(format!("watch {}", self.program)))?;
            if ended.is_some() || start.elapsed() > limit {
                return Err(KubeError::NotReady {
                    program: self.program,
                    waited: start.elapsed(),
                    reason: ended.map_or(reason, |status| format!("it ended with {status}")),
                    tail: tail(&self.log, 25),
                    log: self.log.clone(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
