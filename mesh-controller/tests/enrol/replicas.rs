//! The certificate of the webhook, the CA in the objects of the cluster, and replicas that stop.

use std::{net::SocketAddr, sync::Arc};

use mesh_api::ResourceType;
use mesh_controller::config::Config;
use mesh_testkit::ports::free_port;
use rustls_pki_types::CertificateDer;
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
