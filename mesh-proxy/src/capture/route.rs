//! Routes that bring captured datagrams to this node: packets with our mark are local, whatever their destination.
//!
//! A rule can be lost: network managers remove rules that they do not know. The kernel tells of such changes, and what
//! is missing is added again.

use std::{io, process::Stdio, time::Duration};

use tokio::process::Command;

use super::{CaptureOptions, NftError};

/// What marks a captured datagram: bits that kube-proxy (0xc000), Calico (0xffff0000) and Cilium (0x0f00) leave alone.
pub(crate) const MARK: u32 = 0x5e;
/// The bits that count.
pub(crate) const MASK: u32 = 0xff;
/// Our routing table.
const TABLE: &str = "15001";
/// Before the rules of others, after that of local addresses (0).
const PRIORITY: &str = "1501";
const LIMIT: Duration = Duration::from_secs(5);

/// The rule and the route, for each family that is captured.
#[derive(Debug)]
pub(crate) struct Routes {
    families: Vec<&'static str>,
}

impl Routes {
    pub(crate) fn new(options: &CaptureOptions) -> Self {
        let v4 = options.udp_v4.map(|_| "-4");
        let v6 = options.udp_v6.map(|_| "-6");
        Self { families: v4.into_iter().chain(v6).collect() }
    }

    /// Makes them be there.
    pub(crate) async fn ensure(&self) -> Result<(), NftError> {
        for family in &self.families {
            if !self.has_rule(family).await? {
                let mark = format!("{MARK:#x}/{MASK:#x}");
                let add = ["rule", "add", "priority", PRIORITY, "fwmark", &mark, "lookup", TABLE];
                ip(family, &add).await?;
            }
            ip(family, &["route", "replace", "local", "default", "dev", "lo", "table", TABLE]).await?;
        }
        Ok(())
    }

    /// Whether all rules are there.
    pub(crate) async fn intact(&self) -> Result<bool, NftError> {
        for family in &self.families {
            if !self.has_rule(family).await?
                || ip(family, &["route", "show", "table", TABLE]).await?.is_empty()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes them away. Only one's own: with a second proxy in this network namespace they are shared, and the other
    /// one adds them again.
    pub(crate) async fn remove(&self) {
        for family in &self.families {
            let _gone = ip(family, &["rule", "delete", "priority", PRIORITY, "lookup", TABLE]).await;
            let _gone = ip(family, &["route", "flush", "table", TABLE]).await;
        }
    }

    /// As [`Self::remove`] when there is no time left for anything else.
    pub(crate) fn remove_blocking(&self) {
        for family in &self.families {
            for arguments in [
                &["rule", "delete", "priority", PRIORITY, "lookup", TABLE][..],
                &["route", "flush", "table", TABLE],
            ] {
                let mut command = std::process::Command::new("ip");
                command.arg(family).args(arguments);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let _gone = command.status();
            }
        }
    }

    async fn has_rule(&self, family: &str) -> Result<bool, NftError> {
        let shown = ip(family, &["rule", "show", "priority", PRIORITY]).await?;
        let mark = format!("fwmark {MARK:#x}/{MASK:#x} lookup {TABLE}");
        Ok(String::from_utf8_lossy(&shown).lines().any(|line| line.contains(&mark)))
    }
}

async fn ip(family: &str, arguments: &[&str]) -> Result<Vec<u8>, NftError> {
    let mut command = Command::new("ip");
    command.arg(family).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.map_err(|_| NftError::Late)?.map_err(
        |error| match error.kind() {
            io::ErrorKind::NotFound => NftError::Missing { program: "ip".into() },
            _ => NftError::Run(error),
        },
    )?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("Operation not permitted") {
        return Err(NftError::NotPermitted);
    }
    let line = message.lines().next().unwrap_or("no message");
    // A table without routes is not there.
    if arguments.contains(&"show") && line.contains("does not exist") {
        return Ok(Vec::new());
    }
    Err(NftError::Refused {
        message: format!("ip {}: {line}", arguments.join(" ")).chars().take(300).collect(),
    })
}
