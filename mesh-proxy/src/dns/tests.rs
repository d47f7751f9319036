use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::net::xfer::Protocol;
use prometheus::Registry;

use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh_api::{Resource, model};
use mesh_core::Change;
use node_rt::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::Config;

/// An upstream server that answers A queries, or fails as it is told.
struct Upstream {
    address: SocketAddr,
    queries: Arc<AtomicUsize>,
    /// 0 = answers, 1 = silent, 2 = SERVFAIL.
    mode: Arc<AtomicUsize>,
}

impl Upstream {
    async fn start(tasks: &Tasks) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let (queries, mode) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, how) = (Arc::clone(&queries), Arc::clone(&mode));
        tasks.spawn("upstream udp", async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = upstream_answer(&buffer[..length], how.load(Ordering::SeqCst), 512) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let how = Arc::clone(&mode);
        tasks.spawn("upstream tcp", async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let how = how.load(Ordering::SeqCst);
                let Ok(length) = stream.read_u16().await else { continue };
                let mut query = vec![0; usize::from(length)];
                let Ok(_) = stream.read_exact(&mut query).await else { continue };
                if let Some(answer) = upstream_answer(&query, how, usize::from(u16::MAX)) {
                    let _gone = stream.write_u16(answer.len() as u16).await;
                    let _gone = stream.write_all(&answer).await;
                }
            }
        });
        Self { address, queries, mode }
    }
}

/// `big.example.` has 100 addresses, `nx.` does not exist, `short.` lives a second.
fn upstream_answer(query: &[u8], mode: usize, most: usize) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries[0].clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    let name = question.name().clone();
    let text = name.to_ascii();
    let count = if text.starts_with("big.") { 100 } else { 1 };
    let ttl = if text.starts_with("short.") { 1 } else { 300 };
    match mode {
        1 => return None,
        2 => answer.metadata.response_code = ResponseCode::ServFail,
        // An alias, as content networks have them.
        _ if text.to_ascii_lowercase().starts_with("alias.") && question.query_type() == RecordType::A => {
            let target = Name::from_ascii("edge.example.net.").unwrap();
            answer.add_answer(Record::from_rdata(name.clone(), ttl, RData::CNAME(CNAME(target.clone()))));
            answer.add_answer(Record::from_rdata(
                target,
                60,
                RData::A(std::net::Ipv4Addr::new(192, 0, 2, 9).into()),
            ));
        }
        _ if text.starts_with("nx.") => answer.metadata.response_code = ResponseCode::NXDomain,
        _ if question.query_type() == RecordType::A => {
            for n in 0..count {
                answer.add_answer(Record::from_rdata(
                    name.clone(),
                    ttl,
                    RData::A(std::net::Ipv4Addr::new(192, 0, 2, n).into()),
                ));
            }
        }
        _ => {}
    }
    let mut bytes = answer.to_vec().unwrap();
    if bytes.len() > most {
        let mut cut = answer.truncate();
        cut.metadata.truncation = true;
        bytes = cut.to_vec().unwrap();
    }
    Some(bytes)
}

struct World {
    shared: Arc<Shared>,
    dns: SocketAddr,
    tasks: Tasks,
    upstream: Upstream,
}

fn quick() -> DnsOptions {
    let mut options = DnsOptions::new("127.0.0.1:0".parse().unwrap(), vec![]);
    options.forward.attempt = Duration::from_millis(300);
    options.forward.total = Duration::from_millis(1000);
    options.forward.patience = Duration::from_millis(300);
    options
}

impl World {
    async fn start() -> Self {
        Self::with(quick()).await
    }

    async fn with(mut options: DnsOptions) -> Self {
        let tasks = Tasks::new(Drain::new());
        let upstream = Upstream::start(&tasks).await;
        options.upstreams = vec![upstream.address];
        let config = Config { node: "edge-a".into(), ..Config::default() };
        let shared = Shared::new(Arc::new(config), Registry::new());
        let applied = shared.apply(mesh());
        assert_eq!(applied.rejected.len(), 0);
        let dns = start(&shared, options, &tasks).unwrap();
        Self { shared, dns, tasks, upstream }
    }

    async fn udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(query, self.dns).await.unwrap();
        let mut buffer = vec![0; 65536];
        let got = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.ok()?.unwrap();
        buffer.truncate(got);
        Some(buffer)
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        Message::from_vec(&self.udp(&query(name, kind, Some(4096))).await.expect("an answer")).unwrap()
    }

    async fn ask_tcp(&self, name: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.dns).await.unwrap();
        let query = query(name, kind, None);
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.shared.metrics.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let fits = |metric: &&prometheus::proto::Metric| {
            label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label)
        };
        let metric = family.get_metric().iter().find(fits).unwrap();
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn data(message: &Message) -> BTreeSet<String> {
    message.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect()
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn mesh() -> Vec<Change> {
    let service = |name: &str, kind: model::service::Kind| model::Service {
        host: format!("{name}.default.svc.cluster.local"),
        namespace: "default".into(),
        name: name.into(),
        kind: kind as i32,
        ports: vec![model::Port {
            number: 9080,
            name: "http".into(),
            protocol: model::Protocol::Http as i32,
        }],
        ..Default::default()
    };
    let mut reviews = service("reviews", model::service::Kind::ClusterIp);
    reviews.vips = vec!["10.96.0.10".into(), "fd00::10".into()];
    let db = service("db", model::service::Kind::Headless);
    let alias = |name: &str, to: &str| {
        let mut alias = service(name, model::service::Kind::ExternalName);
        alias.external_name = to.into();
        Change::Set(Resource::Service(alias))
    };
    let pods = (0..60).map(|n| model::Endpoint {
        address: format!("10.1.0.{n}"),
        ports: vec![model::PortMap { service_port: 9080, target_port: 9080 }],
        node: "edge-a".into(),
        ready: true,
        ..Default::default()
    });
    let endpoints = model::Endpoints { host: db.host.clone(), endpoints: pods.collect() };
    vec![
        Change::Set(Resource::Service(reviews)),
        Change::Set(Resource::Service(db)),
        Change::Set(Resource::Endpoints(endpoints)),
        alias("out", "www.example.com"),
        alias("in", "reviews.default.svc.cluster.local"),
        alias("loop-a", "loop-b.default.svc.cluster.local"),
        alias("loop-b", "loop-a.default.svc.cluster.local"),
    ]
}

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
async fn other_names_are_forwarded_once_and_kept() {
    let world = World::start().await;
    let first = world.ask("www.example.com.", RecordType::A).await;
    assert_eq!(data(&first), set(&["www.example.com. 192.0.2.0"]));
    for _ in 0..5 {
        assert_eq!(data(&world.ask("www.example.com.", RecordType::A).await), data(&first));
    }
    assert_eq!(world.upstream.queries.load(Ordering::SeqCst), 1);
    assert_eq!(world.metric("selvage_dns_cache_hits_total", ""), 5.0);
    // Negative answers are kept too.
    for _ in 0..3 {
        let nx = world.ask("nx.example.com.", RecordType::A).await;
        assert_eq!(nx.metadata.response_code, ResponseCode::NXDomain);
        let none = world.ask("www.example.com.", RecordType::TXT).await;
        assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    }
    assert_eq!(world.upstream.queries.load(Ordering::SeqCst), 3);
    let alias = world.ask("Alias.example.com.", RecordType::A).await;
    assert_eq!(data(&alias), set(&["Alias.example.com. edge.example.net.", "edge.example.net. 192.0.2.9"]));
    // Truncated over UDP, so it is asked for again over TCP.
    assert_eq!(world.ask_tcp("big.example.com.", RecordType::A).await.answers.len(), 100);
}

#[tokio::test]
async fn the_same_question_at_the_same_time_is_asked_once() {
    let world = World::start().await;
    let asks = (0..50).map(|_| world.ask("burst.example.com.", RecordType::A));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.answers.len(), 1);
    }
    assert_eq!(world.upstream.queries.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn old_answers_are_served_while_the_upstream_is_gone() {
    let world = World::start().await;
    world.ask("short.example.com.", RecordType::A).await;
    for mode in [1, 2] {
        world.upstream.mode.store(mode, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let start = Instant::now();
        let stale = world.ask("short.example.com.", RecordType::A).await;
        assert_eq!(data(&stale), set(&["short.example.com. 192.0.2.0"]));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
    assert_eq!(world.metric("selvage_dns_queries_total", "stale"), 2.0);
    let never_seen = world.ask("new.example.com.", RecordType::A).await;
    assert_eq!(never_seen.metadata.response_code, ResponseCode::ServFail);
    // The mesh does not notice.
    assert_eq!(world.ask("reviews.default.svc.cluster.local.", RecordType::A).await.answers.len(), 1);
    world.upstream.mode.store(0, Ordering::SeqCst);
    assert_eq!(world.ask("new.example.com.", RecordType::A).await.answers.len(), 1);
}

#[tokio::test]
async fn a_slow_upstream_takes_no_place_from_names_of_the_mesh() {
    let mut options = quick();
    options.forward.in_flight = 3;
    options.forward.waiting = 5;
    let world = World::with(options).await;
    world.upstream.mode.store(1, Ordering::SeqCst);
    let lost = futures::future::join_all((0..20).map(|n| {
        let world = &world;
        async move { world.ask(&format!("n{n}.example.com."), RecordType::A).await.metadata.response_code }
    }));
    let mesh = async {
        for _ in 0..50 {
            assert_eq!(world.ask("reviews.default.svc.cluster.local.", RecordType::A).await.answers.len(), 1);
        }
    };
    let (lost, ()) = tokio::join!(lost, mesh);
    assert!(lost.iter().all(|code| *code == ResponseCode::ServFail));
}

#[tokio::test]
async fn our_names_with_a_search_domain_behind_do_not_leave_the_node() {
    let world = World::start().await;
    for name in ["reviews.default.svc.cluster.local.example.com.", "x.Svc.cluster.LOCAL.corp."] {
        let answer = world.ask(name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(world.upstream.queries.load(Ordering::SeqCst), 0);
    assert_eq!(world.ask("svc.cluster.example.com.", RecordType::A).await.answers.len(), 1);
}

#[tokio::test]
async fn while_the_upstream_is_gone_foreign_names_fail_fast() {
    let world = World::start().await;
    world.upstream.mode.store(1, Ordering::SeqCst);
    for n in 0..3 {
        let lost = world.ask(&format!("n{n}.example.com."), RecordType::A).await;
        assert_eq!(lost.metadata.response_code, ResponseCode::ServFail);
    }
    // Only one in a second tries, and takes up to a second here.
    let start = Instant::now();
    for n in 0..100 {
        world.ask(&format!("m{n}.example.com."), RecordType::A).await;
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    world.upstream.mode.store(0, Ordering::SeqCst);
    let start = Instant::now();
    while world.ask("back.example.com.", RecordType::A).await.answers.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "the upstream is back, but not asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn mutated_queries_of_all_kinds_never_panic() {
    let world = World::start().await;
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
    let (start, mut state, mut answered) = (Instant::now(), 0x5e1f_a9e5_u64, 0);
    let mut next = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    let mut rounds = 0;
    while rounds < 100_000 && start.elapsed() < Duration::from_secs(10) {
        rounds += 1;
        let mut bytes = seeds[next(seeds.len())].clone();
        for _ in 0..=next(5) {
            let at = next(bytes.len());
            match next(5) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << next(8),
                // Compression pointers, long labels, ends.
                1 if !bytes.is_empty() => bytes[at] = [0xc0, 0x3f, 0x40, 0, 0xff][next(5)],
                2 => bytes.truncate(at),
                3 => bytes.insert(at, next(256) as u8),
                _ => {
                    let again = bytes[at..].to_vec();
                    bytes.extend_from_slice(&again[..again.len().min(32)]);
                }
            }
        }
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            if let Some(answer) = wire::answer(&handler, bytes.clone(), from, protocol).await {
                assert_eq!(answer[..2], bytes[..2], "the id comes back");
                assert!(protocol == Protocol::Tcp || answer.len() <= 1232, "{} bytes", answer.len());
                answered += 1;
            }
        }
    }
    println!("{rounds} queries, {answered} answers in {:?}", start.elapsed());
    assert!(rounds > 500 && answered > rounds / 4);
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

#[tokio::test]
async fn resolv_conf_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "search example.com\n").unwrap();
    let tasks = Tasks::new(Drain::new());
    let metrics = DnsMetrics::register(&Registry::new()).unwrap();
    let every = Duration::from_millis(20);
    let options = DnsOptions { resolv_conf: path.clone(), resolv_conf_every: every, ..quick() };
    let forwarder = Forwarder::new(&options, metrics, tasks.clone());
    forwarder.watch_resolv_conf(&options, &tasks);
    // With no servers at all there is an answer at once, not a silence.
    let key = (Name::from_ascii("example.com.").unwrap().into(), RecordType::A);
    assert!(forwarder.lookup(&key).await.is_err());
    let becomes = async |expected: &[&str]| {
        let expected: Vec<SocketAddr> = expected.iter().map(|server| server.parse().unwrap()).collect();
        let start = Instant::now();
        while forwarder.servers() != expected {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", forwarder.servers());
            tokio::time::sleep(every).await;
        }
    };
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    becomes(&["192.0.2.1:53"]).await;
    // Empty and gone for a moment while it is replaced: the servers stay.
    std::fs::write(&path, "").unwrap();
    tokio::time::sleep(every * 5).await;
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(every * 5).await;
    becomes(&["192.0.2.1:53"]).await;
    std::fs::write(&path, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n").unwrap();
    becomes(&["192.0.2.2:53", "192.0.2.3:53"]).await;
}
