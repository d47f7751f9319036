//! State in a cluster and joining as a pod, against a real API server and with no more rights than `kube/rbac.yaml` gives:
//! several replicas without a shared volume, what lets a node in and what does not, and how nodes leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "support/client.rs"]
mod client;
#[path = "kube/forge.rs"]
mod forge;
#[path = "kube/stores.rs"]
mod stores;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use client::{Controller, Node};
use mesh_api::ResourceType;
use mesh_controller::{
    config::{Config, StateStore},
    source::SourceKind,
};
use mesh_testkit::{
    bins,
    kube::{KubeCluster, programs},
    ports::free_port,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tonic::{Code, Status};

const NAMESPACE: &str = "selvage-system";
const AUDIENCE: &str = "mesh-controller.selvage.dev";
/// Generous: the machines that run this are busy.
const SOON: Duration = Duration::from_secs(30);
/// What leaving may take.
const CUT: Duration = Duration::from_secs(5);

/// A cluster with the rights of the controller and the accounts of the proxies.
struct Cluster {
    kube: KubeCluster,
    dir: PathBuf,
    controller: PathBuf,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        let kube = KubeCluster::start(dir.join("kube")).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        for manifest in ["charts/crds/meshnodes.selvage.dev.yaml", "mesh-controller/tests/kube/rbac.yaml"] {
            kube.kubectl(&["apply", "-f", root.join(manifest).to_str().unwrap()]).unwrap();
        }
        let crd = "crd/meshnodes.selvage.dev";
        kube.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=60s"]).unwrap();
        for account in ["mesh-proxy", "gateway", "other"] {
            kube.kubectl(&["create", "serviceaccount", account, "-n", NAMESPACE]).unwrap();
        }
        let controller = kube.service_account_kubeconfig(NAMESPACE, "mesh-controller").unwrap();
        Self { kube, dir: dir.to_owned(), controller }
    }

    fn config(&self) -> Config {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            source: SourceKind::Kube,
            kubeconfig: Some(self.controller.clone()),
            state_store: StateStore::Kube,
            namespace: NAMESPACE.to_owned(),
            enrol_pod_service_accounts: vec![format!("{NAMESPACE}/gateway")],
            handover_seconds: 1,
            listen: any,
            metrics_listen: any,
            admin_listen: any,
            webhook_listen: any,
            ..Config::default()
        }
    }

    fn node(&self, name: &str) {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        self.kube.apply(&node.to_string()).unwrap();
    }

    /// A pod of an account on a node; gives its uid.
    fn pod(&self, name: &str, account: &str, node: &str) -> String {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "nodeName": node, "serviceAccountName": account,
                "containers": [{ "name": "c", "image": "none" }] } });
        self.kube.apply(&pod.to_string()).unwrap();
        let uid = ["get", "pod", name, "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}"];
        self.kube.kubectl(&uid).unwrap()
    }

    /// What the kubelet projects into a pod.
    fn token(&self, account: &str, pod: Option<(&str, &str)>, audience: &str) -> String {
        let mut args = vec!["create", "token", account, "-n", NAMESPACE, "--audience", audience];
        if let Some((name, uid)) = pod {
            args.extend([
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                name,
                "--bound-object-uid",
                uid,
            ]);
        }
        self.kube.kubectl(&args).unwrap().trim().to_owned()
    }

    /// The CA as pods have it.
    fn ca(&self) -> Option<CertificateDer<'static>> {
        let get = ["get", "configmap", "mesh-ca", "-n", NAMESPACE, "-o", "json"];
        let found: Value = serde_json::from_str(&self.kube.kubectl(&get).ok()?).ok()?;
        CertificateDer::from_pem_slice(found["data"]["ca.crt"].as_str()?.as_bytes()).ok()
    }

    fn meshctl(&self, args: &[&str]) -> (bool, String) {
        let kubectl = programs().unwrap().join("kubectl");
        let output = Command::new(bins::find("meshctl").unwrap())
            .args(args)
            .args(["-n", NAMESPACE, "--kubeconfig"])
            .arg(self.kube.admin_kubeconfig())
            .arg("--kubectl")
            .arg(kubectl)
            .env("HOME", &self.dir)
            .env_remove("MESH_CONTROLLER_STATE_DIR")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }
}

async fn until<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(started.elapsed() < limit, "{what}: not after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|l| l.rsplit(' ').next()).and_then(|v| v.parse().ok()).unwrap_or(0.0)
}

/// Two replicas, and what a node knows of them.
struct World {
    cluster: Cluster,
    a: Controller,
    b: Controller,
    ca: [u8; 32],
}

impl World {
    fn new_node(&self, name: &str) -> Node {
        Node::new(self.a.address(), self.ca, name)
    }

    /// A node that an operator let in.
    async fn outside(&self, name: &str) -> Node {
        let (fine, token) = self.cluster.meshctl(&["token", "create", "--node", name, "--ttl", "10m"]);
        assert!(fine, "{token}");
        self.new_node(name).join_request(name, &token).await.unwrap()
    }

    async fn enrolments(&self, outcome: &str) -> f64 {
        let name = format!(
            "selvage_controller_enrolments_total{{method=\"service_account\",outcome=\"{outcome}\"}}"
        );
        metric(&self.a.metrics().await, &name)
    }
}

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
    a_pod_joins_and_leaves_with_its_node(&world).await;
    what_lets_nobody_in(&world, &ca).await;
    gateways_join_under_their_own_names(&world).await;
    a_join_token_is_spent_once_by_all_replicas(&world).await;
    a_removed_node_is_cut_off(&world).await;
    one_key_has_one_name(&world).await;
    a_copied_disk_is_refused_across_replicas(&world).await;
    the_webhook_renews_its_certificate(&world.cluster).await;
    a_replica_stops_and_its_nodes_go_on(world).await;
}

async fn a_pod_joins_and_leaves_with_its_node(world: &World) {
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

async fn what_lets_nobody_in(world: &World, ca: &CertificateDer<'static>) {
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

async fn gateways_join_under_their_own_names(world: &World) {
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

async fn a_join_token_is_spent_once_by_all_replicas(world: &World) {
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

async fn a_removed_node_is_cut_off(world: &World) {
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

async fn one_key_has_one_name(world: &World) {
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

async fn a_copied_disk_is_refused_across_replicas(world: &World) {
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
async fn answer_once(stream: &mut client::Ads) {
    let probe = stream.next(SOON).await;
    stream.ack(&probe).await;
}

/// The serving certificate at an address.
async fn served(address: SocketAddr, ca: &CertificateDer<'static>) -> Option<(CertificateDer<'static>, i64)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(address).await.ok()?;
    // As the API server checks it: by the name of the Service.
    let name = "mesh-controller.selvage-system.svc".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    let leaf = stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    let until = parsed.validity().not_after.timestamp();
    Some((leaf, until))
}

async fn the_webhook_renews_its_certificate(cluster: &Cluster) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let short = Config { controller_certificate_ttl: 6, webhook_listen: address, ..cluster.config() };
    let controller = Controller::start_as(short).await;
    let ca = cluster.ca().unwrap();
    let (first, ends) = until("the webhook answers", SOON, async || served(address, &ca).await).await;
    let now = || i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let mut seen = std::collections::BTreeSet::from([first.to_vec()]);
    // Until the first one is long over: each handshake finds one that holds.
    until("the first certificate has ended", SOON, async || {
        let (leaf, until) = served(address, &ca).await.expect("a certificate that holds");
        assert!(until >= now(), "ended {} s ago", now() - until);
        seen.insert(leaf.to_vec());
        (now() > ends + 2).then_some(())
    })
    .await;
    println!("webhook: {} certificates without a restart", seen.len());
    assert!(seen.len() >= 2);
    let expires = metric(&controller.metrics().await, "selvage_controller_certificate_expires_seconds");
    assert!(expires > ends as f64, "{expires} {ends}");
    controller.stop().await;
}

async fn a_replica_stops_and_its_nodes_go_on(world: World) {
    let World { a, b, cluster, .. } = &world;
    let leaders = async || {
        let leads = async |c: &Controller| metric(&c.metrics().await, "selvage_controller_leader");
        (leads(a).await, leads(b).await)
    };
    let before = until("one replica leads", SOON, async || {
        let found = leaders().await;
        (found.0 + found.1 == 1.0).then_some(found)
    })
    .await;
    let (stops, stays) = if before.0 == 1.0 { (a, b) } else { (b, a) };
    let node = world.outside("steady").await;
    let mut stream = node.at(stops.address()).ads().await;
    stream.subscribe(ResourceType::MeshConfig, &[]).await;
    let config = stream.next(SOON).await;
    stream.ack(&config).await;
    let (_, end) = tokio::join!(stops.stop(), stream.end(SOON));
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert!(end.message().starts_with("controller is stopping"), "{end}");
    // The other one has the same for it, and so nothing to send.
    let mut next = node.at(stays.address()).ads().await;
    let has = config.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    next.send(mesh_api::xds::DeltaDiscoveryRequest {
        type_url: ResourceType::MeshConfig.url().to_owned(),
        initial_resource_versions: has,
        ..Default::default()
    })
    .await;
    assert!(next.next(SOON).await.resources.is_empty());
    let leads = async || metric(&stays.metrics().await, "selvage_controller_leader") == 1.0;
    until("the other replica leads", SOON, async || leads().await.then_some(())).await;
    // What it leads: a token that is past any use goes.
    let (_, listed) = cluster.meshctl(&["token", "list"]);
    assert!(listed.contains("steady"), "{listed}");
    drop(next);
    stays.stop().await;
}
