//! docs/metrics.md says what the programs declare.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

#[path = "metrics/declared.rs"]
mod declared;

use std::fmt::Write as _;

use declared::{Declared, declared, root};

const HEAD: &str = "# Metrics\n\n\
Generated from the source by `UPDATE_DOCS=1 cargo test -p mesh-proxy --test metrics_docs`; a test fails when it is stale.\n\
Both programs serve them at `/metrics` (proxy: port 15020; controller: its `metricsListen`), together with `process_*` of the\n\
Prometheus client library (CPU, memory, descriptors, threads, start time).\n\
[observability.md](observability.md) says what to look at, and bounds.\n";

fn page() -> String {
    let all = declared();
    let mut out = HEAD.to_owned();
    type Part = (&'static str, fn(&Declared) -> bool);
    let parts: [Part; 4] = [
        ("Traffic (Istio's names and labels)", |d| d.name.starts_with("istio_")),
        ("Proxy", |d| {
            d.program == "mesh-proxy"
                && ["selvage_tunnel_", "selvage_nat_", "selvage_relay_", "istio_"]
                    .iter()
                    .all(|p| !d.name.starts_with(p))
        }),
        ("Tunnel of the proxy", |d| {
            ["selvage_tunnel_", "selvage_nat_", "selvage_relay_"].iter().any(|p| d.name.starts_with(p))
        }),
        ("Controller", |d| d.program == "mesh-controller"),
    ];
    for (title, belongs) in parts {
        let _ = write!(out, "\n## {title}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n");
        for d in all.values().filter(|d| belongs(d)) {
            let labels = match d.labels.len() {
                23 => "those of a call".to_owned(),
                25 => "those of a call, `response_code`, `grpc_response_status`".to_owned(),
                _ => d.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", "),
            };
            let help = d.help.trim_end_matches('.').replace('|', "\\|");
            let _ = writeln!(out, "| `{}` | {} | {labels} | {help} |", d.name, d.kind);
        }
        if title.starts_with("Traffic") {
            let call = all["istio_tcp_sent_bytes_total"].labels.iter().map(|l| format!("`{l}`"));
            let _ = write!(out, "\nLabels of a call: {}.\n", call.collect::<Vec<_>>().join(", "));
        }
    }
    out
}

#[test]
fn the_page_is_what_the_source_says() {
    let path = root().join("docs/metrics.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/metrics.md is stale: UPDATE_DOCS=1 cargo test -p mesh-proxy --test metrics_docs"
    );
}

#[test]
fn every_metric_has_a_help_text_and_a_fitting_name() {
    let all = declared();
    assert!(all.len() > 80, "the source is not read as it should be: {}", all.len());
    for d in all.values() {
        assert!(d.help.len() >= 10 && d.help.contains(' '), "{}: {:?} helps nobody", d.name, d.help);
        assert_eq!(
            d.kind == "counter",
            d.name.ends_with("_total"),
            "{}: counters end in _total: {}",
            d.name,
            d.kind
        );
    }
}

/// The blocks of a kind in docs/observability.md.
fn blocks(kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/observability.md")).unwrap();
    let mut out = Vec::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find(&format!("```{kind}\n")) {
        let body = &rest[start + kind.len() + 4..];
        let end = body.find("```").unwrap();
        out.push(body[..end].to_owned());
        rest = &body[end + 3..];
    }
    out
}

#[test]
fn the_examples_of_the_page_are_right() {
    let (mut settings, mut resources) = (0, 0);
    for block in blocks("yaml") {
        if let Some(text) = block.strip_prefix("# mesh-proxy.yaml\n") {
            let layers = node_rt::Layers {
                file: Some(("mesh-proxy.yaml".into(), text.to_owned())),
                env_prefix: "MESH_PROXY_".to_owned(),
                env: Vec::new(),
                env_ignore: Vec::new(),
                flags: Vec::new(),
            };
            let loaded: Result<mesh_proxy::Config, _> = node_rt::load_from(layers);
            loaded.unwrap_or_else(|e| panic!("{e}\nin\n{block}"));
            settings += 1;
            continue;
        }
        let object = istio_compat::yaml::values(&block).unwrap().pop().unwrap();
        let parsed = istio_compat::parse(&object).unwrap_or_else(|e| panic!("{e}\nin\n{block}"));
        let verdict = istio_compat::validate::judge(&parsed);
        assert!(verdict.is_valid(), "{verdict:?}\nin\n{block}");
        assert!(parsed.unsupported.is_empty() && parsed.unknown.is_empty(), "{parsed:?}\nin\n{block}");
        resources += 1;
    }
    assert!(settings >= 4 && resources >= 3, "{settings} {resources}");
}

#[tokio::test]
async fn the_commands_of_the_page_are_right() {
    let log = node_rt::init_logging(node_rt::LogFormat::Text, "info").unwrap();
    let tasks = node_rt::Tasks::new(node_rt::Drain::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    node_rt::AdminServer::new().process_logging(&tasks).serve("admin", listener, &tasks);
    let mut filters = Vec::new();
    for line in blocks("sh").iter().flat_map(|b| b.lines()) {
        let method = if line.contains("-X POST") { "POST" } else { "GET" };
        let path = line.split("15000").nth(1).unwrap().trim_end_matches('\'');
        let answer = ask(address, method, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
        filters.push(log.current());
    }
    assert_eq!(
        filters,
        [
            "info",
            "debug",
            "debug,mesh_proxy::dns=trace",
            "debug,mesh_proxy::dns=trace,mesh_tunnel=debug,libp2p=warn",
            "info"
        ]
    );
    let wrong = ask(address, "POST", "/logging?level=loud").await;
    assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("\"loud\" is no level"), "{wrong}");
}

async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
