use mesh_api::xds::Status;
use mesh_index::{Change, Content};

use super::*;

const KIND: ResourceType = ResourceType::Service;

fn publish(store: &Store, changes: &[(&str, Option<&str>)]) {
    let change = |(name, content): &(&str, Option<&str>)| Change {
        kind: KIND,
        name: (*name).into(),
        content: content.map(|c| {
            Arc::new(Content { version: c.to_owned(), bytes: c.as_bytes().to_vec(), audience: None })
        }),
    };
    store.publish(changes.iter().map(change).collect());
}

fn request(subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: KIND.url().to_owned(),
        resource_names_subscribe: subscribe.iter().map(|s| (*s).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Sends all that is due: sent names with their content, removed names, nonces.
fn drain(session: &mut Session, store: &Store) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut sent, mut removed, mut nonces) = (Vec::new(), Vec::new(), Vec::new());
    while session.wants_to_send() {
        let (_, response) = session.next_response(store).unwrap();
        sent.extend(response.resources.iter().map(|r| format!("{}={}", r.name, r.version)));
        removed.extend(response.removed_resources);
        nonces.push(response.nonce);
    }
    (sent, removed, nonces)
}

fn answer(session: &mut Session, store: &Store, nonce: &str, error: Option<&str>) -> Answered {
    let mut r = request(&[]);
    r.response_nonce = nonce.to_owned();
    r.error_detail = error.map(|m| Status { code: 3, message: m.to_owned() });
    session.on_request(r, store).unwrap()
}

#[test]
fn a_wildcard_gets_everything_then_only_differences() {
    let (store, mut s) = (Store::new(), Session::new());
    publish(&store, &[("a", Some("1")), ("b", Some("1"))]);
    s.on_request(request(&[]), &store).unwrap();
    let (sent, removed, _) = drain(&mut s, &store);
    assert_eq!((sent, removed.len()), (vec!["a=1".to_owned(), "b=1".to_owned()], 0));
    publish(&store, &[("b", Some("2")), ("a", None), ("c", Some("1"))]);
    s.on_change(&store).unwrap();
    let (sent, removed, _) = drain(&mut s, &store);
    assert_eq!((sent, removed), (vec!["b=2".to_owned(), "c=1".to_owned()], vec!["a".to_owned()]));
    s.on_change(&store).unwrap();
    assert!(!s.wants_to_send());
}

#[test]
fn names_get_only_themselves_and_hear_of_their_absence() {
    let (store, mut s) = (Store::new(), Session::new());
    publish(&store, &[("a", Some("1")), ("b", Some("1"))]);
    s.on_request(request(&["a", "missing"]), &store).unwrap();
    let (sent, removed, _) = drain(&mut s, &store);
    assert_eq!((sent, removed), (vec!["a=1".to_owned()], vec!["missing".to_owned()]));
    publish(&store, &[("b", Some("2")), ("missing", Some("1"))]);
    s.on_change(&store).unwrap();
    assert_eq!(drain(&mut s, &store).0, ["missing=1"]);
    let mut un = request(&[]);
    un.resource_names_unsubscribe = vec!["a".to_owned()];
    s.on_request(un, &store).unwrap();
    publish(&store, &[("a", Some("2"))]);
    s.on_change(&store).unwrap();
    assert!(!s.wants_to_send());
}

#[test]
fn a_reconnect_gets_nothing_that_it_has_and_all_that_it_missed() {
    let (store, mut s) = (Store::new(), Session::new());
    publish(&store, &[("a", Some("1")), ("b", Some("2")), ("d", Some("1"))]);
    let mut r = request(&["*"]);
    r.initial_resource_versions =
        [("a", "1"), ("b", "1"), ("c", "1")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    s.on_request(r, &store).unwrap();
    let (sent, removed, nonces) = drain(&mut s, &store);
    assert_eq!((sent, removed), (vec!["b=2".to_owned(), "d=1".to_owned()], vec!["c".to_owned()]));
    assert_eq!(nonces.len(), 1);
    // With everything current there is one empty answer: the proxy learns that it is complete.
    let mut s = Session::new();
    let mut r = request(&["*"]);
    r.initial_resource_versions =
        [("a", "1"), ("b", "2"), ("d", "1")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    s.on_request(r, &store).unwrap();
    assert_eq!(drain(&mut s, &store), (Vec::new(), Vec::new(), vec!["1".to_owned()]));
}

#[test]
fn answers_are_matched_with_what_was_sent() {
    let (store, mut s) = (Store::new(), Session::new());
    publish(&store, &[("a", Some("1"))]);
    s.on_request(request(&[]), &store).unwrap();
    let nonce = drain(&mut s, &store).2.remove(0);
    assert_eq!(answer(&mut s, &store, "77", None), Answered::Stale);
    let nack = answer(&mut s, &store, &nonce, Some("a: bad"));
    assert_eq!(nack, Answered::Nack(KIND, "a: bad".to_owned()));
    // What was refused is not sent again until it changes.
    assert!(!s.wants_to_send());
    publish(&store, &[("a", Some("2"))]);
    s.on_change(&store).unwrap();
    let nonce = drain(&mut s, &store).2.remove(0);
    assert_eq!(answer(&mut s, &store, &nonce, None), Answered::Ack(KIND));
    assert_eq!(answer(&mut s, &store, &nonce, None), Answered::Stale);
    assert_eq!(s.unanswered(), 0);
}

#[test]
fn a_proxy_that_does_not_answer_gets_no_more_and_then_the_newest() {
    let (store, mut s) = (Store::new(), Session::new());
    s.on_request(request(&[]), &store).unwrap();
    let mut nonces = drain(&mut s, &store).2;
    for i in 0..100 {
        publish(&store, &[("a", Some(&i.to_string()))]);
        s.on_change(&store).unwrap();
        nonces.extend(drain(&mut s, &store).2);
    }
    assert_eq!(nonces.len(), WINDOW);
    assert!(s.next_response(&store).is_none());
    for nonce in &nonces {
        answer(&mut s, &store, nonce, None);
    }
    assert_eq!(drain(&mut s, &store).0, ["a=99"]);
}

#[test]
fn large_states_are_sent_in_parts_and_in_order_of_types() {
    let (store, mut s) = (Store::new(), Session::new());
    let big = "x".repeat(300 << 10);
    let names: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
    let all: Vec<_> = names.iter().map(|n| (n.as_str(), Some(big.as_str()))).collect();
    publish(&store, &all);
    let mut endpoints = request(&[]);
    endpoints.type_url = ResourceType::Endpoints.url().to_owned();
    s.on_request(endpoints, &store).unwrap();
    s.on_request(request(&[]), &store).unwrap();
    let mut kinds = Vec::new();
    while s.wants_to_send() {
        let (kind, response) = s.next_response(&store).unwrap();
        let size: usize =
            response.resources.iter().filter_map(|r| r.resource.as_ref()).map(|a| a.value.len()).sum();
        assert!(size <= RESPONSE_BYTES + big.len(), "{size}");
        kinds.push(kind);
    }
    assert_eq!(kinds, [KIND, KIND, KIND, ResourceType::Endpoints]);
}

#[test]
fn unknown_types_and_absurd_subscriptions_are_refused() {
    let (store, mut s) = (Store::new(), Session::new());
    let mut r = request(&[]);
    r.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    assert!(matches!(s.on_request(r, &store), Err(Refusal::UnknownType(_))));
    let mut r = request(&[]);
    r.resource_names_subscribe = (0..=MAX_NAMES).map(|i| format!("n{i}")).collect();
    assert_eq!(s.on_request(r, &store), Err(Refusal::TooManyNames));
}

#[test]
fn what_is_for_chosen_nodes_is_not_there_for_others() {
    let store = Store::new();
    let publish_for = |nodes: &[&str], version: &str| {
        let audience = Some(nodes.iter().map(|n| Arc::from(*n)).collect());
        let content = Content { version: version.to_owned(), bytes: b"key".to_vec(), audience };
        store.publish(vec![Change { kind: KIND, name: "s".into(), content: Some(Arc::new(content)) }]);
    };
    publish_for(&["a"], "1");
    let (mut a, mut b, mut nobody) = (Session::of("a".into()), Session::of("b".into()), Session::new());
    for session in [&mut a, &mut b, &mut nobody] {
        session.on_request(request(&["*", "s"]), &store).unwrap();
    }
    assert_eq!(drain(&mut a, &store).0, ["s=1"]);
    assert_eq!(drain(&mut b, &store), (vec![], vec!["s".to_owned()], vec!["1".to_owned()]));
    assert!(drain(&mut nobody, &store).0.is_empty());
    // It moves to the other node: one gets it, one is told to forget it.
    publish_for(&["b"], "1");
    for session in [&mut a, &mut b] {
        session.on_change(&store).unwrap();
    }
    let (sent, removed, _) = drain(&mut a, &store);
    assert_eq!((sent, removed), (vec![], vec!["s".to_owned()]));
    assert_eq!(drain(&mut b, &store).0, ["s=1"]);
}
