//! The certificate of the webhook, the CA in the objects of the cluster, and replicas that stop.

use std::{net::SocketAddr, sync::Arc};

use base64::Engine as _;
use mesh_api::ResourceType;
use mesh_controller::config::Config;
use mesh_testkit::ports::free_port;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tonic::Code;

use crate::{
    client::Controller,
    cluster::{Cluster, SOON, World, metric, until},
};

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

pub(crate) async fn the_webhook_renews_its_certificate(cluster: &Cluster) {
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

/// A CA whose time has come, in a namespace of its own, and an API server that refuses what it cannot ask about: each of its
/// calls is answered, from the first CA to the second one alone.
pub(crate) async fn the_api_server_follows_one_ca_to_the_next(cluster: &Cluster) {
    let (kube, port) = (&cluster.kube, free_port());
    for namespace in ["aged", "asked"] {
        kube.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    let config = Config {
        kubeconfig: Some(kube.admin_kubeconfig()),
        namespace: "aged".to_owned(),
        lease_namespace: "aged".to_owned(),
        node_certificate_ttl: 8,
        names: vec!["127.0.0.1".to_owned()],
        webhook_listen: SocketAddr::from(([127, 0, 0, 1], port)),
        webhook_configuration: "aged".to_owned(),
        ..cluster.config()
    };
    let (now, lives) = (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(), config.lives());
    let domain = mesh_ca::TrustDomain::new(&config.trust_domain).unwrap();
    let kept = mesh_ca::Kept::new(&domain, &lives, now - lives.ca.as_secs() / 3 * 2 - 1).unwrap();
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mesh-ca", "namespace": "aged" },
        "stringData": { "ca.key": kept.key, "ca.crt": kept.certificate } });
    let hook = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "aged" },
        "webhooks": [{ "name": "aged.selvage.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "clientConfig": { "url": format!("https://127.0.0.1:{port}/validate") },
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "asked" } },
            "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"] }] }] });
    for object in [&secret, &hook] {
        kube.apply(&object.to_string()).unwrap();
    }
    let controller = Controller::start_as(config).await;
    let ask = || {
        kube.kubectl(&["create", "secret", "generic", "x", "-n", "asked", "--dry-run=server", "-o", "name"])
    };
    let bundles = || -> Vec<Vec<String>> {
        let text = |args: &[&str]| kube.kubectl(args).unwrap();
        let map = text(&["get", "configmap", "mesh-ca", "-n", "aged", "-o", "jsonpath={.data.ca\\.crt}"]);
        let hook = [
            "get",
            "validatingwebhookconfiguration",
            "aged",
            "-o",
            "jsonpath={.webhooks[0].clientConfig.caBundle}",
        ];
        let hook = base64::engine::general_purpose::STANDARD.decode(text(&hook).trim()).unwrap();
        let certificates = |pem: &str| {
            pem.split_inclusive("-----END CERTIFICATE-----")
                .map(|c| c.trim().to_owned())
                .filter(|c| !c.is_empty())
                .collect()
        };
        vec![certificates(&map), certificates(std::str::from_utf8(&hook).unwrap())]
    };
    until("the API server trusts the webhook", SOON, async || tokio::task::block_in_place(ask).ok()).await;
    let (first, mut asked, mut seen) = (kept.certificate.trim().to_owned(), 0, Vec::new());
    until("the first CA is gone", SOON * 3, async || {
        tokio::task::block_in_place(|| {
            ask().unwrap_or_else(|e| panic!("after {asked} reviews, {seen:?}: {e}"));
            asked += 1;
            let now = bundles();
            let stage = (now[0].len(), now[0].first() == Some(&first));
            if seen.last() != Some(&stage) {
                seen.push(stage);
            }
            now.iter().all(|bundle| !bundle.contains(&first)).then_some(())
        })
    })
    .await;
    println!("CA renewed: {asked} reviews, none failed; stages {seen:?}");
    assert!(seen.ends_with(&[(2, true), (2, false), (1, false)]), "{seen:?}");
    controller.stop().await;
    kube.kubectl(&["delete", "validatingwebhookconfiguration", "aged"]).unwrap();
}

pub(crate) async fn a_replica_stops_and_its_nodes_go_on(world: World) {
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
