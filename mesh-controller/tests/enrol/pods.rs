//! Joining as a pod: what lets a node in, what does not, and how it leaves with its Node or its pod.

use std::time::Instant;

use mesh_api::ResourceType;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tonic::Code;

use crate::{
    client::Node,
    cluster::{AUDIENCE, CUT, NAMESPACE, SOON, World, until},
    forge,
};

pub(crate) async fn a_pod_joins_and_leaves_with_its_node(world: &World) {
    world.cluster.node("edge-a");
    let uid = world.cluster.pod("proxy-a", "mesh-proxy", "edge-a");
    let token = world.cluster.token("mesh-proxy", Some(("proxy-a", &uid)), AUDIENCE);
    let node = world.new_node("edge-a").join_as_pod("edge-a", "edge-a", &token).await.unwrap();
    assert_eq!(world.enrolments("ok").await, 1.0);
    // The other replica serves it at once, whether its watch has told it or not.
    let mut stream = node.at(world.b.address()).ads().await;
    stream.subscribe(ResourceType::MeshConfig, &[]).await;
    stream.next(SOON).await;
    // The same token proves the same again while the pod lives: an answer may get lost.
    world.new_node("edge-a").join_as_pod("edge-a", "edge-a", &token).await.unwrap();
    let (_, listed) = world.cluster.meshctl(&["node", "list"]);
    assert!(listed.contains("edge-a") && listed.contains("node-service-account"), "{listed}");

    let started = Instant::now();
    world.cluster.kube.kubectl(&["delete", "node", "edge-a", "--wait=false"]).unwrap();
    let end = stream.end(SOON).await;
    println!("Node object deleted: cut after {:?} ({})", started.elapsed(), end.message());
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    assert!(started.elapsed() < CUT);
    let again = node.ads_error(ResourceType::MeshConfig, "edge-a").await;
    assert!(
        again.message().contains("removed"),
        "its certificate still holds, and is good for nothing: {again}"
    );
}

pub(crate) async fn what_lets_nobody_in(world: &World, ca: &CertificateDer<'static>) {
    let cluster = &world.cluster;
    for name in ["edge-b", "edge-c"] {
        cluster.node(name);
    }
    let uid = cluster.pod("proxy-b", "mesh-proxy", "edge-b");
    let good = cluster.token("mesh-proxy", Some(("proxy-b", &uid)), AUDIENCE);
    let other = cluster.pod("intruder", "other", "edge-b");
    let keys = cluster.dir.join("kube/pki");
    let hour_ago = |claims: &mut Value| {
        let now = claims["iat"].as_u64().unwrap();
        (claims["iat"], claims["nbf"], claims["exp"]) =
            ((now - 7200).into(), (now - 7200).into(), (now - 3600).into());
    };
    let claim_c = |claims: &mut Value| claims["kubernetes.io"]["node"]["name"] = "edge-c".into();
    let cases: [(&str, &str, String, Code, &str); 9] = [
        (
            "edge-b",
            "audience",
            cluster.token("mesh-proxy", Some(("proxy-b", &uid)), "https://kubernetes.default.svc"),
            Code::Unauthenticated,
            AUDIENCE,
        ),
        (
            "edge-b",
            "account",
            cluster.token("other", Some(("intruder", &other)), AUDIENCE),
            Code::PermissionDenied,
            "other may not join",
        ),
        ("edge-c", "other_node", good.clone(), Code::PermissionDenied, "on node edge-b"),
        ("edge-b", "no_pod", cluster.token("mesh-proxy", None, AUDIENCE), Code::PermissionDenied, "no pod"),
        ("edge-b", "expired", forge::resigned(&good, &keys, hour_ago), Code::FailedPrecondition, "expired"),
        // Says what it has to say, and is signed by nobody whom the API server knows.
        ("edge-b", "unauthenticated", forge::forged(&good), Code::Unauthenticated, "does not know the token"),
        (
            "edge-c",
            "unauthenticated",
            forge::altered(&good, claim_c),
            Code::Unauthenticated,
            "does not know the token",
        ),
        ("edge-b", "malformed", "not.a-token".to_owned(), Code::InvalidArgument, "three parts"),
        ("edge-b", "malformed", "a".repeat(20_000), Code::InvalidArgument, "too long"),
    ];
    for (name, label, token, code, part) in cases {
        let before = world.enrolments(label).await;
        let refused = world.new_node(name).join_as_pod(name, name, &token).await.unwrap_err();
        assert_eq!(refused.code(), code, "{label}: {refused}");
        assert!(refused.message().contains(part), "{label}: {refused}");
        assert_eq!(world.enrolments(label).await, before + 1.0, "{label}");
    }
    // A node that trusts another CA speaks with nobody, and does not show its token.
    let stranger = Node::new(world.a.address(), [7; 32], "edge-b");
    assert_ne!(mesh_net::tls::fingerprint(ca), stranger.ca_sha256);
    let refused = stranger.join_as_pod("edge-b", "edge-b", &good).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // The good one, and the same one when its pod is gone.
    world.new_node("edge-b").join_as_pod("edge-b", "edge-b", &good).await.unwrap();
    let gone = ["delete", "pod", "proxy-b", "-n", NAMESPACE, "--grace-period=0", "--force"];
    cluster.kube.kubectl(&gone).unwrap();
    // The API server itself remembers for ten seconds what it has said of a token.
    let refused = until("a replay is refused", SOON + SOON, async || {
        world.new_node("edge-b").join_as_pod("edge-b", "edge-b", &good).await.err()
    })
    .await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let nothing = world.new_node("edge-b").join_request("edge-b", "").await.unwrap_err();
    assert_eq!(nothing.code(), Code::Unauthenticated, "{nothing}");
}

pub(crate) async fn gateways_join_under_their_own_names(world: &World) {
    let cluster = &world.cluster;
    let uid = cluster.pod("gateway-1", "gateway", "edge-c");
    let token = cluster.token("gateway", Some(("gateway-1", &uid)), AUDIENCE);
    let refused = world.new_node("edge-c").join_as_pod("edge-c", "edge-c", &token).await.unwrap_err();
    assert!(refused.message().contains("gateway-1"), "not as the node below it: {refused}");
    let node = world.new_node("gateway-1").join_as_pod("gateway-1", "gateway-1", &token).await.unwrap();
    let mut stream = node.ads().await;
    stream.subscribe(ResourceType::MeshConfig, &[]).await;
    stream.next(SOON).await;
    // A pod may not take the name of a node.
    let uid = cluster.pod("edge-c", "gateway", "edge-b");
    let token = cluster.token("gateway", Some(("edge-c", &uid)), AUDIENCE);
    let refused = world.new_node("edge-c").join_as_pod("edge-c", "edge-c", &token).await.unwrap_err();
    assert!(refused.message().contains("name of a node"), "{refused}");
    let gone = ["delete", "pod", "gateway-1", "-n", NAMESPACE, "--grace-period=0", "--force"];
    cluster.kube.kubectl(&gone).unwrap();
    assert_eq!(stream.end(SOON).await.code(), Code::PermissionDenied);
}
