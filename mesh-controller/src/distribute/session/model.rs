//! Whatever is published, asked, answered or cut in whatever order: a proxy that reads on ends up with exactly what it
//! asked for.

use std::collections::{BTreeMap, BTreeSet};

use mesh_index::{Change, Content};
use proptest::prelude::*;

use super::*;

const KIND: ResourceType = ResourceType::Service;

#[derive(Debug, Clone)]
enum Step {
    Publish(Vec<(u8, Option<u8>)>),
    Subscribe(Vec<u8>),
    Unsubscribe(Vec<u8>),
    Wildcard(bool),
    /// The proxy reads one response; `false`: it refuses it.
    Read(bool),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let ids = || proptest::collection::vec(0..6u8, 0..4);
    prop_oneof![
        4 => proptest::collection::vec((0..6u8, proptest::option::weighted(0.7, 0..5u8)), 1..4).prop_map(Step::Publish),
        2 => ids().prop_map(Step::Subscribe),
        1 => ids().prop_map(Step::Unsubscribe),
        1 => any::<bool>().prop_map(Step::Wildcard),
        4 => proptest::bool::weighted(0.9).prop_map(Step::Read),
        1 => Just(Step::Reconnect),
    ]
}

/// A proxy: what it wants and what it has.
#[derive(Default)]
struct Proxy {
    wildcard: bool,
    names: BTreeSet<String>,
    has: BTreeMap<String, String>,
    /// What it refused, by version: it keeps the old and is not told again.
    refused: BTreeMap<String, Option<String>>,
    started: bool,
}

fn names(ids: &[u8]) -> Vec<String> {
    ids.iter().map(|i| format!("r{i}")).collect()
}

impl Proxy {
    fn request(&self, subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: KIND.url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// A first request has to say all; an empty one would mean everything.
    fn first(&mut self) -> DeltaDiscoveryRequest {
        self.started = true;
        let mut subscribe: Vec<String> = self.names.iter().cloned().collect();
        if self.wildcard || subscribe.is_empty() {
            self.wildcard = true;
            subscribe.push("*".to_owned());
        }
        let versions = self.has.clone().into_iter().collect();
        DeltaDiscoveryRequest { initial_resource_versions: versions, ..self.request(subscribe, Vec::new()) }
    }

    /// As mesh-proxy does: what is no longer wanted is dropped at once.
    fn forget_unwanted(&mut self) {
        let (wildcard, names) = (self.wildcard, &self.names);
        self.has.retain(|name, _| wildcard || names.contains(name));
        self.refused.retain(|name, _| wildcard || names.contains(name));
    }

    fn take(&mut self, response: &DeltaDiscoveryResponse, accept: bool) {
        for resource in &response.resources {
            if accept {
                self.refused.remove(&resource.name);
                self.has.insert(resource.name.clone(), resource.version.clone());
            } else {
                self.refused.insert(resource.name.clone(), Some(resource.version.clone()));
            }
        }
        for name in &response.removed_resources {
            self.refused.remove(name);
            self.has.remove(name);
        }
        self.forget_unwanted();
    }
}

fn read(session: &mut Session, proxy: &mut Proxy, store: &Store, accept: bool) -> bool {
    if !session.wants_to_send() {
        return false;
    }
    let (_, response) = session.next_response(store).unwrap();
    proxy.take(&response, accept);
    let mut answer = proxy.request(Vec::new(), Vec::new());
    answer.response_nonce = response.nonce;
    if !accept {
        answer.error_detail = Some(mesh_api::xds::Status { code: 3, message: "no".to_owned() });
    }
    session.on_request(answer, store).unwrap();
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_proxy_ends_up_with_what_it_asked_for(steps in proptest::collection::vec(step(), 0..60)) {
        let (store, mut session, mut proxy) = (Store::new(), Session::new(), Proxy::default());
        for step in steps {
            match step {
                Step::Publish(changes) => {
                    let change = |(i, content): (u8, Option<u8>)| Change {
                        kind: KIND,
                        name: format!("r{i}").as_str().into(),
                        content: content.map(|c| Arc::new(Content { version: c.to_string(), bytes: vec![c], audience: None })),
                    };
                    store.publish(changes.into_iter().map(change).collect());
                    session.on_change(&store).unwrap();
                }
                Step::Subscribe(ids) => {
                    proxy.names.extend(names(&ids));
                    let request = if proxy.started { proxy.request(names(&ids), Vec::new()) } else { proxy.first() };
                    session.on_request(request, &store).unwrap();
                }
                Step::Unsubscribe(ids) if proxy.started => {
                    let gone = names(&ids);
                    proxy.names.retain(|n| !gone.contains(n));
                    proxy.forget_unwanted();
                    session.on_request(proxy.request(Vec::new(), gone), &store).unwrap();
                }
                Step::Wildcard(on) if proxy.started => {
                    proxy.wildcard = on;
                    proxy.forget_unwanted();
                    let star = vec!["*".to_owned()];
                    let (add, remove) = if on { (star, Vec::new()) } else { (Vec::new(), star) };
                    session.on_request(proxy.request(add, remove), &store).unwrap();
                }
                Step::Unsubscribe(_) | Step::Wildcard(_) => {}
                Step::Read(accept) => { read(&mut session, &mut proxy, &store, accept); }
                Step::Reconnect => {
                    session = Session::new();
                    // A new stream sends again what was refused: it may be taken this time.
                    proxy.refused.clear();
                    session.on_request(proxy.first(), &store).unwrap();
                }
            }
        }
        while read(&mut session, &mut proxy, &store, true) {}
        let view = store.read();
        let wanted: BTreeMap<String, String> = view
            .all(KIND)
            .iter()
            .filter(|(name, _)| proxy.started && (proxy.wildcard || proxy.names.contains(&***name)))
            .map(|(name, content)| (name.to_string(), content.version.clone()))
            .collect();
        // What was refused stays old on purpose, as long as exactly that version is current.
        for (name, version) in &wanted {
            let refused = proxy.refused.get(name) == Some(&Some(version.clone()));
            prop_assert!(refused || proxy.has.get(name) == Some(version), "{name}: {:?} is not {version}", proxy.has.get(name));
        }
        for name in proxy.has.keys() {
            prop_assert!(wanted.contains_key(name) , "{name} should be gone");
        }
    }
}
