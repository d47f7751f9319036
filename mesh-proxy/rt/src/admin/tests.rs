use std::io::Read as _;

use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{Drain, ReadyGuard, Reason};

struct Served {
    address: std::net::SocketAddr,
    tasks: Tasks,
    guard: Option<ReadyGuard>,
}

async fn serve(limits: AdminLimits) -> Served {
    let tasks = Tasks::new(Drain::new());
    let readiness = Readiness::new();
    let guard = Some(readiness.wait_for("store"));
    let registry = Registry::new();
    let counter = IntCounter::new("test_total", "Help text.").unwrap();
    counter.inc_by(7);
    registry.register(Box::new(counter)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    AdminServer::new()
        .health(readiness)
        .metrics(registry)
        .limits(limits)
        .route("POST", "/echo", |request| async move { text_response(StatusCode::OK, request.into_body()) })
        .route("GET", "/tables/*", |request| async move {
            json_response(StatusCode::OK, &serde_json::json!({"path": request.uri().path()}))
        })
        .route("GET", "/boom", |_| async { panic!("page is broken") })
        .serve("admin", listener, &tasks);
    Served { address, tasks, guard }
}

impl Served {
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn health_metrics_and_pages() {
    let mut served = serve(AdminLimits::default()).await;
    let waiting = served.get("/healthz/ready").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("not ready: store\n"), "{waiting}");
    drop(served.guard.take());
    assert!(served.get("/healthz/ready").await.starts_with("HTTP/1.1 200"));
    assert!(served.get("/healthz/live").await.starts_with("HTTP/1.1 200"));
    for path in ["/metrics", "/stats/prometheus"] {
        let metrics = served.get(path).await;
        assert!(
            metrics.contains("# HELP test_total Help text.\n") && metrics.contains("\ntest_total 7\n"),
            "{metrics}"
        );
    }
    assert!(served.get("/tables/x/y").await.contains("\"path\": \"/tables/x/y\""));
    assert!(served.get("/nothing").await.starts_with("HTTP/1.1 404"));
    let wrong = served.get("/echo").await;
    assert!(wrong.starts_with("HTTP/1.1 405") && wrong.contains("allow: POST"), "{wrong}");
    let head = served.send("HEAD /healthz/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_large_body_is_refused_and_a_broken_page_hurts_nobody() {
    let served = serve(AdminLimits { body: 10, ..AdminLimits::default() }).await;
    let post = |body: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert!(served.send(&post("0123456789")).await.ends_with("\r\n\r\n0123456789"));
    assert!(served.send(&post("0123456789A")).await.starts_with("HTTP/1.1 413"));
    assert_eq!(served.get("/boom").await, "");
    assert!(served.get("/healthz/live").await.starts_with("HTTP/1.1 200"));
    assert_eq!(served.tasks.stats().panicked, 1);
    assert!(!served.tasks.drain().has_begun());
}

#[tokio::test]
async fn a_silent_client_is_dropped_and_its_slot_is_free_again() {
    let limits =
        AdminLimits { connections: 1, header_wait: Duration::from_millis(50), ..AdminLimits::default() };
    let served = serve(limits).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    silent.write_all(b"GET / HT").await.unwrap();
    // The only slot is taken; this waits until the server gives up on the silent client.
    assert!(served.get("/healthz/live").await.starts_with("HTTP/1.1 200"));
    let mut rest = Vec::new();
    let _reset = silent.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn health_answers_during_the_drain_and_stops_at_its_end() {
    let served = serve(AdminLimits::default()).await;
    let drain = served.tasks.drain().clone();
    let guard = drain.guard();
    drain.begin(Reason::Signal("SIGTERM"));
    let (tasks, readiness) = (served.tasks.clone(), Readiness::new());
    let run = drain.run(crate::DrainConfig::default(), &readiness, &tasks);
    let check = async {
        drain.stop_accepting().await;
        assert!(served.get("/healthz/live").await.starts_with("HTTP/1.1 200"));
        drop(guard);
    };
    let (report, ()) = tokio::join!(run, check);
    assert_eq!((report.cut_off, report.stuck.len()), (0, 0));
    assert!(TcpStream::connect(served.address).await.is_err());
}

/// Numbered lines, a thousand at a time.
struct Lines(usize);

impl Exposed for Lines {
    fn expose(&self, (_, from): crate::Place, out: &mut Vec<u8>) -> Option<crate::Place> {
        let to = self.0.min(from + 1000);
        (from..to).for_each(|i| out.extend_from_slice(format!("line_total{{n=\"{i}\"}} {i}\n").as_bytes()));
        (to < self.0).then_some((0, to))
    }
}

#[tokio::test]
async fn a_large_scrape_comes_in_parts_and_a_small_one_at_once() {
    for (lines, whole) in [(0, true), (10, true), (100_000, false)] {
        let tasks = Tasks::new(Drain::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large: Arc<dyn Exposed> = Arc::new(Lines(lines));
        AdminServer::new().metrics_and(Registry::new(), Some(large)).serve("admin", listener, &tasks);
        let served = Served { address, tasks, guard: None };
        let answer = served.get("/metrics").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.contains("content-length"), whole, "{head}");
        let found = body.lines().filter(|l| l.starts_with("line_total{")).count();
        // A line that a chunk's length stands in is not found.
        assert!(found <= lines && found + lines / 1000 >= lines, "{found} of {lines}");
        served.tasks.drain().begin(Reason::Requested("test"));
    }
}

/// A page that has no end; counts the scrapes that are cut off.
#[derive(Default)]
struct Endless(std::sync::atomic::AtomicUsize);

impl Exposed for Endless {
    fn expose(&self, (_, from): crate::Place, out: &mut Vec<u8>) -> Option<crate::Place> {
        Lines(usize::MAX).expose((0, from), out)
    }

    fn cut_off(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Serves `/metrics` of a page without end; clients get this long for each part.
async fn serve_endless(patience: Duration) -> (Served, Arc<Endless>) {
    let tasks = Tasks::new(Drain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endless = Arc::<Endless>::default();
    let large: Arc<dyn Exposed> = endless.clone();
    AdminServer::new()
        .metrics_and(Registry::new(), Some(large))
        .limits(AdminLimits { patience, ..AdminLimits::default() })
        .serve("admin", listener, &tasks);
    (Served { address, tasks, guard: None }, endless)
}

#[tokio::test]
async fn what_a_slow_scraper_gets_does_not_look_whole() {
    // Whether the answer has chunks, or just ends with its connection.
    for version in ["1.1", "1.0"] {
        let (served, endless) = serve_endless(Duration::from_millis(300)).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let mut stream = socket.connect(served.address).await.unwrap();
        stream.write_all(format!("GET /metrics HTTP/{version}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        // It reads a little, and then nothing until it was given up.
        let mut text = vec![0; 100_000];
        stream.read_exact(&mut text).await.unwrap();
        assert!(text.starts_with(format!("HTTP/{version} 200").as_bytes()));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while endless.0.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            assert!(tokio::time::Instant::now() < deadline, "it is waited for without end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut text)).await;
        let error = end.expect("the connection ends").expect_err("it looks whole");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(endless.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        served.tasks.drain().begin(Reason::Requested("test"));
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_page_holds_its_slot_for_a_while_only() {
    let tasks = Tasks::new(Drain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits =
        AdminLimits { connections: 1, patience: Duration::from_millis(100), ..AdminLimits::default() };
    AdminServer::new()
        .limits(limits)
        .route("GET", "/large", |_| async { text_response(StatusCode::OK, vec![b'x'; 64 << 20]) })
        .route("GET", "/small", |_| async { text_response(StatusCode::OK, "small\n") })
        .serve("admin", listener, &tasks);
    let served = Served { address, tasks, guard: None };
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let small = tokio::time::timeout(Duration::from_secs(60), served.get("/small")).await;
    assert!(small.expect("the only slot is free again").ends_with("small\n"));
    let mut rest = Vec::new();
    assert!(stuck.read_to_end(&mut rest).await.is_err(), "{} bytes look whole", rest.len());
}

#[tokio::test]
async fn a_scrape_is_compressed_for_who_takes_gzip() {
    for lines in [10, 100_000] {
        let tasks = Tasks::new(Drain::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large: Arc<dyn Exposed> = Arc::new(Lines(lines));
        AdminServer::new().metrics_and(Registry::new(), Some(large)).serve("admin", listener, &tasks);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /metrics HTTP/1.0\r\nAccept-Encoding: br, gzip;q=0.5\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        assert!(head.contains("content-encoding: gzip") && head.contains("vary: accept-encoding"), "{head}");
        let mut text = String::new();
        flate2::read::GzDecoder::new(&answer[end..]).read_to_string(&mut text).unwrap();
        let want: String = (0..lines).map(|i| format!("line_total{{n=\"{i}\"}} {i}\n")).collect();
        assert_eq!(text.len(), want.len());
        assert!(text == want, "{lines} lines come as they were written");
        assert!(answer.len() < want.len() / 2 || lines == 10, "{} of {}", answer.len(), want.len());
        tasks.drain().begin(Reason::Requested("test"));
    }
}

#[test]
fn gzip_is_for_who_asks() {
    let takes = |line: Option<&str>| {
        let mut headers = http::HeaderMap::new();
        if let Some(line) = line {
            headers.insert(http::header::ACCEPT_ENCODING, line.parse().unwrap());
        }
        scrape::takes_gzip(&headers)
    };
    assert!(takes(Some("gzip")) && takes(Some("br;q=1, GZIP ; q=0.2")));
    assert!(
        !takes(None)
            && !takes(Some("identity"))
            && !takes(Some("gzip;q=0"))
            && !takes(Some("gzip; q=0.0, br"))
    );
}
