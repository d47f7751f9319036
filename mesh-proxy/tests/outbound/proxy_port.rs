//! The way in without capture: CONNECT, absolute form, SOCKS5.

use std::sync::Arc;

use http::{Request, StatusCode};
use mesh_api::{Resource, model::Protocol};
use mesh_proxy::outbound::check_proxy_address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    upstream::{Upstream, collect, full},
    world::{Options, VIP, World, client1, endpoints, get, service},
};

async fn world() -> (World, Arc<Upstream>, Arc<Upstream>) {
    let (web, other) = (Upstream::start("web").await, Upstream::start("other").await);
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        Resource::Service(service("other", "10.96.0.2", 8080, Protocol::Http)),
        endpoints("web", 80, &[(web.addr, "v1")]),
        endpoints("other", 8080, &[(other.addr, "v1")]),
    ];
    (World::start(resources, Options::default()), web, other)
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 1024];
    let n = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test]
async fn connect_reaches_services_by_any_of_their_names_and_addresses() {
    let (world, web, _other) = world().await;
    for host in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "WEB.default", VIP]
    {
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        stream
            .write_all(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let answer = read_some(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        let mut client = client1(stream).await;
        let response = client.send_request(get("web", "/x")).await.unwrap();
        assert_eq!(collect(response.into_body()).await.0, "web", "{host}");
    }
    assert_eq!(web.requests(), 6);
}

#[tokio::test]
async fn absolute_requests_may_change_their_target_on_one_connection() {
    let (world, web, other) = world().await;
    let mut client = client1(TcpStream::connect(world.proxy).await.unwrap()).await;
    for (uri, name) in
        [("http://web/a?x=1", "web"), ("http://other.default:8080/b", "other"), ("http://web/c", "web")]
    {
        let request = Request::get(uri).header("host", "ignored").body(full("")).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        assert_eq!(collect(response.into_body()).await.0, name);
    }
    assert_eq!((web.requests(), other.requests()), (2, 1));
    assert_eq!(other.last().path, "/b");
    assert_eq!(other.last().authority, "other.default:8080");
}

#[tokio::test]
async fn socks5_with_names_and_addresses() {
    let (world, web, _other) = world().await;
    let named = [&[5, 1, 0, 3, 11][..], b"web.default", &[0, 80]].concat();
    let numeric = vec![5, 1, 0, 1, 10, 96, 0, 1, 0, 80];
    for request in [named, numeric] {
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        stream.write_all(&[5, 2, 0, 2]).await.unwrap();
        let mut method = [0; 2];
        stream.read_exact(&mut method).await.unwrap();
        assert_eq!(method, [5, 0]);
        stream.write_all(&request).await.unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..2], [5, 0]);
        let mut client = client1(stream).await;
        let response = client.send_request(get("web", "/")).await.unwrap();
        assert_eq!(collect(response.into_body()).await.0, "web");
    }
    assert_eq!(web.requests(), 2);
}

#[tokio::test]
async fn what_leads_nowhere_is_refused_in_the_protocols_own_words() {
    let (world, _web, _other) = world().await;
    for (head, status) in [
        ("CONNECT nobody.default.svc.cluster.local:80 HTTP/1.1\r\n\r\n", "502"),
        ("CONNECT web HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: web\r\n\r\n", "400"),
        ("GET http://nobody.default.svc.cluster.local/ HTTP/1.1\r\nHost: x\r\n\r\n", "502"),
    ] {
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_some(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head:?}: {answer}");
    }
    let mut stream = TcpStream::connect(world.proxy).await.unwrap();
    stream.write_all(&[5, 1, 2]).await.unwrap();
    let mut reply = [0; 2];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply, [5, 0xff]);
    // Its own port would loop.
    let mut config = mesh_proxy::outbound::OutboundConfig::default();
    config.own_ports.push(15080);
    let mut stream = TcpStream::connect(world.proxy).await.unwrap();
    stream.write_all(b"CONNECT 127.0.0.1:15080 HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 502"));
}

#[test]
fn it_listens_on_loopback_only() {
    assert!(check_proxy_address("127.0.0.1:15080".parse().unwrap()).is_ok());
    assert!(check_proxy_address("[::1]:15080".parse().unwrap()).is_ok());
    for open in ["0.0.0.0:15080", "10.0.0.1:15080", "[::]:15080"] {
        assert!(check_proxy_address(open.parse().unwrap()).is_err(), "{open}");
    }
}
