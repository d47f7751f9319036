//! Who asks, what it asks for, and where chance comes from.

use std::{collections::BTreeMap, net::IpAddr};

use crate::endpoint::WorkloadEntry;

/// The caller, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Namespace of the calling workload.
    pub namespace: &'a str,
    /// Labels of the calling workload.
    pub labels: &'a BTreeMap<String, String>,
    /// `namespace/name` of the gateway that received the request; none inside the mesh.
    pub gateway: Option<&'a str>,
    /// The address that it called; none = a name, or unknown.
    pub called: Option<IpAddr>,
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl<'a> Client<'a> {
    /// A caller in the mesh of which nothing but the namespace is known.
    pub fn in_namespace(namespace: &'a str) -> Self {
        Self { namespace, labels: &NO_LABELS, gateway: None, called: None }
    }

    /// A workload as caller.
    pub fn of(workload: &'a WorkloadEntry) -> Self {
        Self { namespace: &workload.namespace, labels: &workload.labels, gateway: None, called: None }
    }

    /// The name that `gateways` lists of rules are compared with.
    pub fn gateway_name(&self) -> &'a str {
        self.gateway.unwrap_or("mesh")
    }
}

/// A request, as far as rules look at it. Nothing is copied.
pub trait RequestView {
    /// The verb, as sent.
    fn method(&self) -> &str;
    /// `Host` or `:authority`, as sent, with a port if there was one.
    fn authority(&self) -> &str;
    /// Path and query, as sent (after [`crate::path::normalize`]).
    fn path_and_query(&self) -> &str;
    /// `http` or `https`.
    fn scheme(&self) -> &str;
    /// Calls `f` with each value of the header until it returns true; says whether it did.
    /// `name` is lower case. A value that is not text is passed over.
    fn header_values(&self, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool;
}

/// What a draw is for, so that a simulation can fix each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiceKind {
    /// Is this request delayed?
    FaultDelay,
    /// Is this request aborted?
    FaultAbort,
    /// Which of several weighted destinations?
    Weight,
    /// Is this request copied to the mirror with that position?
    Mirror,
    /// Which endpoint?
    Balance,
    /// How long is a retry put off?
    Backoff,
}

/// A source of chance.
pub trait Dice {
    /// A number in `[0, 1)`.
    fn roll(&mut self, what: DiceKind) -> f64;
}

impl<F: FnMut(DiceKind) -> f64> Dice for F {
    fn roll(&mut self, what: DiceKind) -> f64 {
        self(what)
    }
}
