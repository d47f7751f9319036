//! Closed test networks: a *world* of network namespaces that reach each other and nothing else.
//!
//! A keeper process owns every namespace of its world: it is process 1 of a pid namespace of its own, its
//! mounts are private, and no device of the machine's own network is ever moved in. When the keeper goes
//! (its owner asked, crashed, or was interrupted) the kernel ends every process of the world and removes
//! every namespace, so there is nothing to clean up by hand.

pub mod cli;
mod edge;
pub mod enter;
pub mod faults;
mod keeper;
mod mapping;
mod nat;
pub mod plan;
pub mod process;
pub mod relay;
pub mod site;
mod socket;
pub mod spec;
pub mod state;
mod tools;
pub mod world;

pub use enter::enter_main;
pub use faults::Fault;
pub use keeper::{keep_main, world_main};
pub use mapping::PortMapping;
pub use nix::sys::signal::Signal;
pub use plan::{Kind, PlaceInfo};
pub use process::Proc;
pub use site::{Egress, Flap, ForwardSpec, Ipv6, Nat, NatSpec, SiteSpec};
pub use socket::Socket;
pub use spec::{NodeSpec, PodSpec, Spec};
pub use world::{Place, World};

/// What can go wrong with a world, named by what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The description of the world is not usable; every finding is listed.
    #[error("the world is not valid:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<String>),
    /// A file of the world's folder could not be used.
    #[error("{action} {path}")]
    File {
        /// "read", "write" and the like.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system call on namespaces or mounts failed.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool such as `ip` or `nft` is missing and could not be installed.
    #[error("{tool} is missing: install {package} (apt-get install {package})")]
    Tool {
        /// Program name.
        tool: &'static str,
        /// Debian package.
        package: &'static str,
    },
    /// A tool refused what it was given.
    #[error("{command} in {place}: {detail}")]
    Command {
        /// The command line.
        command: String,
        /// Namespace it ran in.
        place: String,
        /// What it said.
        detail: String,
    },
    /// The world did not come up.
    #[error("the world did not come up: {0}")]
    Up(String),
    /// No such node, pod or site.
    #[error("no node, pod or site called {name}; there are: {known}")]
    NoSuchPlace {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No such world, or more than one to choose from.
    #[error("{0}")]
    NoSuchWorld(String),
    /// The world holds a device that the lab did not make.
    #[error("the world is not closed: {0}")]
    NotClosed(String),
    /// A process did not do what was waited for.
    #[error("{0}")]
    Process(String),
}

impl LabError {
    pub(crate) fn file(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Self::System { what, source: errno.into() }
    }

    /// The message with its causes, on one line.
    #[must_use]
    pub fn full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            text = format!("{text}: {c}");
            cause = c.source();
        }
        text
    }
}
