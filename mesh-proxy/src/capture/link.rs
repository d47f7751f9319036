//! The address of the DNS server: link-local, on a link of its own, so that pods and host
//! applications on every node find DNS at the same place.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Our link, where the kernel has the dummy driver.
const LINK: &str = "selvage0";
/// Where it has not: the loopback link, with a mark that says whose the address is: a label, or for IPv6, which has no labels,
/// the metric of the address's route, which nobody else sets to this.
const LOOPBACK: &str = "lo";
const LABEL: &str = "lo:selvage";
const METRIC: &str = "15053";
const LIMIT: Duration = Duration::from_secs(5);

/// Why the address is not there.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// `ip` could not be run.
    #[error("cannot run ip (package iproute2)")]
    Run(#[source] io::Error),
    /// It failed.
    #[error(
        "cannot give this node the address {address}: {message}; NET_ADMIN is needed, or another dns.listen"
    )]
    Refused {
        /// The address.
        address: IpAddr,
        /// The program's words.
        message: String,
    },
}

/// An address that this node has, and whether we have given it to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddress {
    address: IpAddr,
    /// The link that we have put it on.
    added_to: Option<&'static str>,
}

/// Makes `address` one of this node's, unless it is already: on a dummy link of ours, or on `lo`
/// where the kernel has no dummy links.
pub async fn ensure_address(address: IpAddr) -> Result<LinkAddress, LinkError> {
    if is_local(address) {
        // The process before us may have added it, and has left it to us.
        return Ok(LinkAddress { address, added_to: ours(address).await });
    }
    // Left from an earlier run is as good as new.
    let _exists_or_unknown = ip(address, &["link", "add", LINK, "type", "dummy"]).await;
    let on_dummy = async {
        ip(address, &["link", "set", LINK, "up"]).await?;
        add(address, LINK).await
    };
    let added_to = match on_dummy.await {
        Ok(()) => LINK,
        Err(_no_dummy) => {
            add(address, LOOPBACK).await?;
            LOOPBACK
        }
    };
    tracing::debug!(%address, link = added_to, "address added");
    Ok(LinkAddress { address, added_to: Some(added_to) })
}

impl LinkAddress {
    /// Takes the address away again, if we have added it.
    pub async fn remove(&self) {
        let Some(link) = self.added_to else { return };
        let result = if link == LINK {
            ip(self.address, &["link", "delete", LINK]).await
        } else {
            ip(self.address, &["address", "delete", &whole(self.address), "dev", link]).await
        };
        if let Err(error) = result {
            tracing::warn!(%error, "address not removed");
        }
    }
}

/// The link on which a process of this program has put the address.
async fn ours(address: IpAddr) -> Option<&'static str> {
    let text = address.to_string();
    let mark = if address.is_ipv4() { LABEL.to_owned() } else { format!("metric {METRIC} ") };
    for (link, mark) in [(LINK, ""), (LOOPBACK, &mark)] {
        let shown = ip(address, &["-o", "address", "show", "dev", link, "to", &text]).await;
        if shown.is_ok_and(|lines| !lines.is_empty() && String::from_utf8_lossy(&lines).contains(mark)) {
            return Some(link);
        }
    }
    None
}

/// The address alone, as a network.
fn whole(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Only an address of our own can be bound.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

async fn add(address: IpAddr, link: &str) -> Result<(), LinkError> {
    let prefix = whole(address);
    let mut arguments = vec!["address", "replace", &prefix, "dev", link];
    if address.is_ipv4() && link == LOOPBACK {
        arguments.extend(["label", LABEL]);
    }
    if address.is_ipv6() && link == LOOPBACK {
        arguments.extend(["metric", METRIC]);
    }
    if address.is_ipv6() {
        // Or it cannot be bound until the kernel has looked for another owner.
        arguments.push("nodad");
    }
    ip(address, &arguments).await.map(drop)
}

/// Runs `ip`, and gives what it prints.
async fn ip(address: IpAddr, arguments: &[&str]) -> Result<Vec<u8>, LinkError> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(output) => output.map_err(LinkError::Run)?,
        Err(_) => return Err(LinkError::Run(late())),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(200).collect();
    Err(LinkError::Refused { address, message })
}
