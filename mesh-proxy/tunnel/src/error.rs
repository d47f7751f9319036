//! Why a stream does not open: one closed set, each with a label for metrics.

use std::{sync::Arc, time::Duration};

use mesh_api::model::tunnel_answer::Code;

/// Why a tunnel does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address is not a multiaddr.
    #[error("listen address {address:?}: {reason}")]
    Address {
        /// As configured.
        address: String,
        /// What the parser said.
        reason: String,
    },
    /// The socket could not be bound.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// As configured.
        address: String,
        /// What the transport said.
        reason: String,
    },
    /// A certificate for the transport could not be made from the key.
    #[error("make transport certificate: {0}")]
    Certificate(String),
    /// The system's resolver configuration could not be read.
    #[error("read resolver configuration")]
    Resolver(#[source] std::io::Error),
    /// A metric of that name exists already in the registry.
    #[error("register tunnel metrics")]
    Metrics(#[source] prometheus::Error),
}

/// What an owner answers instead of OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The node does not own that endpoint.
    NotOwner,
    /// Address class refused, or the source is not placed on the opener's node.
    Forbidden,
    /// The endpoint refused the connection.
    ConnectRefused,
    /// The endpoint did not answer.
    ConnectTimeout,
    /// A bound of the owner is reached.
    Overloaded,
    /// The open message is not understood.
    BadRequest,
    /// The owner is shutting down.
    Draining,
}

impl Refusal {
    /// Label for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotOwner => "not_owner",
            Self::Forbidden => "forbidden",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Overloaded => "overloaded",
            Self::BadRequest => "bad_request",
            Self::Draining => "draining",
        }
    }

    /// The code on the wire.
    pub const fn code(self) -> Code {
        match self {
            Self::NotOwner => Code::NotOwner,
            Self::Forbidden => Code::Forbidden,
            Self::ConnectRefused => Code::ConnectRefused,
            Self::ConnectTimeout => Code::ConnectTimeout,
            Self::Overloaded => Code::Overloaded,
            Self::BadRequest => Code::BadRequest,
            Self::Draining => Code::Draining,
        }
    }
}

/// Why [`crate::Tunnel::open`] gives no stream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The peer view has no such node, or the node has not joined.
    #[error("node {0:?} is not in the peer view")]
    UnknownNode(String),
    /// The node has no address that can be dialled.
    #[error("node {0:?} has no address that this node can dial")]
    NoAddress(String),
    /// All addresses failed.
    #[error("dial {node}: {reason}")]
    Dial {
        /// The node.
        node: Arc<str>,
        /// What failed, address by address.
        reason: Arc<str>,
    },
    /// Dials failed a moment ago; the next one waits.
    #[error("dial {node} is held back for {wait:?}: {reason}")]
    Backoff {
        /// The node.
        node: Arc<str>,
        /// Until the next attempt.
        wait: Duration,
        /// Why the last one failed.
        reason: Arc<str>,
    },
    /// The node's connections have been silent for this long, and a dial had no answer.
    #[error(
        "{node} does not answer: its connections have been silent for {since:?}, and a dial had no answer"
    )]
    Silent {
        /// The node.
        node: Arc<str>,
        /// Since somebody asked for the first time.
        since: Duration,
    },
    /// A bound of this node is reached.
    #[error("stream limit reached: {0}")]
    Limit(&'static str),
    /// The open did not finish in time.
    #[error("open to {0} timed out")]
    Timeout(Arc<str>),
    /// The connection ended while the stream was opening.
    #[error("connection to {0} lost while opening")]
    Lost(Arc<str>),
    /// The connection ended after bytes of the caller had been sent with the open message: they may have reached the
    /// endpoint.
    #[error("connection to {0} lost after the first bytes were sent")]
    Spoken(Arc<str>),
    /// The open message is larger than the protocol allows.
    #[error("open message of {0} bytes is too large")]
    TooLarge(usize),
    /// The owner said no.
    #[error("{node} refused: {} {detail}", code.as_str())]
    Refused {
        /// The owner.
        node: Arc<str>,
        /// Why.
        code: Refusal,
        /// The owner's words.
        detail: String,
    },
    /// The owner's answer is not understood.
    #[error("{0} gave an answer that is not understood")]
    BadAnswer(Arc<str>),
    /// The tunnel is closed.
    #[error("tunnel is closed")]
    Closed,
}

impl OpenError {
    /// Label for metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownNode(_) => "unknown_node",
            Self::NoAddress(_) => "no_address",
            Self::Dial { .. } => "dial",
            Self::Backoff { .. } => "backoff",
            Self::Silent { .. } => "silent",
            Self::Limit(_) => "limit",
            Self::Timeout(_) => "timeout",
            Self::Lost(_) => "lost",
            Self::Spoken(_) => "spoken",
            Self::TooLarge(_) => "too_large",
            Self::Refused { code, .. } => code.as_str(),
            Self::BadAnswer(_) => "bad_answer",
            Self::Closed => "closed",
        }
    }
}
