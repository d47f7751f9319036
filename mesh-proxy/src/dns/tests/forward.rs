//! Names of others: forwarding, the cache, upstream servers that fail.

use super::*;

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
