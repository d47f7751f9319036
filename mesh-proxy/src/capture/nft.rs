//! Runs the `nft` program.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest run; a table of 5,000 services takes far less.
const LIMIT: Duration = Duration::from_secs(10);
/// Process ids remembered, to know our own changes again.
const REMEMBERED: usize = 32;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("{program} is not installed: apt-get install nftables, or name the program in capture.nft")]
    Missing {
        /// As configured.
        program: PathBuf,
    },
    /// It needs the capability.
    #[error("writing nftables rules needs the NET_ADMIN capability: run as root, or add it to the container")]
    NotPermitted,
    /// It refused the script.
    #[error("nft: {message}")]
    Refused {
        /// Its own words, shortened.
        message: String,
    },
    /// It could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It took too long.
    #[error("nft took longer than {} s", LIMIT.as_secs())]
    Late,
    /// It printed something that is not understood.
    #[error("the output of nft is not understood")]
    Output,
}

pub(crate) struct Nft {
    program: PathBuf,
    ours: Mutex<VecDeque<u32>>,
}

impl Nft {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, ours: Mutex::default() }
    }

    /// Whether this process was one that we started.
    pub(crate) fn ran(&self, process: u32) -> bool {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
    }

    /// Runs a script as one transaction.
    pub(crate) async fn run(&self, script: &str) -> Result<(), NftError> {
        self.start(&["-f", "-"], script).await.map(drop)
    }

    /// Whether rules can be written: checks a script without running it.
    pub(crate) async fn probe(&self) -> Result<(), NftError> {
        self.start(&["-c", "-f", "-"], "add table inet selvage_probe\n").await.map(drop)
    }

    /// Runs a script when there is no time left for anything else. Errors are lost.
    pub(crate) fn run_blocking(&self, script: &str) {
        let mut command = std::process::Command::new(&self.program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Ok(mut child) = command.spawn() {
            if let Some(mut stdin) = child.stdin.take() {
                let _early = io::Write::write_all(&mut stdin, script.as_bytes());
            }
            let _status = child.wait();
        }
    }

    /// The table as JSON.
    pub(crate) async fn list(&self, table: &str) -> Result<Vec<u8>, NftError> {
        self.start(&["-j", "list", "table", "inet", table], "").await
    }

    async fn start(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NftError::Missing { program: self.program.clone() },
            _ => NftError::Run(error),
        })?;
        self.remember(child.id());
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It stops reading at the first error, and then says which on standard error.
                let _early = stdin.write_all(input.as_bytes()).await;
            }
        };
        let run = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output =
            tokio::time::timeout(LIMIT, run).await.map_err(|_| NftError::Late)?.map_err(NftError::Run)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr);
        if message.contains("Operation not permitted") || message.contains("you must be root") {
            return Err(NftError::NotPermitted);
        }
        let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        Err(NftError::Refused { message: line.chars().take(300).collect() })
    }

    fn remember(&self, process: Option<u32>) {
        let mut ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        ours.extend(process);
        while ours.len() > REMEMBERED {
            ours.pop_front();
        }
    }
}
