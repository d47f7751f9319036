//! Two nodes in one process with a real tunnel between them, and a collector that speaks the official protocol.

mod collector;
mod nodes;

use std::time::Duration;

use collector::{Collector, Seen};
use nodes::{CLIENT, Mesh, NEAR, WEB};

use super::{Protocol, TracingConfig};

fn config(collector: &Collector, protocol: Protocol) -> TracingConfig {
    TracingConfig {
        endpoint: format!("http://{}", collector.address),
        protocol,
        sampling_percent: 100.0,
        flush_millis: 5,
        ..TracingConfig::default()
    }
}

/// The one span of a list that fits.
fn one<'s>(spans: &'s [Seen], what: &str, fits: impl Fn(&Seen) -> bool) -> &'s Seen {
    let found: Vec<_> = spans.iter().filter(|s| fits(s)).collect();
    let [span] = found.as_slice() else { panic!("{what}: {found:#?} of {spans:#?}") };
    span
}

#[test]
fn the_chain_of_spans_crosses_the_nodes() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        nodes::run(async move {
            let collector = Collector::start().await;
            let mesh = Mesh::start(&config(&collector, protocol), Vec::new()).await;
            let heard = mesh.get(CLIENT, WEB, "/front", &[("user-agent", "test"), ("x-tenant", "red")]).await;
            assert_eq!(heard.status, 200);
            // client ─► web on b ─► db on a: two hops, each with both sides.
            let spans = collector.spans(4).await;
            let side = |server, service: &'static str| {
                move |s: &Seen| s.server == server && s.name.starts_with(service)
            };
            let first = one(&spans, "client of web", side(false, "web.default"));
            let second = one(&spans, "server of web", side(true, "web.default"));
            let third = one(&spans, "client of db", side(false, "db.default"));
            let fourth = one(&spans, "server of db", side(true, "db.default"));
            assert!(spans.iter().all(|s| s.trace == first.trace), "one trace: {spans:#?}");
            assert_eq!(first.parent, "", "it begins here");
            assert_eq!(second.parent, first.span);
            assert_eq!(third.parent, second.span, "what the pod calls is its own hop's child");
            assert_eq!(fourth.parent, third.span);
            assert_eq!(first.name, "web.default.svc.cluster.local:80/*");
            assert_eq!(
                (first.resource("service.name"), first.resource("k8s.node.name")),
                ("client.default", "a")
            );
            assert_eq!(
                (second.resource("service.name"), second.resource("k8s.node.name")),
                ("web.default", "b")
            );
            assert_eq!(first.attribute("http.status_code"), "200");
            assert_eq!(first.attribute("http.url"), "http://web/front");
            assert_eq!(first.attribute("upstream_cluster"), "outbound|80||web.default.svc.cluster.local");
            assert_eq!(second.attribute("http.method"), "GET");
            assert_eq!(first.attribute("user_agent"), "test");
            assert!(first.nanos > 0 && second.nanos <= first.nanos, "a hop is no longer than the call");
            mesh.until("all are counted", |m| m.outcome("exported") == 4.0).await;
        });
    }
}

#[test]
fn a_call_within_a_node_has_both_spans() {
    nodes::run(async {
        let collector = Collector::start().await;
        let mesh = Mesh::start(&config(&collector, Protocol::Grpc), Vec::new()).await;
        let headers = [("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"), ("user-agent", "test")];
        let heard = mesh.get(CLIENT, NEAR, "/leaf?x=1", &headers).await;
        assert_eq!(heard.status, 200);
        let spans = collector.spans(2).await;
        let client = one(&spans, "client", |s| !s.server);
        let server = one(&spans, "server", |s| s.server);
        assert_eq!((client.parent.as_str(), &server.parent), ("b7ad6b7169203331", &client.span));
        assert_eq!(server.trace, client.trace);
        let b3 = heard.headers["b3"].to_str().unwrap();
        let own = format!("{}-{}-1-{}", server.trace, server.span, client.span);
        assert_eq!(b3, own, "the pod hears of its own hop: {spans:#?}");
        assert_eq!(
            (server.resource("service.name"), server.resource("k8s.node.name")),
            ("near.default", "a")
        );
        assert_eq!(server.attribute("http.status_code"), "200");
        assert_eq!(server.attribute("http.url"), "http://near/leaf?x=1");
        assert_eq!(server.attribute("http.protocol"), "HTTP/1.1");
        assert_eq!(server.attribute("response_size"), "2");
        assert_eq!(server.attribute("user_agent"), "test");
        assert_eq!(server.attribute("peer.address"), CLIENT);
        assert!(server.attribute("upstream_cluster").ends_with("||near.default.svc.cluster.local"));
        assert!(server.nanos > 0 && server.nanos <= client.nanos, "a hop is no longer than the call");
    });
}

#[test]
fn what_comes_in_is_followed_in_its_form() {
    nodes::run(async {
        let collector = Collector::start().await;
        let quiet = TracingConfig { sampling_percent: 0.0, ..config(&collector, Protocol::Grpc) };
        let mesh = Mesh::start(&quiet, Vec::new()).await;
        let trace = "0af7651916cd43dd8448eb211c80319c";
        // Not sampled here, not sampled by the caller: nothing is added, what is there stays.
        let heard = mesh.get(CLIENT, WEB, "/leaf", &[]).await;
        assert!(!heard.headers.contains_key("traceparent"));
        let off = format!("00-{trace}-b7ad6b7169203331-00");
        let heard = mesh.get(CLIENT, WEB, "/leaf", &[("traceparent", &off)]).await;
        assert_eq!(heard.headers["traceparent"], off);
        let heard = mesh.get(CLIENT, WEB, "/leaf", &[("b3", "0")]).await;
        assert_eq!(heard.headers["b3"], "0");
        // Sampled by the caller, in one form and another.
        let b3 = format!("{trace}-b7ad6b7169203331-1");
        let heard = mesh.get(CLIENT, WEB, "/leaf", &[("b3", &b3)]).await;
        let spans = collector.spans(2).await;
        let server = one(&spans, "server", |s| s.server);
        let client = one(&spans, "client", |s| !s.server);
        assert_eq!((client.trace.as_str(), client.parent.as_str()), (trace, "b7ad6b7169203331"));
        assert_eq!(server.parent, client.span);
        let b3 = heard.headers["b3"].to_str().unwrap();
        assert_eq!(b3, format!("{trace}-{}-1-b7ad6b7169203331", server.span), "the pod hears of its own hop");
        let multi = [("x-b3-traceid", trace), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-sampled", "1")];
        let heard = mesh.get(CLIENT, WEB, "/leaf", &multi).await;
        let spans = collector.spans(4).await;
        let last = spans.iter().rfind(|s| s.server).unwrap();
        assert_eq!(heard.headers["x-b3-spanid"].to_str().unwrap(), last.span);
        assert_eq!(heard.headers["x-b3-traceid"], trace);
    });
}

#[test]
fn grpc_has_server_spans_and_is_counted_by_the_owner() {
    nodes::run(async {
        let collector = Collector::start().await;
        let mesh = Mesh::start(&config(&collector, Protocol::Grpc), Vec::new()).await;
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let w3c = format!("00-{trace}-b7ad6b7169203331-01");
        let b3 = format!("{trace}-b7ad6b7169203331-1");
        let multi = [("x-b3-traceid", trace), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-sampled", "1")];
        let forms: [&[(&str, &str)]; 3] = [&[("traceparent", &w3c)], &[("b3", &b3)], &multi];
        for (i, (headers, said_in)) in forms.into_iter().zip(["traceparent", "b3", "x-b3-spanid"]).enumerate()
        {
            let (heard, status) = mesh.rpc("/shop.Cart/Get", headers).await;
            assert_eq!((heard.status, status.as_str()), (200, "5"));
            let spans = collector.spans(2 * (i + 1)).await;
            let said = heard.headers[said_in].to_str().unwrap();
            let server = one(&spans, "what the pod heard of", |s| s.server && said.contains(&s.span));
            let client = one(&spans, "its client", |s| !s.server && s.span == server.parent);
            assert_eq!((client.trace.as_str(), client.parent.as_str()), (trace, "b7ad6b7169203331"));
            assert_eq!(server.attribute("http.protocol"), "HTTP/2");
            assert_eq!(server.attribute("http.url"), "http://rpc/shop.Cart/Get");
            assert_eq!(server.attribute("http.status_code"), "200");
            assert_eq!(server.attribute("grpc.status_code"), "5");
            assert_eq!((server.attribute("request_size"), server.attribute("response_size")), ("4", "2"));
        }
        let labels = ["destination", "grpc", "200", "5", "rpc", "mutual_tls"];
        mesh.until("the owner counted all", |m| m.requests(&labels) == 3.0).await;
        assert_eq!(mesh.requests(&["source", "grpc", "200", "5", "rpc"]), 3.0);
    });
}

#[test]
fn telemetry_decides_and_adds_tags() {
    use mesh_api::model::{Telemetry, Tracing, TracingTag, telemetry::Mode, tracing_tag::Source};
    let tag = |name: &str, source| TracingTag {
        name: name.into(),
        source: Some(source),
        default_value: "none".into(),
    };
    let telemetry = |name: &str, tracing| {
        mesh_api::Resource::Telemetry(Telemetry {
            name: name.into(),
            namespace: name.split('/').next().unwrap().into(),
            mesh_default: name.starts_with("root"),
            tracing,
            ..Telemetry::default()
        })
    };
    nodes::run(async move {
        let collector = Collector::start().await;
        let quiet = TracingConfig { sampling_percent: 0.0, ..config(&collector, Protocol::Grpc) };
        let tags = vec![
            tag("fixed", Source::Literal("x".into())),
            tag("tenant", Source::Header("x-tenant".into())),
            tag("nobody", Source::Header("x-nobody".into())),
            tag("path", Source::Environment("PATH".into())),
            tag("said", Source::Formatter("%RESPONSE_CODE% %REQ(X-TENANT)%".into())),
        ];
        let root = Tracing { sampling_percent: Some(100.0), tags, ..Tracing::default() };
        let silent =
            Tracing { disable_span_reporting: true, mode: Mode::Server.into(), ..Tracing::default() };
        let rules = vec![telemetry("root/all", vec![root]), telemetry("default/all", vec![silent])];
        let mesh = Mesh::start(&quiet, rules).await;
        mesh.get(CLIENT, WEB, "/leaf", &[("x-tenant", "red")]).await;
        mesh.get(CLIENT, WEB, "/leaf", &[("x-tenant", "blue")]).await;
        let near = mesh.get(CLIENT, NEAR, "/leaf", &[("x-tenant", "green")]).await;
        let spans = collector.spans(3).await;
        assert!(spans.iter().all(|s| !s.server), "the owner's side is silent: {spans:#?}");
        let green = one(&spans, "green", |s| s.attribute("tenant") == "green");
        let heard = near.headers["traceparent"].to_str().unwrap();
        assert!(
            heard.contains(&green.span),
            "a pod without a span of its own hears of the client's: {heard}"
        );
        let red = one(&spans, "red", |s| s.attribute("tenant") == "red");
        assert_eq!((red.attribute("fixed"), red.attribute("nobody")), ("x", "none"));
        assert_eq!(red.attribute("said"), "200 red");
        assert_eq!(
            red.attribute("path"),
            std::env::var("PATH").unwrap().chars().take(256).collect::<String>()
        );
    });
}

#[test]
fn spans_wait_for_a_collector_and_the_oldest_give_way() {
    nodes::run(async {
        let collector = Collector::start().await;
        collector.refuse(true);
        let small = TracingConfig { buffer: 6, batch: 4, ..config(&collector, Protocol::Grpc) };
        let mesh = Mesh::start(&small, Vec::new()).await;
        for i in 0..10 {
            mesh.get(CLIENT, WEB, &format!("/leaf/{i}"), &[]).await;
        }
        // Ten requests make ten spans on each node.
        mesh.until("four spans of each node gave way", |m| m.outcome("dropped") >= 8.0).await;
        collector.refuse(false);
        let spans = collector.spans(12).await;
        let path = |s: &Seen| s.attribute("http.url").trim_start_matches("http://web/leaf/").to_owned();
        for server in [false, true] {
            let mut kept: Vec<_> = spans.iter().filter(|s| s.server == server).map(path).collect();
            kept.sort();
            assert_eq!(kept, ["4", "5", "6", "7", "8", "9"], "the newest are kept");
        }
        mesh.until("all are accounted for", |m| m.outcome("exported") == 12.0).await;
        assert_eq!(mesh.outcome("dropped"), 8.0);
        assert!(mesh.metric("selvage_trace_export_failures_total", "") > 0.0);
        assert_eq!(mesh.metric("selvage_trace_waiting_spans", ""), 0.0);
    });
}

#[test]
fn without_a_collector_there_is_nothing() {
    let registry = prometheus::Registry::new();
    assert!(super::Tracer::new(&TracingConfig::default(), &registry).unwrap().is_none());
    assert!(registry.gather().is_empty());
}

/// Longest wait for what happens by itself.
const LONG: Duration = Duration::from_secs(30);
