//! Connections as bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::{
    Resource,
    model::{self, Protocol},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    upstream::tcp,
    world::{Options, VIP, World, endpoints, service},
};

const TO: &str = "10.96.0.1:9000";

async fn echo(mut s: TcpStream) {
    let (mut r, mut w) = s.split();
    let _copied = tokio::io::copy(&mut r, &mut w).await;
    let _closed = w.shutdown().await;
}

fn start(resources: Vec<Resource>) -> World {
    World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() })
}

#[tokio::test]
async fn half_close_passes_in_both_directions() {
    // Answers only after the client has closed its side, and the client still reads all of it.
    let addr = tcp(|mut s| async move {
        let mut all = Vec::new();
        s.read_to_end(&mut all).await.unwrap();
        all.reverse();
        s.write_all(&all).await.unwrap();
    })
    .await;
    let world = start(vec![
        Resource::Service(service("echo", VIP, 9000, Protocol::Tcp)),
        endpoints("echo", 9000, &[(addr, "v1")]),
    ]);
    let mut stream = world.dial(TO).await;
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "cba");
    for (family, value) in
        [("istio_tcp_received_bytes_total{", "} 3"), ("istio_tcp_sent_bytes_total{", "} 3")]
    {
        world.metric(&[family, value, "destination_service_name=\"echo\"", "request_protocol=\"tcp\""]).await;
    }
    world.metric(&["istio_tcp_connections_opened_total{", "} 1"]).await;
    world.metric(&["istio_tcp_connections_closed_total{", "} 1"]).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_on_declared_and_undeclared_ports() {
    let addr = tcp(|mut s| async move {
        s.write_all(b"220 ready\r\n").await.unwrap();
        echo(s).await;
    })
    .await;
    for (protocol, least, most) in [(Protocol::Tcp, 0, 150), (Protocol::Unspecified, 150, 1500)] {
        let world = start(vec![
            Resource::Service(service("mail", VIP, 9000, protocol)),
            endpoints("mail", 9000, &[(addr, "v1")]),
        ]);
        let begin = Instant::now();
        let mut stream = world.dial(TO).await;
        let mut line = [0; 11];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"220 ready\r\n");
        let waited = begin.elapsed();
        assert!(waited >= Duration::from_millis(least), "{protocol:?}: {waited:?}");
        assert!(waited < Duration::from_millis(most), "{protocol:?}: {waited:?}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_known_protocol_pass_unchanged() {
    let addr = tcp(echo).await;
    let world = start(vec![
        Resource::Service(service("odd", VIP, 9000, Protocol::Unspecified)),
        endpoints("odd", 9000, &[(addr, "v1")]),
    ]);
    let mut stream = world.dial(TO).await;
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    let (mut r, mut w) = stream.split();
    let mut got = vec![0; sent.len()];
    let (a, b) = tokio::join!(w.write_all(&sent), r.read_exact(&mut got));
    a.unwrap();
    b.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn tls_is_routed_by_its_name_and_stays_closed() {
    let (one, two) = (tcp(|s| tagged(s, b"1")).await, tcp(|s| tagged(s, b"2")).await);
    let rule = |sni: &str, to: &str| model::TlsRule {
        matches: vec![model::TlsMatch { sni_hosts: vec![sni.into()], ..Default::default() }],
        destinations: vec![model::WeightedDestination {
            destination: Some(model::Destination { host: to.into(), ..Default::default() }),
            weight: 1,
            headers: None,
        }],
        ..Default::default()
    };
    let mut secure = service("secure", VIP, 9000, Protocol::Tls);
    secure.virtual_hosts = vec![model::VirtualHost {
        source: "default/secure".into(),
        tls: vec![
            rule("one.example", "one.default.svc.cluster.local"),
            rule("*.two.example", "two.default.svc.cluster.local"),
        ],
        ..Default::default()
    }];
    let world = start(vec![
        Resource::Service(secure),
        Resource::Service(service("one", "10.96.0.2", 9000, Protocol::Tls)),
        Resource::Service(service("two", "10.96.0.3", 9000, Protocol::Tls)),
        endpoints("one", 9000, &[(one, "v1")]),
        endpoints("two", 9000, &[(two, "v1")]),
    ]);
    for (sni, tag) in [("one.example", b"1"), ("a.two.example", b"2")] {
        let hello = client_hello(sni);
        let mut stream = world.dial(TO).await;
        // In two pieces: the name may come late.
        stream.write_all(&hello[..20]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(&hello[20..]).await.unwrap();
        let mut got = vec![0; 1 + hello.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got[..1], tag, "{sni}");
        assert_eq!(&got[1..], &hello[..], "{sni}: the hello reaches the endpoint as it was");
    }
}

async fn tagged(mut s: TcpStream, tag: &'static [u8]) {
    s.write_all(tag).await.unwrap();
    echo(s).await;
}

fn client_hello(sni: &str) -> Vec<u8> {
    let name = sni.as_bytes();
    let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
    let list = [&(entry.len() as u16).to_be_bytes()[..], &entry].concat();
    let extension = [&[0, 0][..], &(list.len() as u16).to_be_bytes(), &list].concat();
    let extensions = [&(extension.len() as u16).to_be_bytes()[..], &extension].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0], &extensions].concat();
    let length = (body.len() as u32).to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[22, 3, 1][..], &(handshake.len() as u16).to_be_bytes(), &handshake].concat()
}

#[tokio::test]
async fn an_endpoint_called_by_its_own_address_is_the_one_that_answers() {
    let (one, two) = (tcp(|s| tagged(s, b"1")).await, tcp(|s| tagged(s, b"2")).await);
    let mut headless = service("db", VIP, 9000, Protocol::Tcp);
    headless.kind = model::service::Kind::Headless.into();
    headless.vips.clear();
    // Two pods of a StatefulSet, at their own addresses and ports.
    let world = World::start(
        vec![Resource::Service(headless), endpoints("db", 9000, &[(one, "v1"), (two, "v1")])],
        Options { called: vec![one, two], ..Options::default() },
    );
    for _ in 0..5 {
        for (addr, tag) in [(one, b"1"), (two, b"2")] {
            let mut stream = world.dial(&addr.to_string()).await;
            let mut got = [0];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, tag);
        }
    }
}

#[tokio::test]
async fn a_connection_to_nowhere_is_closed() {
    let world = start(vec![Resource::Service(service("echo", VIP, 9000, Protocol::Tcp))]);
    let mut stream = world.dial(TO).await;
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    world.metric(&["istio_tcp_connections_closed_total{", "response_flags=\"UH\"", "} 1"]).await;
}

#[tokio::test]
async fn many_connections_live_side_by_side() {
    let addr = tcp(echo).await;
    let world = Arc::new(start(vec![
        Resource::Service(service("echo", VIP, 9000, Protocol::Tcp)),
        endpoints("echo", 9000, &[(addr, "v1")]),
    ]));
    let mut open = Vec::new();
    for i in 0..200_u32 {
        let mut stream = world.dial(TO).await;
        stream.write_all(&i.to_be_bytes()).await.unwrap();
        open.push(stream);
    }
    for (i, stream) in open.iter_mut().enumerate() {
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(u32::from_be_bytes(got) as usize, i);
    }
}
