//! TLS at the gateway, handshake by handshake: who is let in, with which versions and ciphers, and what runs inside.

use http::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::{
    Resource,
    model::{self, GatewayProtocol, TlsVersion, server_tls::Mode},
};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::{
    gateway::{BOTH, Edge, gateway, host, server, simple, to_web},
    tls::{Ca, Pair, https, shake},
    upstream::{collect, full},
    world::{client1, endpoints, forward, get, service},
};

const NAME: &str = "a.example.com";

/// A gateway with one server, its certificate, and what it asks of clients.
async fn edge(tls: model::ServerTls, secret: model::Secret) -> Edge {
    let edge = Edge::start(
        &[443],
        vec![
            gateway(vec![server("a", 443, GatewayProtocol::GatewayHttps, &[NAME], Some(tls))]),
            host("a", NAME, to_web()),
            Resource::Secret(secret),
        ],
    )
    .await;
    edge.dial(443).await;
    edge
}

fn of_mode(mode: Mode) -> model::ServerTls {
    model::ServerTls { mode: mode.into(), ..simple("ns/a").unwrap() }
}

/// Whether a request is answered: in TLS 1.3 a client learns only with its first read that it was refused.
async fn works(edge: &Edge, connector: &TlsConnector) -> bool {
    let Ok(stream) = shake(connector, edge.at(443), NAME).await else { return false };
    let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await
    else {
        return false;
    };
    tokio::task::spawn(connection);
    sender.send_request(get(NAME, "/")).await.is_ok_and(|r| r.status() == StatusCode::OK)
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_one_that_is_revoked_later_too() {
    let ca = Ca::new();
    let (good, bad) = (ca.revocable(&["good"], 7), ca.revocable(&["bad"], 8));
    let secret = |crl: Vec<u64>| model::Secret {
        crl: ca.crl(&crl).into_bytes(),
        ..ca.pair(&[NAME]).secret("ns/a", Some(&ca))
    };
    let edge = edge(of_mode(Mode::Mutual), secret(vec![8])).await;
    let by = |pair: &Pair| ca.client(&[], Some(pair), BOTH);
    assert!(works(&edge, &by(&good)).await);
    assert!(!works(&edge, &by(&bad)).await, "revoked");
    edge.world.apply(vec![Resource::Secret(secret(vec![7, 8]))]);
    assert!(!works(&edge, &by(&good)).await, "revoked since then");
    edge.world.apply(vec![Resource::Secret(secret(vec![]))]);
    assert!(works(&edge, &by(&good)).await && works(&edge, &by(&bad)).await);
}

#[tokio::test]
async fn a_certificate_may_be_absent_but_not_wrong() {
    let (ca, strangers) = (Ca::new(), Ca::new());
    let edge = edge(of_mode(Mode::OptionalMutual), ca.pair(&[NAME]).secret("ns/a", Some(&ca))).await;
    assert!(works(&edge, &ca.client(&[], None, BOTH)).await, "without one");
    assert!(works(&edge, &ca.client(&[], Some(&ca.pair(&["me"])), BOTH)).await, "with one");
    assert!(!works(&edge, &ca.client(&[], Some(&strangers.pair(&["me"])), BOTH)).await, "with a stranger's");
    assert!(!works(&edge, &ca.client(&[], Some(&ca.expired(&["me"])), BOTH)).await, "with an old one");
}

#[tokio::test]
async fn an_expired_client_and_an_expired_gateway_are_refused() {
    let ca = Ca::new();
    let mutual = edge(of_mode(Mode::Mutual), ca.pair(&[NAME]).secret("ns/a", Some(&ca))).await;
    assert!(works(&mutual, &ca.client(&[], Some(&ca.pair(&["me"])), BOTH)).await);
    assert!(!works(&mutual, &ca.client(&[], Some(&ca.expired(&["me"])), BOTH)).await);
    // The client sees what the gateway shows.
    let old = edge(of_mode(Mode::Simple), ca.expired(&[NAME]).secret("ns/a", None)).await;
    let error = shake(&ca.client(&[], None, BOTH), old.at(443), NAME).await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn versions_and_ciphers_are_those_of_the_server() {
    let ca = Ca::new();
    let secret = || ca.pair(&[NAME]).secret("ns/a", None);
    let suite = "ECDHE-ECDSA-CHACHA20-POLY1305";
    let old = model::ServerTls {
        max_version: TlsVersion::Tlsv12.into(),
        cipher_suites: vec![suite.into(), "AES128-SHA".into()],
        ..of_mode(Mode::Simple)
    };
    let edge_of_old = edge(old, secret()).await;
    let both = ca.client(&[], None, BOTH);
    let stream = shake(&both, edge_of_old.at(443), NAME).await.unwrap();
    let (_, state) = stream.get_ref();
    assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    assert_eq!(
        state.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    );
    assert!(shake(&ca.client(&[], None, &[&TLS13]), edge_of_old.at(443), NAME).await.is_err(), "too new");

    let new = model::ServerTls { min_version: TlsVersion::Tlsv13.into(), ..of_mode(Mode::Simple) };
    let edge_of_new = edge(new, secret()).await;
    let stream = shake(&both, edge_of_new.at(443), NAME).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert!(shake(&ca.client(&[], None, &[&TLS12]), edge_of_new.at(443), NAME).await.is_err(), "too old");
}

/// A hello of TLS 1.0 or 1.1, as old clients say it: no list of versions, two ciphers of that time, the name.
fn old_hello(minor: u8) -> Vec<u8> {
    let name = NAME.as_bytes();
    let entry = [&[0, 0, name.len() as u8][..], name].concat();
    let list = [&[0, entry.len() as u8][..], &entry].concat();
    let sni = [&[0, 0, 0, list.len() as u8][..], &list].concat();
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x09, 0xc0, 0x0a, 1, 0, 0, sni.len() as u8]);
    body.extend(sni);
    let handshake = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[22, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
}

#[tokio::test]
async fn what_is_older_than_tls_1_2_is_refused_even_when_the_server_allows_it() {
    let ca = Ca::new();
    let asked = model::ServerTls { min_version: TlsVersion::Tlsv10.into(), ..of_mode(Mode::Simple) };
    let edge = edge(asked, ca.pair(&[NAME]).secret("ns/a", None)).await;
    for minor in [1, 2] {
        let mut stream = edge.dial(443).await;
        stream.write_all(&old_hello(minor)).await.unwrap();
        let mut said = Vec::new();
        let _reset = stream.read_to_end(&mut said).await;
        // A fatal alert, or nothing at all; never a handshake.
        assert_ne!(said.first(), Some(&22), "TLS 1.{}: {said:?}", minor - 1);
        if let Some(level) = said.get(5) {
            assert_eq!((said[0], *level), (21, 2), "{said:?}");
        }
    }
    assert!(works(&edge, &ca.client(&[], None, &[&TLS12])).await);
}

#[tokio::test]
async fn grpc_keeps_its_trailers_behind_tls() {
    let ca = Ca::new();
    let edge = edge(of_mode(Mode::Simple), ca.pair(&[NAME]).secret("ns/a", None)).await;
    let stream = shake(&ca.client(&["h2"], None, BOTH), edge.at(443), NAME).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection);
    let request = || {
        Request::post(format!("https://{NAME}/pkg.Service/Method"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full("\0\0\0\0\x05hello"))
            .unwrap()
    };
    let response = sender.send_request(request()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let (body, trailers) = collect(response.into_body()).await;
    assert_eq!(&body[..], b"\0\0\0\0\x05hello");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    assert_eq!(edge.web.last().version, http::Version::HTTP_2, "gRPC is HTTP/2 to the service, too");
    // Where no rule leads, gRPC hears it in its own words.
    edge.world.remove(mesh_api::ResourceType::GatewayHost, &[&format!("ns/gw|a|{NAME}")]);
    let response = sender.send_request(request()).await.unwrap();
    let said = |headers: &HeaderMap| headers.get("grpc-status").map(|v| v.to_str().unwrap().to_owned());
    let at_once = said(response.headers());
    let (_, trailers) = collect(response.into_body()).await;
    let status = at_once.or_else(|| trailers.as_ref().and_then(said));
    assert!(status.is_some_and(|s| s != "0"), "{trailers:?}");
}

#[tokio::test]
async fn a_websocket_stays_open_behind_tls_while_the_certificate_changes() {
    let (ca, new) = (Ca::new(), Ca::new());
    let edge = edge(of_mode(Mode::Simple), ca.pair(&[NAME]).secret("ns/a", None)).await;
    let stream = shake(&ca.client(&["http/1.1"], None, BOTH), edge.at(443), NAME).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection.with_upgrades());
    let mut request = get(NAME, "/ws");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    for round in 0..20 {
        let certificate = if round % 2 == 0 { &new } else { &ca };
        edge.world.apply(vec![Resource::Secret(certificate.pair(&[NAME]).secret("ns/a", None))]);
        assert!(works(&edge, &certificate.client(&[], None, BOTH)).await, "round {round}");
        io.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello", "round {round}");
    }
}

/// A browser speaks HTTP/2 with everybody who offers it; the service behind need not.
#[tokio::test]
async fn http2_outside_is_http1_inside_where_nobody_says_otherwise() {
    let ca = Ca::new();
    let edge = edge(of_mode(Mode::Simple), ca.pair(&[NAME]).secret("ns/a", None)).await;
    let stream = shake(&ca.client(&["h2"], None, BOTH), edge.at(443), NAME).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection);
    let request = Request::get(format!("https://{NAME}/")).body(full("")).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(edge.web.last().version, http::Version::HTTP_11);
}

/// A browser that has a connection for one name uses it for another that the certificate covers.
#[tokio::test]
async fn a_host_of_another_server_is_sent_to_a_connection_of_its_own() {
    let ca = Ca::new();
    let secret = ca.pair(&["a.example.com", "b.example.com"]).secret("ns/a", None);
    let of = |id: &str, name: &str| server(id, 443, GatewayProtocol::GatewayHttps, &[name], simple("ns/a"));
    let edge = Edge::start(
        &[443],
        vec![
            gateway(vec![of("a", "a.example.com"), of("b", "b.example.com")]),
            host("a", "a.example.com", to_web()),
            host("b", "b.example.com", to_web()),
            Resource::Secret(secret),
        ],
    )
    .await;
    edge.dial(443).await;
    let stream = shake(&ca.client(&["h2"], None, BOTH), edge.at(443), "a.example.com").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection);
    for (name, status) in [("a.example.com", 200), ("b.example.com", 421), ("c.example.com", 404)] {
        let request = Request::get(format!("https://{name}/")).body(full("")).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status().as_u16(), status, "{name}");
    }
}

/// What a backend asks for in its handshake is the Gateway's to show, where the rule towards it has nothing of its own.
#[tokio::test]
async fn a_gateway_shows_its_certificate_to_a_backend_that_asks() {
    let (ca, strangers) = (Ca::new(), Ca::new());
    let behind = https(ca.pair(&["back.example.com"]).acceptor(&[], Some(&ca))).await;
    let mut back = service("back", "10.96.0.9", 443, model::Protocol::Http);
    back.policies = vec![model::DestinationPolicy {
        source: "ns/back".into(),
        policy: Some(model::TrafficPolicy {
            tls: Some(model::ClientTls {
                mode: model::client_tls::Mode::Simple.into(),
                sni: "back.example.com".into(),
                secret: "ns/authority".into(),
                ..Default::default()
            }),
            // Each handshake shows what is in force.
            connection_pool: Some(model::ConnectionPool {
                max_requests_per_connection: 1,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }];
    let mut rule = forward("back");
    if let Some(model::http_rule::Action::Forward(to)) = &mut rule.action {
        to.destinations[0].destination.as_mut().unwrap().port = 443;
    }
    let part = model::VirtualHost { http: vec![rule], ..Default::default() };
    let front = |client_secret: &str| {
        let servers = vec![server("a", 80, GatewayProtocol::GatewayHttp, &[NAME], None)];
        let Resource::Gateway(gateway) = gateway(servers) else { panic!("a gateway") };
        Resource::Gateway(model::Gateway { client_secret: client_secret.into(), ..gateway })
    };
    let authority =
        model::Secret { name: "ns/authority".into(), ca: ca.pem.clone().into(), ..Default::default() };
    let edge = Edge::start(
        &[80],
        vec![
            front(""),
            host("a", NAME, part),
            Resource::Service(back),
            endpoints("back", 443, &[(behind, "v1")]),
            Resource::Secret(authority),
            Resource::Secret(ca.pair(&["front"]).secret("ns/mine", None)),
        ],
    )
    .await;
    let answer = async || {
        let response = client1(edge.dial(80).await).await.send_request(get(NAME, "/")).await.unwrap();
        let status = response.status();
        (status, String::from_utf8(collect(response.into_body()).await.0.to_vec()).unwrap())
    };
    // An endpoint that failed is left alone for a moment.
    let soon = async |wanted: StatusCode| {
        let mut last = answer().await;
        for _ in 0..200 {
            if last.0 == wanted {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            last = answer().await;
        }
        last
    };
    assert_eq!(answer().await.0, StatusCode::SERVICE_UNAVAILABLE, "nothing is shown");
    edge.world.apply(vec![front("ns/mine")]);
    assert_eq!(soon(StatusCode::OK).await, (StatusCode::OK, "back.example.com - 1".into()));
    edge.world.apply(vec![Resource::Secret(strangers.pair(&["front"]).secret("ns/mine", None))]);
    assert_eq!(
        soon(StatusCode::SERVICE_UNAVAILABLE).await.0,
        StatusCode::SERVICE_UNAVAILABLE,
        "a stranger's"
    );
    edge.world.apply(vec![Resource::Secret(ca.pair(&["front"]).secret("ns/mine", None))]);
    assert_eq!(soon(StatusCode::OK).await.0, StatusCode::OK);
}
