//! What is no proper question.

use super::*;

#[test]
fn fuzz_queries() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let world = runtime.block_on(World::start());
    let metrics = DnsMetrics::register(&Registry::new()).unwrap();
    let mut options = quick();
    options.upstreams = vec![world.upstream.address];
    // Nothing is sent: what would be forwarded fails at once.
    options.forward.in_flight = 0;
    let forwarder = Forwarder::new(&options, metrics.clone(), world.tasks.clone());
    let handler = Handler::new(Responder::new(Arc::clone(&world.shared), forwarder), metrics);
    let seeds: Vec<Vec<u8>> = [
        query("reviews.default.svc.cluster.local.", RecordType::A, Some(1232)),
        query("_http._tcp.reviews.default.svc.cluster.local.", RecordType::SRV, None),
        query("10.0.96.10.in-addr.arpa.", RecordType::PTR, None),
        query("db.default.svc.cluster.local.", RecordType::AAAA, Some(65535)),
        query("loop-a.default.svc.cluster.local.", RecordType::CNAME, None),
    ]
    .into();
    let from = "192.0.2.1:5353".parse().unwrap();
    let mut answered = 0;
    mesh_testkit::fuzz::run("dns_query", &seeds, |bytes| {
        [Protocol::Udp, Protocol::Tcp].map(|protocol| {
            let answer = runtime.block_on(wire::answer(&handler, bytes.to_vec(), from, protocol))?;
            assert_eq!(answer[..2], bytes[..2], "the id comes back");
            assert!(protocol == Protocol::Tcp || answer.len() <= 1232, "{} bytes", answer.len());
            answered += 1;
            // Flags and counts: how it was answered, not with what.
            Some(answer[2..answer.len().min(12)].to_vec())
        })
    });
    assert!(answered > 100, "{answered} answers");
}

#[tokio::test]
async fn what_is_no_proper_query_is_refused_and_hurts_nobody() {
    let world = World::start().await;
    let name = "reviews.default.svc.cluster.local.";
    let good = query(name, RecordType::A, Some(1232));
    let code = |bytes: Option<Vec<u8>>| Message::from_vec(&bytes.unwrap()).unwrap().metadata.response_code;

    let mut two = Message::new(1, MessageType::Query, OpCode::Query);
    for _ in 0..2 {
        two.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    }
    assert_eq!(code(world.udp(&two.to_vec().unwrap()).await), ResponseCode::FormErr);
    let none = Message::new(1, MessageType::Query, OpCode::Query);
    assert_eq!(code(world.udp(&none.to_vec().unwrap()).await), ResponseCode::FormErr);
    let update = Message::new(1, MessageType::Query, OpCode::Update);
    assert_eq!(code(world.udp(&update.to_vec().unwrap()).await), ResponseCode::NotImp);
    let mut chaos = Message::new(1, MessageType::Query, OpCode::Query);
    let mut question = Query::query(Name::from_ascii("version.bind.").unwrap(), RecordType::TXT);
    question.set_query_class(DNSClass::CH);
    chaos.add_query(question);
    assert_eq!(code(world.udp(&chaos.to_vec().unwrap()).await), ResponseCode::Refused);
    assert_eq!(code(world.udp(&query("example.com.", RecordType::ANY, None)).await), ResponseCode::NotImp);
    assert_eq!(code(world.udp(&good[..good.len() - 13]).await), ResponseCode::FormErr);

    // Garbage of all kinds, from a fixed seed, then an answer as before.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 0x5e1f_u64;
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 17) as u8;
        }
        bytes.truncate((state >> 40) as usize % (bytes.len() + 1));
        let _full = socket.try_send_to(&bytes, world.dns);
        if round % 50 == 0 {
            // Lets the server catch up, and shows that it still answers.
            assert_eq!(world.ask(name, RecordType::A).await.answers.len(), 1);
        }
    }
    assert_eq!(world.ask(name, RecordType::A).await.answers.len(), 1);
    assert!(world.metric("selvage_dns_queries_total", "malformed") > 100.0);
    assert_eq!(world.tasks.stats().panicked, 0);
}

#[tokio::test]
async fn answers_are_not_answered() {
    let world = World::start().await;
    let mut reflected = Message::from_vec(&query("example.com.", RecordType::A, None)).unwrap();
    reflected.metadata.message_type = MessageType::Response;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&reflected.to_vec().unwrap(), world.dns).await.unwrap();
    socket
        .send_to(&query("reviews.default.svc.cluster.local.", RecordType::A, None), world.dns)
        .await
        .unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    // The only answer is the one to the real query.
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, 4711);
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);
    assert_eq!(world.metric("selvage_dns_queries_total", "malformed"), 1.0);
}

#[tokio::test]
async fn silent_tcp_connections_do_not_keep_others_out_for_ever_and_garbage_ends_its_own() {
    let world = World::start().await;
    let mut garbage = TcpStream::connect(world.dns).await.unwrap();
    garbage.write_all(&[0xff; 4096]).await.unwrap();
    let mut rest = Vec::new();
    let _reset = garbage.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    // Two queries on one connection.
    let mut stream = TcpStream::connect(world.dns).await.unwrap();
    for _ in 0..2 {
        let query = query("reviews.default.svc.cluster.local.", RecordType::A, None);
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
}
