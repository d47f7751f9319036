//! State in a cluster and joining as a pod, against a real API server and with no more rights than `kube/rbac.yaml` gives:
//! several replicas without a shared volume, what lets a node in and what does not, and how nodes leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "support/client.rs"]
mod client;
#[path = "enrol/cluster.rs"]
mod cluster;
#[path = "kube/forge.rs"]
mod forge;
#[path = "enrol/nodes.rs"]
mod nodes;
#[path = "enrol/pods.rs"]
mod pods;
#[path = "enrol/replicas.rs"]
mod replicas;
#[path = "kube/stores.rs"]
mod stores;

use client::Controller;
use cluster::{Cluster, SOON, World, until};
use mesh_testkit::bins;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_share_a_cluster_and_pods_join_by_themselves() {
    node_rt::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    bins::know("meshctl", bins::find("meshctl").unwrap().to_str().unwrap());
    let cluster = tokio::task::block_in_place(|| Cluster::start(dir.path()));
    stores::both(dir.path(), &cluster.kube.admin_kubeconfig(), &cluster.kube).await;

    // Both start at once on nothing: one CA comes out, and every pod can have it.
    let (a, b) = tokio::join!(Controller::start_as(cluster.config()), Controller::start_as(cluster.config()));
    let ca = until("ConfigMap mesh-ca", SOON, async || cluster.ca()).await;
    let world = World { ca: mesh_net::tls::fingerprint(&ca), cluster, a, b };
    pods::a_pod_joins_and_leaves_with_its_node(&world).await;
    pods::what_lets_nobody_in(&world, &ca).await;
    pods::gateways_join_under_their_own_names(&world).await;
    nodes::a_join_token_is_spent_once_by_all_replicas(&world).await;
    nodes::a_removed_node_is_cut_off(&world).await;
    nodes::one_key_has_one_name(&world).await;
    nodes::a_copied_disk_is_refused_across_replicas(&world).await;
    replicas::the_webhook_renews_its_certificate(&world.cluster).await;
    replicas::the_api_server_follows_one_ca_to_the_next(&world.cluster).await;
    replicas::a_replica_stops_and_its_nodes_go_on(world).await;
}
