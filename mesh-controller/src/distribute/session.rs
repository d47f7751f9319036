//! One proxy's stream, without the stream: what it has subscribed to, what it still has to get, what it has not answered
//! yet. What is queued are names; content is looked up when a response is built, so a slow proxy costs a set of names
//! and gets the newest state when it reads again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use mesh_api::{
    ResourceType,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
};
use prost_types::Any;

use mesh_index::Content;

use super::store::{Generation, Store, TooFarBehind, slot};

/// Responses that may be without an answer; a proxy that does not answer gets no more.
const WINDOW: usize = 16;
/// A response is closed when it holds this much, so that other types need not wait for a large one.
const RESPONSE_BYTES: usize = 1 << 20;
/// Names that one proxy may subscribe to by name.
const MAX_NAMES: usize = 200_000;

/// Why a stream is ended by us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A type that this controller does not have.
    #[error("resource type {0:?} is not known here")]
    UnknownType(String),
    /// The proxy asked for more names than is sane.
    #[error("more than {MAX_NAMES} names subscribed")]
    TooManyNames,
    /// The log no longer reaches back to what the proxy has.
    #[error("too far behind; connect again and say what you have")]
    TooFarBehind,
}

/// What a request turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// A subscription only.
    Nothing,
    /// The proxy took what was sent.
    Ack(ResourceType),
    /// The proxy refused a part of it.
    Nack(ResourceType, String),
    /// An answer to nothing that was sent on this stream.
    Stale,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Names whose state the proxy has to learn.
    due: BTreeSet<Arc<str>>,
    /// The first answer goes out even when it is empty: the proxy waits for it.
    owes_first: bool,
}

/// State of one stream.
#[derive(Debug)]
pub(crate) struct Session {
    subscriptions: [Option<Subscription>; ResourceType::COUNT],
    generation: Generation,
    in_flight: HashMap<String, ResourceType>,
    next_nonce: u64,
    /// Whose stream it is: some resources are for chosen nodes only.
    node: Option<Arc<str>>,
}

/// Whether a node may have a resource; for others it is as if it were not there.
fn may_have(node: Option<&Arc<str>>, content: &Content) -> bool {
    content.audience.as_ref().is_none_or(|nodes| node.is_some_and(|n| nodes.contains(n)))
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            subscriptions: Default::default(),
            generation: 0,
            in_flight: HashMap::new(),
            next_nonce: 1,
            node: None,
        }
    }

    /// The session of a node.
    pub(crate) fn of(node: Arc<str>) -> Self {
        Self { node: Some(node), ..Self::new() }
    }

    /// Takes in a request.
    pub(crate) fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
        store: &Store,
    ) -> Result<Answered, Refusal> {
        let kind = ResourceType::from_url(&request.type_url)
            .ok_or_else(|| Refusal::UnknownType(request.type_url.chars().take(200).collect()))?;
        // Changes up to now are read from the log before the subscription looks at the present: none is missed.
        self.on_change(store).map_err(|TooFarBehind| Refusal::TooFarBehind)?;
        let answered = self.on_answer(kind, &request);
        self.subscribe(kind, request, store)?;
        Ok(answered)
    }

    fn on_answer(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Answered {
        if request.response_nonce.is_empty() {
            return Answered::Nothing;
        }
        match (self.in_flight.remove(&request.response_nonce), &request.error_detail) {
            (None, _) => Answered::Stale,
            (Some(_), None) => Answered::Ack(kind),
            (Some(_), Some(error)) => Answered::Nack(kind, error.message.chars().take(2000).collect()),
        }
    }

    fn subscribe(
        &mut self,
        kind: ResourceType,
        request: DeltaDiscoveryRequest,
        store: &Store,
    ) -> Result<(), Refusal> {
        let view = store.read();
        let node = self.node.clone();
        let slot = &mut self.subscriptions[slot(kind)];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_with(Subscription::default);
        let has = &request.initial_resource_versions;
        // By the protocol, a first request without names asks for everything.
        let everything = request.resource_names_subscribe.iter().any(|n| n == "*")
            || (first && request.resource_names_subscribe.is_empty());
        if everything && !subscription.wildcard {
            subscription.wildcard = true;
            let all = view.all(kind).iter().filter(|(_, c)| may_have(node.as_ref(), c));
            let new = all.filter(|(name, c)| has.get(&***name) != Some(&c.version));
            subscription.due.extend(new.map(|(name, _)| name.clone()));
        }
        if first {
            subscription.owes_first = true;
            // What the proxy still has and nobody knows any more.
            let known = |name: &str| view.get(kind, name).is_some_and(|c| may_have(node.as_ref(), c));
            let gone = has.keys().filter(|name| !known(name));
            subscription.due.extend(gone.map(|name| name.as_str().into()));
        }
        for name in request.resource_names_subscribe.iter().filter(|n| *n != "*") {
            let name: Arc<str> = name.as_str().into();
            let content = view.get(kind, &name).filter(|c| may_have(node.as_ref(), c));
            let known = content.is_some_and(|c| has.get(&*name) == Some(&c.version));
            if !known {
                subscription.due.insert(name.clone());
            }
            subscription.names.insert(name);
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
                let named = &subscription.names;
                subscription.due.retain(|n| named.contains(n));
            }
            subscription.names.remove(name.as_str());
            if !subscription.wildcard {
                subscription.due.remove(name.as_str());
            }
        }
        if subscription.names.len() > MAX_NAMES { Err(Refusal::TooManyNames) } else { Ok(()) }
    }

    /// Notes what was published since the last call.
    pub(crate) fn on_change(&mut self, store: &Store) -> Result<(), TooFarBehind> {
        let view = store.read();
        if self.subscriptions.iter().all(Option::is_none) {
            self.generation = view.generation();
            return Ok(());
        }
        let changed = view.since(self.generation)?;
        self.generation = view.generation();
        for (kind, name) in changed {
            if let Some(s) = &mut self.subscriptions[slot(kind)]
                && (s.wildcard || s.names.contains(&name))
            {
                s.due.insert(name);
            }
        }
        Ok(())
    }

    /// Whether a response can and should be sent now.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.in_flight.len() < WINDOW
            && self.subscriptions.iter().flatten().any(|s| s.owes_first || !s.due.is_empty())
    }

    /// The next response, in the order in which a node applies types.
    pub(crate) fn next_response(&mut self, store: &Store) -> Option<(ResourceType, DeltaDiscoveryResponse)> {
        if self.in_flight.len() >= WINDOW {
            return None;
        }
        let due = |k: &ResourceType, all: &[Option<Subscription>; ResourceType::COUNT]| {
            all[slot(*k)].as_ref().is_some_and(|s| s.owes_first || !s.due.is_empty())
        };
        let kind = ResourceType::ALL.into_iter().find(|k| due(k, &self.subscriptions))?;
        let subscription = self.subscriptions[slot(kind)].as_mut()?;
        subscription.owes_first = false;
        let view = store.read();
        let mut response = DeltaDiscoveryResponse {
            system_version_info: view.generation().to_string(),
            type_url: kind.url().to_owned(),
            nonce: self.next_nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        let mut size = 0;
        while size < RESPONSE_BYTES
            && let Some(name) = subscription.due.pop_first()
        {
            match view.get(kind, &name).filter(|c| may_have(self.node.as_ref(), c)) {
                None => {
                    size += name.len();
                    response.removed_resources.push(name.to_string());
                }
                Some(content) => {
                    size += content.bytes.len() + name.len() + 100;
                    let any = Any { type_url: kind.url().to_owned(), value: content.bytes.clone() };
                    response.resources.push(Resource {
                        version: content.version.clone(),
                        resource: Some(any),
                        name: name.to_string(),
                        aliases: Vec::new(),
                    });
                }
            }
        }
        self.next_nonce += 1;
        self.in_flight.insert(response.nonce.clone(), kind);
        Some((kind, response))
    }

    /// Owes the proxy an answer to nothing, which it acknowledges as any other: a sign of life.
    pub(crate) fn probe(&mut self) {
        if let Some(subscription) = self.subscriptions.iter_mut().flatten().next() {
            subscription.owes_first = true;
        }
    }

    /// The publication whose changes have been noted.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether the proxy has taken, or at least answered, all that has been noted.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight.is_empty()
            && self.subscriptions.iter().flatten().all(|s| !s.owes_first && s.due.is_empty())
    }

    /// Responses without an answer.
    pub(crate) fn unanswered(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
