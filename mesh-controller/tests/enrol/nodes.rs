//! Nodes that an operator lets in by join tokens, and keys and disks that are where they should not be.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_api::ResourceType;
use serde_json::Value;
use tonic::{Code, Status};

use crate::{
    client::{Ads, Node},
    cluster::{CUT, NAMESPACE, SOON, World, metric, until},
};

pub(crate) async fn a_join_token_is_spent_once_by_all_replicas(world: &World) {
    let (fine, token) = world.cluster.meshctl(&["token", "create", "--node", "far-1"]);
    assert!(fine && token.starts_with("selvage1."), "{token}");
    let at = |address: SocketAddr| Node::new(address, world.ca, "far-1");
    // Two with different keys, at two replicas, at the same moment.
    let (one, two) = (at(world.a.address()), at(world.b.address()));
    let (one, two) = tokio::join!(
        one.join_with_key_of("far-1", "far-1", &token),
        two.join_with_key_of("thief", "far-1", &token)
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
    let again = at(world.b.address()).join_request("far-1", &token).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again}");
    assert!(again.message().contains("used already"), "{again}");
    let (_, listed) = world.cluster.meshctl(&["token", "list"]);
    assert!(listed.contains("far-1") && listed.contains("used"), "{listed}");
    let (fine, made) = world.cluster.meshctl(&["token", "create", "--node", "far-2", "-o", "json"]);
    assert!(fine, "{made}");
    let made: Value = serde_json::from_str(&made).unwrap();
    assert!(world.cluster.meshctl(&["token", "revoke", made["id"].as_str().unwrap()]).0);
    let revoked = at(world.a.address()).join_request("far-2", made["token"].as_str().unwrap()).await;
    assert_eq!(revoked.unwrap_err().code(), Code::Unauthenticated);
    // Only a hash of the secret is in the cluster.
    let get = ["get", "secrets", "-n", NAMESPACE, "-l", "selvage.dev/state=join-token", "-o", "yaml"];
    assert!(!world.cluster.kube.kubectl(&get).unwrap().contains(&token[9..40]));
}

pub(crate) async fn a_removed_node_is_cut_off(world: &World) {
    let node = world.outside("far-3").await;
    let (mut here, mut there) = (node.ads().await, node.at(world.b.address()).ads().await);
    for stream in [&mut here, &mut there] {
        stream.subscribe(ResourceType::MeshConfig, &[]).await;
        stream.next(SOON).await;
    }
    let started = Instant::now();
    let (fine, said) = world.cluster.meshctl(&["node", "remove", "far-3"]);
    assert!(fine, "{said}");
    for stream in [&mut here, &mut there] {
        assert_eq!(stream.end(SOON).await.code(), Code::PermissionDenied);
    }
    println!("meshctl node remove: cut after {:?}", started.elapsed());
    assert!(started.elapsed() < CUT);
    let renewal = node.join_request("far-3", "").await.unwrap_err();
    assert!(renewal.message().contains("removed"), "{renewal}");
    assert!(!world.cluster.meshctl(&["node", "remove", "far-3"]).0);
    // A new token lets it in again.
    let again = world.outside("far-3").await;
    again.report("far-3", &["/ip4/192.0.2.1/udp/1/quic-v1"]).await.unwrap();
}

pub(crate) async fn one_key_has_one_name(world: &World) {
    world.outside("old-name").await;
    let (_, token) = world.cluster.meshctl(&["token", "create", "--node", "new-name"]);
    let node = world.new_node("new-name");
    let refused = node.join_with_key_of("old-name", "new-name", &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("old-name") && refused.message().contains("new-name"), "{refused}");
    // It was renamed: the operator says so, and the same token is still good.
    assert!(world.cluster.meshctl(&["node", "remove", "old-name"]).0);
    let joined = until("the renamed node joins", SOON, async || {
        node.join_with_key_of("old-name", "new-name", &token).await.ok()
    })
    .await;
    assert_eq!(joined.name, "new-name");
    // A certificate of before a node was set up anew, with another key, is not renewed.
    let first = world.outside("twice").await;
    let (_, token) = world.cluster.meshctl(&["token", "create", "--node", "twice"]);
    world.new_node("twice").join_with_key_of("another", "twice", &token).await.unwrap();
    let refused = first.join_request("twice", "").await.unwrap_err();
    assert!(refused.message().contains("joined with another key"), "{refused}");
}

pub(crate) async fn a_copied_disk_is_refused_across_replicas(world: &World) {
    let node = world.outside("copied").await;
    let mut first = node.on("host-1/boot-1").ads().await;
    first.subscribe(ResourceType::MeshConfig, &[]).await;
    let config = first.next(SOON).await;
    first.ack(&config).await;
    let record = || {
        let get = ["get", "meshnode", "copied", "-n", NAMESPACE, "-o", "json"];
        serde_json::from_str::<Value>(&world.cluster.kube.kubectl(&get).unwrap()).unwrap()["spec"].take()
    };
    until("the machine is noted", SOON, async || (record()["machine"] == "host-1/boot-1").then_some(()))
        .await;

    // The copy comes to each replica; the original, which answers, stays.
    for (at, machine) in [(world.b.address(), "host-2/boot-2"), (world.a.address(), "host-3/boot-3")] {
        let copy = node.at(at).on(machine);
        let (refused, ()) = tokio::join!(refusal(&copy), answer_once(&mut first));
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        for part in ["copied", "host-1/boot-1", machine, "there first stays"] {
            assert!(refused.message().contains(part), "{part} in {refused}");
        }
    }
    let noted = record();
    assert_eq!(
        (noted["machine"].as_str(), noted["refused"]["machine"].as_str()),
        (Some("host-1/boot-1"), Some("host-3/boot-3"))
    );
    let (_, listed) = world.cluster.meshctl(&["node", "list"]);
    assert!(listed.contains("host-1/boot-1") && listed.contains("refused: host-3/boot-3"), "{listed}");
    let copies = metric(&world.a.metrics().await, "selvage_controller_copied_nodes_total")
        + metric(&world.b.metrics().await, "selvage_controller_copied_nodes_total");
    assert!(copies >= 2.0, "{copies}");

    // The original is switched off: whoever comes now was set up in its place.
    drop(first);
    let mut second = node.at(world.b.address()).on("host-2/boot-2").ads().await;
    second.subscribe(ResourceType::MeshConfig, &[]).await;
    second.next(SOON).await;
    until("the new machine is noted", SOON, async || (record()["machine"] == "host-2/boot-2").then_some(()))
        .await;
    assert!(second.quiet_for(Duration::from_millis(300)).await, "it stays");
}

/// How the stream of a copy ends; it answers as every proxy does.
async fn refusal(copy: &Node) -> Status {
    let mut stream = copy.ads().await;
    stream.subscribe(ResourceType::MeshConfig, &[]).await;
    stream.end(SOON).await
}

/// Answers what comes, as a proxy does: a sign of life.
async fn answer_once(stream: &mut Ads) {
    let probe = stream.next(SOON).await;
    stream.ack(&probe).await;
}
