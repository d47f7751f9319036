//! What is said about calls: metrics and the access log.

use std::time::Duration;

use mesh_api::{
    Resource,
    model::{self, Protocol},
};
use mesh_proxy::telemetry::{AccessLogConfig, access_log::Format};

use crate::{
    upstream::{Upstream, collect},
    world::{Options, Sink, VIP, World, endpoints, forward, get, ruled, service},
};

const TO: &str = "10.96.0.1:80";

fn caller() -> Resource {
    Resource::NodeWorkloads(model::NodeWorkloads {
        node: "here".into(),
        workloads: vec![model::Workload {
            address: "127.0.0.1".into(),
            namespace: "shop".into(),
            name: "productpage-1".into(),
            owner: "productpage-v1".into(),
            labels: [("app", "productpage"), ("version", "v1")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect(),
            service_account: "shopper".into(),
            host_network: false,
        }],
    })
}

#[tokio::test]
async fn the_labels_are_istios_and_nothing_registered_stays_untouched() {
    let upstream = Upstream::start("v2").await;
    let world = World::start(
        vec![
            caller(),
            Resource::Service(service("web", VIP, 80, Protocol::Http)),
            endpoints("web", 80, &[(upstream.addr, "v2")]),
            Resource::Service(service("raw", "10.96.0.2", 9000, Protocol::Tcp)),
        ],
        Options {
            called: vec![TO.parse().unwrap(), "10.96.0.2:9000".parse().unwrap()],
            ..Options::default()
        },
    );
    let mut client = world.http1(TO).await;
    for _ in 0..3 {
        collect(client.send_request(get("web.default", "/")).await.unwrap().into_body()).await;
    }
    drop(world.dial("10.96.0.2:9000").await);
    let line = world.metric(&["istio_requests_total{", "} 3"]).await;
    for label in [
        "reporter=\"source\"",
        "source_workload=\"productpage-v1\"",
        "source_workload_namespace=\"shop\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/shopper\"",
        "source_app=\"productpage\"",
        "source_version=\"v1\"",
        "source_cluster=\"Kubernetes\"",
        "source_canonical_service=\"productpage\"",
        "source_canonical_revision=\"v1\"",
        "destination_workload=\"web-v2\"",
        "destination_workload_namespace=\"default\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/web-account\"",
        "destination_app=\"web\"",
        "destination_version=\"v2\"",
        "destination_cluster=\"Kubernetes\"",
        "destination_canonical_service=\"web\"",
        "destination_canonical_revision=\"v2\"",
        "destination_service=\"web.default.svc.cluster.local\"",
        "destination_service_name=\"web\"",
        "destination_service_namespace=\"default\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "grpc_response_status=\"\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(line.contains(label), "{label} is not in {line}");
    }
    assert_eq!(line.matches("=\"").count(), 25, "no label that Istio does not have: {line}");
    world.metric(&["istio_tcp_connections_closed_total{", "destination_service_name=\"raw\""]).await;
    let text = world.scrape();
    for family in [
        "istio_requests_total",
        "istio_request_duration_milliseconds",
        "istio_request_bytes",
        "istio_response_bytes",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
    ] {
        assert!(text.lines().any(|l| l.starts_with(family)), "{family} has no series");
    }
    for bucket in ["0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "3600000", "+Inf"] {
        let part = format!("le=\"{bucket}\"");
        assert!(
            text.lines()
                .any(|l| l.starts_with("istio_request_duration_milliseconds_bucket") && l.contains(&part)),
            "no bucket {part}"
        );
    }
}

#[tokio::test]
async fn series_are_bounded() {
    let registry = prometheus::Registry::new();
    let config = mesh_proxy::telemetry::TelemetryConfig { max_series: 10, ..Default::default() };
    let telemetry = mesh_proxy::telemetry::Telemetry::new(&registry, config).unwrap();
    let peer = mesh_proxy::telemetry::Peer::unknown();
    let service = mesh_proxy::telemetry::Destination::passthrough();
    let call = mesh_proxy::telemetry::Call {
        reporter: mesh_proxy::telemetry::Reporter::Source,
        source: &peer,
        destination: &peer,
        service: &service,
        security: mesh_proxy::telemetry::Security::Unknown,
    };
    for code in 200..300 {
        let series = telemetry
            .request_series(
                &call,
                mesh_proxy::telemetry::RequestProtocol::Http,
                mesh_proxy::telemetry::Flags::NONE,
                code,
                None,
            )
            .unwrap();
        series.total.inc();
    }
    let families = registry.gather();
    let requests = families.iter().find(|f| f.name() == "istio_requests_total").unwrap();
    assert_eq!(requests.get_metric().len(), 11, "ten, and one for the rest");
    let total: f64 = requests.get_metric().iter().map(|m| m.get_counter().get_value()).sum();
    assert!((total - 100.0).abs() < 0.1, "nothing is lost: {total}");
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_call() {
    for format in [Format::Text, Format::Json] {
        let upstream = Upstream::start("v1").await;
        let sink = Sink::default();
        let config = AccessLogConfig { format, ..AccessLogConfig::default() };
        let world = World::start(
            vec![
                ruled(
                    service("web", VIP, 80, Protocol::Http),
                    model::HttpRule { name: "the-rule".into(), ..forward("web") },
                ),
                endpoints("web", 80, &[(upstream.addr, "v1")]),
            ],
            Options {
                called: vec![TO.parse().unwrap()],
                access_log: Some((config, sink.clone())),
                ..Options::default()
            },
        );
        let mut client = world.http1(TO).await;
        let mut request = get("web.default", "/path?q=1");
        request.headers_mut().insert("user-agent", "a \"quoted\" agent".parse().unwrap());
        collect(client.send_request(request).await.unwrap().into_body()).await;
        world.metric(&["istio_requests_total{", "} 1"]).await;
        assert!(world.shared.access_log.flush(Duration::from_secs(5)));
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        match format {
            Format::Json => {
                let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
                assert_eq!(line["method"], "GET");
                assert_eq!(line["response_code"], 200);
                assert_eq!(line["route_name"], "the-rule");
                assert_eq!(line["upstream_host"], upstream.addr.to_string());
                assert_eq!(line["upstream_cluster"], "outbound|80||web.default.svc.cluster.local");
                assert_eq!(line["bytes_sent"], 2);
                assert_eq!(line["response_flags"], "-");
            }
            _ => {
                assert!(text.starts_with('['), "{text}");
                assert!(text.contains("\"GET /path?q=1 HTTP/1.1\" 200 - via_upstream"), "{text}");
                assert!(text.contains("\"a 'quoted' agent\""), "{text}");
                assert!(text.contains("outbound|80||web.default.svc.cluster.local"), "{text}");
                assert!(text.trim_end().ends_with("the-rule"), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn counts_go_on_after_tables_and_caches_were_renewed() {
    let upstream = Upstream::start("v1").await;
    let web = || Resource::Service(service("web", VIP, 80, Protocol::Http));
    let config = mesh_proxy::outbound::OutboundConfig { sweep_s: 1, ..Default::default() };
    let world = World::start(
        vec![web(), endpoints("web", 80, &[(upstream.addr, "v1")])],
        Options { config, called: vec![TO.parse().unwrap()], ..Options::default() },
    );
    let mut client = world.http1(TO).await;
    for _ in 0..3 {
        collect(client.send_request(get("web", "/")).await.unwrap().into_body()).await;
        world.apply(vec![web(), caller(), endpoints("web", 80, &[(upstream.addr, "v1")])]);
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    collect(client.send_request(get("web", "/")).await.unwrap().into_body()).await;
    // The first call came before the mesh knew its caller: all it had for that address was the endpoint.
    world.metric(&["istio_requests_total{", "source_workload=\"web-v1\"", "} 1"]).await;
    world.metric(&["istio_requests_total{", "source_workload=\"productpage-v1\"", "} 3"]).await;
    let connections = upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(connections, 1, "pooled connections outlive a change that does not concern them");
}
