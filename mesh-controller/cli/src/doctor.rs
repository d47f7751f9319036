//! `meshctl doctor`: what is wrong on this node, and how to mend it.
//!
//! - [`ask`]: what the proxy says of itself: pages and metrics.
//! - [`state`]: capture, DNS, controller, clock, certificate, from what the proxy says.
//! - [`network`]: relays and peers by UDP and TCP, path MTU.
//! - [`probe`]: one datagram that every QUIC server answers, whoever asks.
//! - [`ports`]: who else listens where the proxy wants to.

mod ask;
mod network;
mod ports;
mod probe;
mod state;

use anyhow::Result;
use serde::Serialize;

use crate::{Outcome, args, output, reach::One};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Works, with less than there could be.
    Warn,
    /// Does not work.
    Fail,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What.
    pub(crate) check: &'static str,
    /// How it is.
    pub(crate) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// How to mend it; empty when there is nothing to mend.
    pub(crate) fix: String,
}

impl Check {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), fix: String::new() }
    }

    pub(crate) fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, found: found.into(), fix: fix.into() }
    }

    pub(crate) fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, found: found.into(), fix: fix.into() }
    }
}

pub(crate) fn run(args: &args::Doctor) -> Result<Outcome> {
    let node = ask::Node::ask(&One::find(&args.admin)?);
    let here = args.admin.node.is_none();
    let mut checks = Vec::new();
    checks.push(state::proxy(&node));
    if here {
        checks.extend(ports::all(&node));
    } else {
        eprintln!(
            "meshctl: ports, DNS, and the ways to relays and peers are looked at on the node itself only"
        );
    }
    if let Ok(node) = &node {
        checks.extend(state::said(node));
        if here {
            checks.push(state::dns(node));
            checks.extend(network::all(node, args.wait()));
        }
    }
    output::print(args.output.format, &checks, || text(&checks))?;
    Ok(if checks.iter().any(|c| c.status == Status::Fail) { Outcome::Findings } else { Outcome::Fine })
}

/// For people.
pub(crate) fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    let wide = checks.iter().map(|c| c.check.len()).max().unwrap_or(0).max(12);
    for c in checks {
        out.push_str(&format!("{:<4}  {:<wide$}  {}\n", c.status.as_str(), c.check, c.found));
        if !c.fix.is_empty() {
            out.push_str(&format!("{:1$}{2}\n", "", wide + 8, c.fix));
        }
    }
    let count = |s| checks.iter().filter(|c| c.status == s).count();
    out.push_str(&format!(
        "{} ok, {} to look at, {} wrong\n",
        count(Status::Ok),
        count(Status::Warn),
        count(Status::Fail)
    ));
    out
}

#[cfg(test)]
mod tests;
