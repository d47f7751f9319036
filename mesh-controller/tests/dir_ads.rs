//! A real controller on loopback with a folder of manifests, and a client written by hand: joining, subscribing, deltas,
//! refusals, reconnects, and everything that must not work.

#[path = "support/client.rs"]
mod client;
#[path = "../../mesh-proxy/tests/metrics/scenarios.rs"]
mod scenarios;

use std::time::{Duration, Instant};

use client::{Controller, Node, names, node_in, service_yaml};
use mesh_api::{
    ResourceType, model,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status as RpcStatus},
};
use prost::Message;
use tonic::Code;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_gets_services_and_endpoints_and_then_deltas() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    assert_eq!(names(&first), ["reviews.default.svc.cluster.local"]);
    let service = model::Service::decode(&*first.resources[0].resource.as_ref().unwrap().value).unwrap();
    assert_eq!(service.vips, ["10.96.0.10"]);
    assert_eq!(service.ports[0].protocol(), model::Protocol::Http);
    ads.ack(&first).await;

    ads.subscribe(ResourceType::Endpoints, &["reviews.default.svc.cluster.local"]).await;
    let endpoints = ads.next(SOON).await;
    let set = model::Endpoints::decode(&*endpoints.resources[0].resource.as_ref().unwrap().value).unwrap();
    assert_eq!(set.endpoints.len(), 2);
    assert_eq!(set.endpoints[0].node, "edge-a");
    assert_eq!(set.endpoints[0].ports, [model::PortMap { service_port: 9080, target_port: 9080 }]);
    assert_eq!(set.endpoints[0].workload.as_ref().unwrap().labels["version"], "v1");
    ads.ack(&endpoints).await;

    // An edit reaches the node in well under a second.
    let edited = Instant::now();
    controller.write("b.yaml", &service_yaml("ratings", "10.96.0.11"));
    let delta = ads.next(SOON).await;
    assert_eq!(names(&delta), ["ratings.default.svc.cluster.local"]);
    println!("edit to effect: {:?}", edited.elapsed());
    assert!(edited.elapsed() < Duration::from_secs(1), "{:?}", edited.elapsed());
    ads.ack(&delta).await;

    std::fs::remove_file(controller.path("b.yaml")).unwrap();
    let gone = ads.next(SOON).await;
    assert_eq!(gone.removed_resources, ["ratings.default.svc.cluster.local"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_with_versions_gets_nothing_resent() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    let mut versions: Vec<_> = first.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    versions.push(("deleted.while.away".to_owned(), "1".to_owned()));
    drop(ads);

    let mut ads = node.ads().await;
    let request = DeltaDiscoveryRequest {
        type_url: ResourceType::Service.url().to_owned(),
        initial_resource_versions: versions.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    ads.send(request).await;
    let again = ads.next(SOON).await;
    assert!(again.resources.is_empty(), "{:?}", names(&again));
    assert_eq!(again.removed_resources, ["deleted.while.away"]);
    ads.ack(&again).await;
    assert!(ads.quiet_for(Duration::from_millis(300)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nack_is_counted_named_and_not_answered_with_the_same() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    let refusal = RpcStatus { code: 3, message: "reviews: virtual_hosts[0]: is odd".to_owned() };
    ads.answer(&first, Some(refusal)).await;
    assert!(ads.quiet_for(Duration::from_millis(300)).await);
    let state = controller.state().await;
    assert_eq!(state["sessions"][0]["nacks"], 1, "{state}");
    assert_eq!(state["sessions"][0]["last_nack"]["service"], "reviews: virtual_hosts[0]: is odd");
    assert!(controller.metrics().await.contains("selvage_controller_nacks_total{type=\"service\"} 1"));
    // The next change comes as usual.
    controller.write("a.yaml", &client::world().replace("10.96.0.10", "10.96.0.20"));
    assert_eq!(names(&ads.next(SOON).await), ["reviews.default.svc.cluster.local"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_odd_clients_do_is_counted() {
    let few = |config: &mut mesh_controller::config::Config| config.max_connections = 4;
    let controller = Controller::start_with(&[("a.yaml", &client::world())], few).await;
    let node = controller.join("edge-a").await;
    assert_eq!(node.ads_error(ResourceType::Service, "edge-b").await.code(), Code::PermissionDenied);
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    let never_sent = DeltaDiscoveryResponse { nonce: "never sent".to_owned(), ..first.clone() };
    ads.answer(&never_sent, None).await;
    ads.answer(&first, Some(RpcStatus { code: 3, message: "reviews: is odd".to_owned() })).await;
    let mut held = Vec::new();
    let start = Instant::now();
    loop {
        held.push(tokio::net::TcpStream::connect(controller.address()).await);
        let still = scenarios::still("mesh-controller/tests/dir_ads.rs", &controller.metrics().await);
        if still.is_empty() {
            break;
        }
        assert!(start.elapsed() < SOON * 3, "{still:?} did not move");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_or_object_is_named_and_changes_nothing() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    ads.ack(&first).await;
    controller.write("a.yaml", "kind: [ broken");
    let rule =
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: odd}\nspec: {hosts: 7}\n";
    controller.write("rule.yaml", rule);
    let state = controller
        .state_when(|s| {
            s["findings"].as_array().is_some_and(|f| !f.is_empty())
                && s["source"]["problems"].as_object().is_some_and(|p| !p.is_empty())
        })
        .await;
    assert!(
        state["source"]["problems"].as_object().unwrap().keys().any(|k| k.ends_with("a.yaml")),
        "{state}"
    );
    assert_eq!(state["findings"][0]["object"]["name"], "odd");
    assert_eq!(state["findings"][0]["path"], "spec.hosts");
    assert!(ads.quiet_for(Duration::from_millis(200)).await);
    assert_eq!(state["resources"][3][1], 1, "the last good service stays: {state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reported_addresses_reach_the_other_nodes() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let (a, b) = (controller.join("edge-a").await, controller.join("edge-b").await);
    let mut ads = b.ads().await;
    ads.subscribe(ResourceType::Node, &["edge-a"]).await;
    let joined = ads.until(SOON, |r| node_in(r, "edge-a").is_some_and(|n| !n.peer_id.is_empty())).await;
    let node = node_in(&joined, "edge-a").unwrap();
    assert_eq!(node.peer_id, a.peer_id);
    assert!(node.peer_id.starts_with("12D3KooW") && node.addresses.is_empty(), "{node:?}");
    assert_eq!(node.locality.as_ref().unwrap().zone, "zone-1");
    a.report("edge-a", &["/ip4/203.0.113.7/udp/15008/quic-v1"]).await.unwrap();
    let node = node_in(&ads.next(SOON).await, "edge-a").unwrap();
    assert_eq!(node.addresses, ["/ip4/203.0.113.7/udp/15008/quic-v1"]);

    assert_eq!(a.report("edge-b", &[]).await.unwrap_err().code(), Code::PermissionDenied);
    let bad = a.report("edge-a", &["203.0.113.7:1"]).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_certificate_nothing_works() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;

    // No certificate: only Join is there.
    let anonymous = Node { identity: None, ..node.clone() };
    assert_eq!(anonymous.ads_error(ResourceType::Service, "edge-a").await.code(), Code::Unauthenticated);
    assert_eq!(anonymous.report("edge-a", &[]).await.unwrap_err().code(), Code::Unauthenticated);

    // A certificate of another CA: no connection at all.
    let other = Controller::start(&[]).await;
    let stranger = other.join("edge-a").await;
    let stranger = Node { address: node.address, ca: node.ca.clone(), ..stranger };
    assert!(stranger.report("edge-a", &[]).await.is_err());
    assert_eq!(controller.state().await["sessions"].as_array().unwrap().len(), 0);

    // Node A's certificate, node B's name.
    let error = node.ads_error(ResourceType::Service, "edge-b").await;
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    // No name at all.
    assert_eq!(node.ads_error(ResourceType::Service, "").await.code(), Code::PermissionDenied);
    assert!(controller.metrics().await.contains("selvage_controller_identity_mismatches_total 2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_work_once_for_one_node_and_renewal_needs_the_certificate() {
    let controller = Controller::start(&[]).await;
    let token = controller.token("edge-a", 600);
    let wrong = controller.join_with("edge-b", &token).await.unwrap_err();
    assert_eq!(wrong.code(), Code::PermissionDenied);
    let node = controller.join_with("edge-a", &token).await.unwrap();
    let replay = controller.join_with("edge-a", &token).await.unwrap_err();
    assert_eq!(replay.code(), Code::AlreadyExists, "{replay}");
    let expired = controller.join_with("edge-c", &controller.token("edge-c", 0)).await.unwrap_err();
    assert_eq!(expired.code(), Code::FailedPrecondition, "{expired}");
    let stranger = Controller::start(&[]).await;
    let unknown = controller.join_with("edge-a", &stranger.token("edge-a", 600)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unauthenticated, "{unknown}");
    let garbage = controller.join_with("edge-a", "selvage1.garbage").await.unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument);

    // Renewal: own name with the certificate, nothing without it, nobody else's name with it.
    assert!(node.join_request("edge-a", "").await.is_ok());
    assert_eq!(node.join_request("edge-b", "").await.unwrap_err().code(), Code::PermissionDenied);
    let anonymous = Node { identity: None, ..node.clone() };
    assert_eq!(anonymous.join_request("edge-a", "").await.unwrap_err().code(), Code::Unauthenticated);
    let metrics = controller.metrics().await;
    assert!(metrics.contains("selvage_controller_joins_total{outcome=\"ok\"} 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_unsigned_is_refused_and_disturbs_nobody() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    ads.ack(&first).await;

    let token = controller.token("edge-b", 600);
    let request = |csr: Vec<u8>, signature: Vec<u8>| model::JoinRequest {
        node: "edge-b".to_owned(),
        token: token.clone(),
        csr_der: csr,
        peer_public_key: client::peer_key_protobuf("edge-b"),
        peer_signature: signature,
        ..model::JoinRequest::default()
    };
    let huge = node.raw_join(request(vec![0; 128 << 10], Vec::new())).await.unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange, "{huge}");
    let unsigned = node.raw_join(request(client::csr(), vec![0; 64])).await.unwrap_err();
    assert_eq!(unsigned.code(), Code::InvalidArgument, "{unsigned}");
    // None of that spent the token.
    controller.join_with("edge-b", &token).await.unwrap();

    let unknown =
        DeltaDiscoveryRequest { type_url: "nonsense".to_owned(), ..DeltaDiscoveryRequest::default() };
    let mut other = node.ads().await;
    other.send(unknown).await;
    assert_eq!(other.end(SOON).await.code(), Code::InvalidArgument);

    controller.write("b.yaml", &service_yaml("ratings", "10.96.0.11"));
    assert_eq!(names(&ads.next(SOON).await), ["ratings.default.svc.cluster.local"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_delays_nobody() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let (slow, quick) = (controller.join("slow").await, controller.join("quick").await);
    let mut silent = slow.ads().await;
    silent.subscribe(ResourceType::Service, &[]).await;
    // A connection that never says anything at TLS level.
    let _mute = tokio::net::TcpStream::connect(slow.address).await.unwrap();
    let mut ads = quick.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    ads.ack(&first).await;
    for i in 0..30 {
        controller.write("b.yaml", &service_yaml("ratings", &format!("10.96.1.{i}")));
        let before = Instant::now();
        let delta = ads.next(SOON).await;
        ads.ack(&delta).await;
        assert!(before.elapsed() < Duration::from_secs(1), "round {i}: {:?}", before.elapsed());
    }
    // The silent one was given no more than the window, and gets the newest when it answers.
    let state = controller.state().await;
    let session = state["sessions"].as_array().unwrap().iter().find(|s| s["node"] == "slow").unwrap().clone();
    assert!(session["unanswered"].as_u64().unwrap() <= 16, "{session}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_disconnected_and_cannot_renew() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let (a, b) = (controller.join("edge-a").await, controller.join("edge-b").await);
    let mut ads = b.ads().await;
    ads.subscribe(ResourceType::Node, &[]).await;
    ads.until(SOON, |r| node_in(r, "edge-b").is_some()).await;
    controller.delete_node("edge-b").await;
    assert_eq!(ads.end(SOON).await.code(), Code::PermissionDenied);
    assert_eq!(b.join_request("edge-b", "").await.unwrap_err().code(), Code::PermissionDenied);
    let mut ads = a.ads().await;
    ads.subscribe(ResourceType::Node, &["edge-b"]).await;
    ads.until(SOON, |r| r.removed_resources == ["edge-b"]).await;
    controller.remove_record("edge-a");
    assert_eq!(ads.end(SOON).await.code(), Code::PermissionDenied);
    let metrics = controller.metrics().await;
    for by in ["operator", "elsewhere"] {
        let line = format!("selvage_controller_nodes_left_total{{by=\"{by}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

fn first_versions(response: &DeltaDiscoveryResponse) -> Vec<(String, String)> {
    response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_controller_knows_its_nodes_and_resends_nothing() {
    let mut controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let mut node = controller.join("edge-a").await;
    node.report("edge-a", &["/ip4/203.0.113.7/tcp/15008"]).await.unwrap();
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Node, &[]).await;
    let complete = ads.until(SOON, |r| node_in(r, "edge-a").is_some_and(|n| !n.addresses.is_empty())).await;
    let mut versions: Vec<_> = first_versions(&complete);
    let mut others = node.ads().await;
    others.subscribe(ResourceType::Node, &[]).await;
    versions.extend(first_versions(&others.next(SOON).await));
    drop(others);
    controller.restart().await;
    assert_eq!(ads.end(SOON).await.code(), Code::Unavailable);
    node.address = controller.address();
    let mut ads = node.ads().await;
    let request = DeltaDiscoveryRequest {
        type_url: ResourceType::Node.url().to_owned(),
        initial_resource_versions: versions.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    ads.send(request).await;
    let again = ads.next(SOON).await;
    assert!(again.resources.is_empty() && again.removed_resources.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_peer_key_is_refused_and_leaves_the_token() {
    let controller = Controller::start(&[]).await;
    let a = controller.join("edge-a").await;
    let token = controller.token("edge-b", 600);
    let copy = a.join_with_key_of("edge-a", "edge-b", &token).await.unwrap_err();
    assert_eq!(copy.code(), Code::FailedPrecondition);
    assert!(copy.message().contains("edge-a"), "{copy}");
    controller.join_with("edge-b", &token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_too_many_streams_disturb_nobody() {
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let node = controller.join("edge-a").await;
    let mut ads = node.ads().await;
    ads.subscribe(ResourceType::Service, &[]).await;
    let first = ads.next(SOON).await;
    ads.ack(&first).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 4096]] {
        let mut tcp = tokio::net::TcpStream::connect(node.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, garbage).await.unwrap();
    }
    let mut more = Vec::new();
    for _ in 0..3 {
        more.push(node.ads().await);
    }
    assert_eq!(node.ads_error(ResourceType::Service, "edge-a").await.code(), Code::ResourceExhausted);
    drop(more);
    controller.write("b.yaml", &service_yaml("ratings", "10.96.0.11"));
    assert_eq!(names(&ads.next(SOON).await), ["ratings.default.svc.cluster.local"]);
    let metrics = controller.metrics().await;
    let failed =
        metrics.lines().find(|l| l.starts_with("selvage_controller_failed_handshakes_total")).unwrap();
    assert!(!failed.ends_with(" 0"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_all_nodes_within_a_second() {
    // `FLEET=1000` for a figure; each node is a TLS connection with both ends in this process.
    let fleet: usize = std::env::var("FLEET").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let controller = Controller::start(&[("a.yaml", &client::world())]).await;
    let mut streams = Vec::new();
    for i in 0..fleet {
        let node = controller.join(&format!("edge-{i}")).await;
        let mut ads = node.ads().await;
        ads.subscribe(ResourceType::Service, &[]).await;
        let first = ads.next(SOON).await;
        ads.ack(&first).await;
        streams.push(ads);
    }
    let edited = Instant::now();
    controller.write("b.yaml", &service_yaml("ratings", "10.96.0.11"));
    let took = futures::future::join_all(streams.iter_mut().map(|ads| async move {
        assert_eq!(names(&ads.next(SOON).await), ["ratings.default.svc.cluster.local"]);
        edited.elapsed()
    }));
    let slowest = took.await.into_iter().max().unwrap();
    println!("edit to effect on {fleet} nodes: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
