//! The ingress gateway: listeners, names, TLS, redirects, edits under way.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::{
    NamedGatewayHost, Resource, ResourceType,
    model::{self, GatewayProtocol, Protocol, server_tls::Mode},
};
use mesh_proxy::gateway::{Gateway, GatewayConfig};
use mesh_testkit::ports;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    tls::{Ca, shake},
    upstream::{Upstream, collect, full},
    world::{Options, VIP, World, client1, endpoints, forward, get, service},
};

pub const BOTH: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

pub fn server(
    id: &str,
    port: u32,
    protocol: GatewayProtocol,
    hosts: &[&str],
    tls: Option<model::ServerTls>,
) -> model::GatewayServer {
    model::GatewayServer {
        id: id.into(),
        port,
        protocol: protocol.into(),
        bind: "127.0.0.1".into(),
        hosts: hosts.iter().map(|h| (*h).into()).collect(),
        tls,
        ..Default::default()
    }
}

pub fn gateway(servers: Vec<model::GatewayServer>) -> Resource {
    Resource::Gateway(model::Gateway {
        name: "ns/gw".into(),
        selector: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        servers,
        ..Default::default()
    })
}

pub fn host(server: &str, domain: &str, part: model::VirtualHost) -> Resource {
    let part = model::VirtualHost { source: "ns/vs".into(), gateways: vec!["ns/gw".into()], ..part };
    Resource::GatewayHost(NamedGatewayHost::new(model::GatewayHost {
        gateway: "ns/gw".into(),
        server: server.into(),
        domain: domain.into(),
        parts: vec![part],
    }))
}

pub fn to_web() -> model::VirtualHost {
    model::VirtualHost { http: vec![forward("web")], ..Default::default() }
}

pub struct Edge {
    pub world: World,
    pub web: Arc<Upstream>,
    ports: BTreeMap<u16, u16>,
}

impl Edge {
    pub async fn start(numbers: &[u16], mut resources: Vec<Resource>) -> Self {
        let web = Upstream::start("v1").await;
        resources.push(Resource::Service(service("web", VIP, 80, Protocol::Http)));
        resources.push(endpoints("web", 80, &[(web.addr, "v1")]));
        let ports: BTreeMap<u16, u16> = numbers.iter().map(|n| (*n, ports::free_port())).collect();
        let config = GatewayConfig {
            labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
            ports: ports.clone(),
            ..GatewayConfig::default()
        };
        let options = Options { gateway: Some(Arc::new(Gateway::new(config, None))), ..Options::default() };
        Self { world: World::start(resources, options), web, ports }
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[&port]))
    }

    pub async fn dial(&self, port: u16) -> TcpStream {
        dial(self.at(port)).await
    }

    async fn get(&self, port: u16, host: &str, path: &str) -> http::Response<hyper::body::Incoming> {
        client1(self.dial(port).await).await.send_request(get(host, path)).await.unwrap()
    }
}

/// A listener comes soon, not at once.
async fn dial(to: SocketAddr) -> TcpStream {
    for _ in 0..300 {
        if let Ok(stream) = TcpStream::connect(to).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody listens at {to}");
}

#[tokio::test]
async fn requests_are_routed_by_host_and_nobody_elses_host_is_answered() {
    let edge = Edge::start(
        &[80],
        vec![
            gateway(vec![server("http", 80, GatewayProtocol::GatewayHttp, &["*.example.com"], None)]),
            host("http", "shop.example.com", to_web()),
        ],
    )
    .await;
    let response = edge.get(80, "shop.example.com", "/x?y=1").await;
    assert_eq!(response.status(), StatusCode::OK);
    let seen = edge.web.last();
    assert_eq!((seen.path.as_str(), seen.authority.as_str()), ("/x?y=1", "shop.example.com"));
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["x-forwarded-proto"], "http");
    assert_eq!(edge.get(80, "other.example.com", "/").await.status(), StatusCode::NOT_FOUND);
    // HTTP/2 without TLS, by its preface.
    let io = TokioIo::new(edge.dial(80).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::task::spawn(connection);
    let request = http::Request::get("http://shop.example.com/two").body(full("")).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
    edge.world
        .metric(&["istio_requests_total", "source_workload=\"ingressgateway\"", "response_code=\"200\""])
        .await;
}

/// Listeners of Gateway API keep their hosts from routes of less exact ones; servers of Istio answer together.
#[tokio::test]
async fn listeners_of_gateway_api_are_apart() {
    for (name, status) in [("ns/gw", StatusCode::OK), ("ns/front~web", StatusCode::NOT_FOUND)] {
        let of = |id: &str, host: &str| server(id, 80, GatewayProtocol::GatewayHttp, &[host], None);
        let Resource::Gateway(servers) =
            gateway(vec![of("all", "*"), of("some", "*.example.com"), of("one", "a.example.com")])
        else {
            unreachable!()
        };
        let rules = model::GatewayHost {
            gateway: name.into(),
            server: "some".into(),
            domain: "*.example.com".into(),
            parts: vec![model::VirtualHost {
                source: "ns/vs".into(),
                gateways: vec![name.into()],
                ..to_web()
            }],
        };
        let resources = vec![
            Resource::Gateway(model::Gateway { name: name.into(), ..servers }),
            Resource::GatewayHost(NamedGatewayHost::new(rules)),
        ];
        let edge = Edge::start(&[80], resources).await;
        assert_eq!(edge.get(80, "b.example.com", "/").await.status(), StatusCode::OK, "{name}");
        assert_eq!(edge.get(80, "a.example.com", "/").await.status(), status, "{name}");
        assert_eq!(edge.get(80, "other.org", "/").await.status(), StatusCode::NOT_FOUND, "{name}");
    }
}

#[tokio::test]
async fn a_websocket_passes() {
    let edge = Edge::start(
        &[80],
        vec![
            gateway(vec![server("http", 80, GatewayProtocol::GatewayHttp, &["*"], None)]),
            host("http", "*", to_web()),
        ],
    )
    .await;
    let mut client = client1(edge.dial(80).await).await;
    let mut request = get("any.example", "/ws");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test]
async fn plaintext_is_sent_to_https() {
    let redirect = model::ServerTls { https_redirect: true, ..Default::default() };
    let edge = Edge::start(
        &[80],
        vec![
            gateway(vec![
                server("secure", 80, GatewayProtocol::GatewayHttp, &["shop.example.com"], Some(redirect)),
                server("plain", 80, GatewayProtocol::GatewayHttp, &["*"], None),
            ]),
            host("plain", "*", to_web()),
        ],
    )
    .await;
    let response = edge.get(80, "shop.example.com", "/a?b=c").await;
    assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(response.headers()["location"], "https://shop.example.com/a?b=c");
    assert_eq!(edge.get(80, "other.example.com", "/").await.status(), StatusCode::OK);
}

pub fn simple(secret: &str) -> Option<model::ServerTls> {
    Some(model::ServerTls { mode: Mode::Simple.into(), secrets: vec![secret.into()], ..Default::default() })
}

#[tokio::test]
async fn tls_ends_here_with_the_certificate_of_the_name() {
    let ca = Ca::new();
    let (a, b) = (ca.pair(&["a.example.com"]), ca.pair(&["*.b.example.com"]));
    let edge = Edge::start(
        &[443],
        vec![
            gateway(vec![
                server("a", 443, GatewayProtocol::GatewayHttps, &["a.example.com"], simple("ns/a")),
                server("b", 443, GatewayProtocol::GatewayHttps, &["*.b.example.com"], simple("ns/b")),
            ]),
            host("a", "a.example.com", to_web()),
            host("b", "*.b.example.com", to_web()),
            Resource::Secret(a.secret("ns/a", None)),
            Resource::Secret(b.secret("ns/b", None)),
        ],
    )
    .await;
    edge.dial(443).await;
    for (name, alpn) in [("a.example.com", "http/1.1"), ("x.b.example.com", "h2")] {
        let stream = shake(&ca.client(&[alpn], None, BOTH), edge.at(443), name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        let status = if alpn == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::task::spawn(connection);
            let request = http::Request::get(format!("https://{name}/")).body(full("")).unwrap();
            sender.send_request(request).await.unwrap().status()
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::task::spawn(connection);
            sender.send_request(get(name, "/")).await.unwrap().status()
        };
        assert_eq!(status, StatusCode::OK, "{name}");
        assert_eq!(edge.web.last().headers["x-forwarded-proto"], "https");
    }
    // No server for the name: no handshake. Older protocols than 1.2 are not even in the library.
    assert!(shake(&ca.client(&[], None, BOTH), edge.at(443), "c.example.com").await.is_err());
}

#[tokio::test]
async fn a_new_certificate_is_used_from_the_next_handshake_and_no_connection_ends() {
    let (old, new) = (Ca::new(), Ca::new());
    let edge = Edge::start(
        &[443],
        vec![
            gateway(vec![server(
                "a",
                443,
                GatewayProtocol::GatewayHttps,
                &["a.example.com"],
                simple("ns/a"),
            )]),
            host("a", "a.example.com", to_web()),
            Resource::Secret(old.pair(&["a.example.com"]).secret("ns/a", None)),
        ],
    )
    .await;
    edge.dial(443).await;
    let stream = shake(&old.client(&[], None, BOTH), edge.at(443), "a.example.com").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection);
    let response = sender.send_request(get("a.example.com", "/")).await.unwrap();
    collect(response.into_body()).await;
    edge.world.apply(vec![Resource::Secret(new.pair(&["a.example.com"]).secret("ns/a", None))]);
    assert!(shake(&new.client(&[], None, BOTH), edge.at(443), "a.example.com").await.is_ok());
    assert!(shake(&old.client(&[], None, BOTH), edge.at(443), "a.example.com").await.is_err());
    sender.ready().await.unwrap();
    assert_eq!(sender.send_request(get("a.example.com", "/")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn mutual_tls_and_a_least_version() {
    let (ca, strangers) = (Ca::new(), Ca::new());
    let pair = ca.pair(&["a.example.com"]);
    let tls = model::ServerTls {
        mode: Mode::Mutual.into(),
        secrets: vec!["ns/a".into()],
        min_version: model::TlsVersion::Tlsv13.into(),
        subject_alt_names: vec!["client.example.com".into()],
        ..Default::default()
    };
    let edge = Edge::start(
        &[443],
        vec![
            gateway(vec![server("a", 443, GatewayProtocol::GatewayHttps, &["a.example.com"], Some(tls))]),
            host("a", "a.example.com", to_web()),
            Resource::Secret(pair.secret("ns/a", Some(&ca))),
        ],
    )
    .await;
    edge.dial(443).await;
    // In TLS 1.3 the client learns only with its first read that it was refused.
    let works = async |connector: tokio_rustls::TlsConnector| {
        let Ok(stream) = shake(&connector, edge.at(443), "a.example.com").await else { return false };
        let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await
        else {
            return false;
        };
        tokio::task::spawn(connection);
        sender.send_request(get("a.example.com", "/")).await.is_ok()
    };
    let good = ca.pair(&["client.example.com"]);
    assert!(works(ca.client(&[], Some(&good), BOTH)).await);
    assert!(!works(ca.client(&[], Some(&good), &[&rustls::version::TLS12])).await, "1.2 is too old here");
    assert!(!works(ca.client(&[], Some(&ca.pair(&["other.example.com"])), BOTH)).await, "another name");
    assert!(!works(ca.client(&[], Some(&strangers.pair(&["client.example.com"])), BOTH)).await);
    assert!(!works(ca.client(&[], None, BOTH)).await, "no certificate");
}

#[tokio::test]
async fn tls_passes_through_by_name() {
    let ca = Ca::new();
    let behind =
        crate::tls::https(ca.pair(&["a.example.com", "b.example.com"]).acceptor(&["http/1.1"], None)).await;
    let passthrough = |mode: Mode| Some(model::ServerTls { mode: mode.into(), ..Default::default() });
    let to = model::WeightedDestination {
        destination: Some(model::Destination {
            host: "closed.default.svc.cluster.local".into(),
            ..Default::default()
        }),
        weight: 1,
        headers: None,
    };
    let rule = model::VirtualHost {
        tls: vec![model::TlsRule {
            matches: vec![model::TlsMatch { sni_hosts: vec!["a.example.com".into()], ..Default::default() }],
            destinations: vec![to],
            ..Default::default()
        }],
        ..Default::default()
    };
    let edge = Edge::start(
        &[443, 15443],
        vec![
            gateway(vec![
                server(
                    "pass",
                    443,
                    GatewayProtocol::GatewayTls,
                    &["a.example.com"],
                    passthrough(Mode::Passthrough),
                ),
                server(
                    "auto",
                    15443,
                    GatewayProtocol::GatewayTls,
                    &["*.local"],
                    passthrough(Mode::AutoPassthrough),
                ),
            ]),
            host("pass", "a.example.com", rule),
            Resource::Service(service("closed", "10.96.0.9", 443, Protocol::Tls)),
            endpoints("closed", 443, &[(behind, "v1")]),
        ],
    )
    .await;
    edge.dial(443).await;
    edge.dial(15443).await;
    let stream = shake(&ca.client(&[], None, BOTH), edge.at(443), "a.example.com").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection);
    let response = sender.send_request(get("a.example.com", "/")).await.unwrap();
    let (body, _) = collect(response.into_body()).await;
    assert!(String::from_utf8_lossy(&body).starts_with("a.example.com"));
    assert!(shake(&ca.client(&[], None, BOTH), edge.at(443), "b.example.com").await.is_err());
    // The name says service and port; the certificate behind is for another one, which is how we know who answered.
    let name = "outbound_.443_._.closed.default.svc.cluster.local";
    let error = shake(&ca.client(&[], None, BOTH), edge.at(15443), name).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    let nowhere = "outbound_.444_._.closed.default.svc.cluster.local";
    let error = shake(&ca.client(&[], None, BOTH), edge.at(15443), nowhere).await.unwrap_err().to_string();
    assert!(!error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn bytes_go_where_the_port_says() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            tokio::task::spawn(async move { s.write_all(b"hello from behind").await });
        }
    });
    let to = model::WeightedDestination {
        destination: Some(model::Destination {
            host: "db.default.svc.cluster.local".into(),
            ..Default::default()
        }),
        weight: 1,
        headers: None,
    };
    let rule = model::VirtualHost {
        tcp: vec![model::TcpRule { destinations: vec![to], ..Default::default() }],
        ..Default::default()
    };
    let edge = Edge::start(
        &[5432],
        vec![
            gateway(vec![server("tcp", 5432, GatewayProtocol::GatewayTcp, &["*"], None)]),
            host("tcp", "*", rule),
            Resource::Service(service("db", "10.96.0.9", 5432, Protocol::Tcp)),
            endpoints("db", 5432, &[(addr, "v1")]),
        ],
    )
    .await;
    let mut said = String::new();
    edge.dial(5432).await.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello from behind");
}

/// Listeners come, change and go while requests run; those of the port that stays do not notice.
#[tokio::test]
async fn edits_of_listeners_and_rules_fail_no_request() {
    let plain = || server("http", 80, GatewayProtocol::GatewayHttp, &["*"], None);
    let edge = Edge::start(&[80, 8080], vec![gateway(vec![plain()]), host("http", "*", to_web())]).await;
    edge.dial(80).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let to = edge.at(80);
    let clients: Vec<_> = (0..4)
        .map(|i| {
            let stop = Arc::clone(&stop);
            tokio::task::spawn(async move {
                let (mut done, mut kept) = (0u32, client1(dial(to).await).await);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Half of the requests on new connections.
                    if i % 2 == 0 {
                        kept = client1(TcpStream::connect(to).await.unwrap()).await;
                    }
                    kept.ready().await.unwrap();
                    let response = kept.send_request(get("any.example", "/")).await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    collect(response.into_body()).await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let second = edge.at(8080);
    for round in 0..10 {
        let other = server("other", 8080, GatewayProtocol::GatewayHttp, &["*"], None);
        edge.world.apply(vec![gateway(vec![other, plain()]), host("other", "*", to_web())]);
        let response = client1(dial(second).await).await.send_request(get("x", "/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "round {round}");
        let mut rule = forward("web");
        rule.name = format!("round {round}");
        let more = model::VirtualHost { http: vec![rule], ..Default::default() };
        edge.world.apply(vec![gateway(vec![plain()]), host("http", "*", more)]);
        edge.world.remove(ResourceType::GatewayHost, &["ns/gw|other|*"]);
        for _ in 0..300 {
            if TcpStream::connect(second).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(TcpStream::connect(second).await.is_err(), "the port is closed again");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut done = 0;
    for c in clients {
        done += c.await.unwrap();
    }
    assert!(done > 100, "{done} requests ran meanwhile");
}
