//! Names of the mesh.

use super::*;

#[tokio::test]
async fn an_address_is_given_out_only_when_it_is_captured() {
    let world = World::start().await;
    world.shared.set_captured(Some(0));
    assert!(world.shared.vips() > 0, "the rules are behind");
    let mut asked = Box::pin(world.ask("reviews.default.svc.cluster.local.", RecordType::A));
    // The wait of the answer is a second; this is well below it.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut asked).await.is_err());
    world.shared.set_captured(Some(world.shared.vips()));
    assert_eq!(data(&asked.await).len(), 1);
}

#[tokio::test]
async fn names_of_the_mesh_over_udp_and_tcp() {
    let world = World::start().await;
    let name = "Reviews.default.svc.cluster.local.";
    let answer = world.ask(name, RecordType::A).await;
    // The name comes back as it was written.
    assert_eq!(data(&answer), set(&["Reviews.default.svc.cluster.local. 10.96.0.10"]));
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(data(&world.ask_tcp(name, RecordType::AAAA).await).len(), 1);
    // A type that is not there is no error, so that resolvers go on to use the other.
    let mx = world.ask(name, RecordType::MX).await;
    assert_eq!(
        (mx.metadata.response_code, mx.answers.len(), mx.authorities.len()),
        (ResponseCode::NoError, 0, 1)
    );
    let unknown = world.ask("nothing.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!((unknown.metadata.response_code, unknown.authorities.len()), (ResponseCode::NXDomain, 1));
    let srv = world.ask("_http._tcp.reviews.default.svc.cluster.local.", RecordType::SRV).await;
    assert!(
        data(&srv).iter().any(|line| line.contains("9080 reviews.default.svc.cluster.local.")),
        "{srv:?}"
    );
    assert_eq!(srv.additionals.len(), 2);
    let ptr = world.ask("10.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(data(&ptr), set(&["10.0.96.10.in-addr.arpa. reviews.default.svc.cluster.local."]));
    assert_eq!(world.upstream.queries.load(Ordering::SeqCst), 0);
    assert_eq!(world.metric("selvage_dns_queries_total", "mesh_nxdomain"), 1.0);
}

#[tokio::test]
async fn large_answers_are_cut_for_udp_and_whole_over_tcp() {
    let world = World::start().await;
    let name = "db.default.svc.cluster.local.";
    let plain = Message::from_vec(&world.udp(&query(name, RecordType::A, None)).await.unwrap()).unwrap();
    assert!(plain.metadata.truncation && !plain.answers.is_empty());
    let edns = world.udp(&query(name, RecordType::A, Some(4096))).await.unwrap();
    assert!(edns.len() > 512 && edns.len() <= 1232, "{} bytes", edns.len());
    let edns = Message::from_vec(&edns).unwrap();
    assert!(edns.edns.is_some());
    let whole = world.ask_tcp(name, RecordType::A).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
    // The first address changes from answer to answer.
    let mut first = BTreeSet::new();
    for _ in 0..10 {
        first.insert(world.ask_tcp(name, RecordType::A).await.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 10);
}

#[tokio::test]
async fn aliases_are_followed_inside_and_outside_and_loops_end() {
    let world = World::start().await;
    let inside = world.ask("in.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(
        data(&inside),
        set(&[
            "in.default.svc.cluster.local. reviews.default.svc.cluster.local.",
            "reviews.default.svc.cluster.local. 10.96.0.10"
        ])
    );
    let outside = world.ask("out.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(
        data(&outside),
        set(&["out.default.svc.cluster.local. www.example.com.", "www.example.com. 192.0.2.0"])
    );
    let only = world.ask("out.default.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!(data(&only), set(&["out.default.svc.cluster.local. www.example.com."]));
    let endless = world.ask("loop-a.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(endless.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn before_the_first_configuration_no_name_is_denied() {
    let tasks = Tasks::new(Drain::new());
    let shared = Shared::new(Arc::new(Config::default()), Registry::new());
    let address = start(&shared, quick(), &tasks).unwrap();
    let ask = async || {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .send_to(&query("reviews.default.svc.cluster.local.", RecordType::A, None), address)
            .await
            .unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    };
    assert_eq!(ask().await.metadata.response_code, ResponseCode::ServFail);
    shared.apply(mesh());
    assert_eq!(ask().await.answers.len(), 1);
}
