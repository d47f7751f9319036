//! Ports that the router opens for this node: by PCP (RFC 6887) or NAT-PMP (RFC 6886), and by UPnP where it speaks
//! neither. The router of IPv6 is asked by PCP to let packets in through its firewall. What is open is told to peers as
//! an address of this node.
//!
//! - `wire`: messages. `book`: what is open, and what is asked when; both pure. `gateway`: which router.
//! - `upnp`: the other protocol. `task`: sockets.

mod book;
mod gateway;
mod task;
mod upnp;
mod wire;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};

pub(crate) use self::{gateway::toward, wire::Port};
use super::candidates::Carrier;

/// What is open, and where.
pub(crate) type Open = BTreeSet<(Carrier, SocketAddr)>;

/// Ports that are asked for, by the family of the addresses on which they listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) four: BTreeSet<Port>,
    pub(crate) six: BTreeSet<Port>,
}

/// Time that closing may take.
const LEAVE: Duration = Duration::from_millis(900);

/// The task that asks.
#[derive(Debug)]
pub(crate) struct Mapping {
    wanted: watch::Sender<Wanted>,
    open: watch::Receiver<Open>,
    keep: Arc<AtomicBool>,
}

impl Mapping {
    /// Begins; nothing is wanted yet.
    pub(crate) fn start(on: &Handle, secret: [u8; 32]) -> Self {
        let (wanted, ports) = watch::channel(Wanted::default());
        let (say, open) = watch::channel(Open::new());
        let keep = Arc::new(AtomicBool::new(false));
        on.spawn(task::run(secret, ports, say, keep.clone()));
        Self { wanted, open, keep }
    }

    /// Asks for these ports from now on.
    pub(crate) fn want(&self, ports: Wanted) {
        self.wanted.send_if_modified(|old| {
            *old != ports && {
                *old = ports;
                true
            }
        });
    }

    /// What is open.
    pub(crate) fn open(&self) -> Open {
        self.open.borrow().clone()
    }

    /// Waits until that changes.
    pub(crate) async fn changed(&mut self) {
        if self.open.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives everything back, or leaves it to a process that goes on.
    pub(crate) async fn leave(self, keep: bool) {
        self.keep.store(keep, Ordering::Relaxed);
        let Self { wanted, mut open, .. } = self;
        drop(wanted);
        // The task ends with its sender.
        let ended = async { while open.changed().await.is_ok() {} };
        if tokio::time::timeout(LEAVE, ended).await.is_err() {
            tracing::debug!("the router does not confirm that ports are closed");
        }
    }
}
