use std::{rc::Rc, sync::Arc};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::telemetry::{
    Telemetry, TelemetryConfig,
    local::{Local, Parties},
    trace::{Reporter, Span, Tracer, TracingConfig},
};

pub(super) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub(super) const SPAN: &str = "b7ad6b7169203331";

/// What is said of connections, and where it arrives.
pub(super) struct Heard {
    pub(super) tracer: Arc<Tracer>,
    pub(super) local: Rc<Local>,
    registry: prometheus::Registry,
}

impl Heard {
    pub(super) fn new() -> Self {
        let config = TracingConfig { endpoint: "http://127.0.0.1:1".into(), ..TracingConfig::default() };
        let registry = prometheus::Registry::new();
        let tracer = Tracer::new(&config, &registry).unwrap().unwrap();
        let telemetry = Arc::new(Telemetry::new(&registry, TelemetryConfig::default()).unwrap());
        Self { tracer, local: Rc::new(Local::of_owner(telemetry)), registry }
    }

    pub(super) fn about(&self) -> About {
        let traces = Traces {
            tracer: Arc::clone(&self.tracer),
            rules: Rc::default(),
            reporter: Reporter::of(None),
            service: ("web.shop".into(), 80),
            node: "edge".into(),
            client: "10.1.0.2".into(),
        };
        let (local, parties) = (Rc::clone(&self.local), Parties::default());
        let counts = Counts { local, parties, trust_domain: "cluster.local".into() };
        About { traces: Some(traces), counts: Some(counts) }
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        self.tracer.queue().take(100)
    }

    /// Requests that were counted: protocol, code, gRPC's status, flags, and how many, in order.
    pub(super) fn counted(&self) -> Vec<String> {
        self.local.flush();
        let mut all = Vec::new();
        for family in self.registry.gather().iter().filter(|f| f.name() == "istio_requests_total") {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|l| l.name() == name).unwrap().value().to_owned()
                };
                assert_eq!(label("reporter"), "destination");
                let names = ["request_protocol", "response_code", "grpc_response_status", "response_flags"];
                let labels = names.map(label).join(" ");
                all.push(format!("{labels} {}", metric.get_counter().get_value()));
            }
        }
        all.sort();
        all
    }
}

fn tapped() -> (Tapped<DuplexStream>, DuplexStream, Heard) {
    let (ours, pod) = duplex(1 << 20);
    let heard = Heard::new();
    (Tapped::new(ours, heard.about()), pod, heard)
}

/// What arrives when bytes are written in pieces of this length, and which spans that makes.
async fn exchange(requests: &str, responses: &str, piece: usize) -> (String, String, Vec<Span>, Vec<String>) {
    let (mut tapped, mut pod, heard) = tapped();
    for bytes in requests.as_bytes().chunks(piece) {
        tapped.write_all(bytes).await.unwrap();
    }
    let mut arrived = vec![0; requests.len()];
    pod.read_exact(&mut arrived).await.unwrap();
    let mut answered = Vec::new();
    for bytes in responses.as_bytes().chunks(piece) {
        pod.write_all(bytes).await.unwrap();
        let mut got = vec![0; bytes.len()];
        tapped.read_exact(&mut got).await.unwrap();
        answered.extend(got);
    }
    drop(tapped);
    let (arrived, answered) = (String::from_utf8(arrived).unwrap(), String::from_utf8(answered).unwrap());
    (arrived, answered, heard.spans(), heard.counted())
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: web\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n{more}\r\n")
}

pub(super) fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|(n, _)| n == name);
    found.map_or_else(String::new, |(_, v)| format!("{v:?}"))
}

#[tokio::test]
async fn the_pod_hears_of_this_hop_and_the_span_of_its_parent() {
    let b3 = format!("b3: {TRACE}-{SPAN}-1\r\nX-B3-SpanId: {SPAN}\r\n");
    let (arrived, _, spans, _) =
        exchange(&get("/a", &b3), "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", 4096).await;
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(span.ids.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    assert_eq!(span.parent, Some(0xb7ad_6b71_6920_3331));
    assert!(span.server && !span.error);
    let own = format!("{:016x}", span.ids.span);
    assert_eq!(arrived, get("/a", &b3).replace(SPAN, &own), "nothing else has changed");
    assert_eq!(span.name, "web.shop:80/*");
    assert_eq!(attribute(span, "http.status_code"), "Number(404)");
    assert_eq!(attribute(span, "response_size"), "Number(3)");
}

#[tokio::test]
async fn requests_of_a_connection_are_told_apart_however_they_are_cut() {
    let post = format!(
        "POST /b HTTP/1.1\r\nHost: web\r\nb3: {TRACE}-{SPAN}-1\r\nTransfer-Encoding: chunked\r\n\r\n\
         4;x=y\r\nGET \r\n0a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    );
    let unsampled = "GET /c HTTP/1.1\r\nHost: web\r\n\r\n";
    let put = format!(
        "PUT /d HTTP/1.1\r\nHost: web\r\ncontent-length: 5\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n\r\nhello"
    );
    let head = get("/e", "").replace("GET", "HEAD");
    let requests = [get("/a", "").as_str(), &post, unsampled, &put, &head, &get("/f", "")].concat();
    let responses = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n\
         HTTP/1.1 204 No Content\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\
         HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\
         HTTP/1.0 200 OK\r\n\r\nuntil the end";
    for piece in [1, 2, 3, 7, 50, 1000, 10_000] {
        let (arrived, answered, spans, counted) = exchange(&requests, responses, piece).await;
        assert_eq!(arrived.len(), requests.len());
        assert!(!arrived.contains(SPAN), "the pod hears of this hop, in pieces of {piece}: {arrived}");
        assert_eq!(answered, responses);
        let seen: Vec<_> = spans
            .iter()
            .map(|s| {
                let of = |n| attribute(s, n);
                (of("http.url"), of("http.status_code"), of("request_size"), of("response_size"))
            })
            .collect();
        let expected = |path: &str, status: u16, received: u64, sent: u64| {
            (
                format!("Text(\"http://web{path}\")"),
                format!("Number({status})"),
                format!("Number({received})"),
                format!("Number({sent})"),
            )
        };
        assert_eq!(
            seen,
            [
                expected("/a", 200, 0, 3),
                expected("/b", 503, 14, 0),
                expected("/d", 200, 5, 2),
                expected("/e", 200, 0, 0),
                expected("/f", 200, 0, 13),
            ],
            "in pieces of {piece}"
        );
        assert!(spans[1].error);
        assert_eq!(counted, ["http 200  - 4", "http 204  - 1", "http 503  - 1"], "sampled or not");
    }
}

#[tokio::test]
async fn what_is_no_http_passes_untouched() {
    let changed = get("/a", "Upgrade: x\r\nConnection: upgrade\r\n");
    let (arrived, answered, spans, counted) = exchange(
        &format!("{changed}{}", get("/not-http", "")),
        "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 500 X\r\n\r\n",
        10_000,
    )
    .await;
    assert!(answered.ends_with("500 X\r\n\r\n") && arrived.len() > changed.len());
    assert_eq!(attribute(&spans[0], "http.status_code"), "Number(101)");
    assert_eq!(counted, ["http 101  - 1"]);
    for strange in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned() + &get("/", ""),
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned() + &get("/", ""),
        "PRI".to_owned(),
        "\x16\x03\x01 \0\0 not text".to_owned(),
        "CONNECT a:1 HTTP/1.1\r\n\r\n".to_owned() + &get("/", ""),
        "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned() + &get("/", ""),
        "x".repeat(100_000),
    ] {
        for piece in [1, 7, 10_000] {
            let (mut tapped, mut pod, heard) = tapped();
            for bytes in strange.as_bytes().chunks(piece) {
                tapped.write_all(bytes).await.unwrap();
            }
            // What may be the beginning of a head goes at the end at the latest.
            tapped.shutdown().await.unwrap();
            let mut arrived = String::new();
            pod.read_to_string(&mut arrived).await.unwrap();
            assert_eq!(arrived, strange);
            drop(tapped);
            assert!(heard.spans().is_empty() && heard.counted().is_empty(), "{strange:?}");
        }
    }
}

#[tokio::test]
async fn a_handshake_of_tls_waits_for_nothing() {
    let proxied = b"PROXY TCP4 10.1.0.1 10.1.0.2 5 80\r\n\x16\x03\x01";
    for hello in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &[0x16], b"\0\0\0\x08", b"GE\0", proxied]
    {
        let (mut tapped, mut pod, _heard) = tapped();
        tapped.write_all(hello).await.unwrap();
        tapped.flush().await.unwrap();
        let mut arrived = vec![0; hello.len()];
        pod.read_exact(&mut arrived).await.unwrap();
        assert_eq!(arrived, hello);
    }
}

#[tokio::test]
async fn a_request_without_an_answer_ends_with_its_connection() {
    let (_, _, spans, counted) = exchange(&get("/a", ""), "HTTP/1.1 20", 100).await;
    assert_eq!(attribute(&spans[0], "http.status_code"), "Number(0)");
    assert!(spans[0].error);
    assert_eq!(counted, ["http 0  DC 1"], "the caller went away");

    let (mut tapped, mut pod, heard) = tapped();
    tapped.write_all(get("/a", "").as_bytes()).await.unwrap();
    pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    drop(pod);
    let mut got = Vec::new();
    tapped.read_to_end(&mut got).await.unwrap();
    drop(tapped);
    assert_eq!(heard.counted(), ["http 200  UC 1"], "the pod did");
}

#[tokio::test]
async fn methods_that_begin_like_http2_are_methods() {
    for piece in [1, 2, 3, 500] {
        let request = "PRIVATE /x HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
        let (arrived, _, _, counted) =
            exchange(request, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", piece).await;
        assert_eq!((arrived.as_str(), counted), (request, vec!["http 200  - 1".to_owned()]), "{piece}");
    }
}
