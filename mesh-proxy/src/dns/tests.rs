//! A server and its upstream in one process; the tests are in the modules below, by subject.

mod abuse;
mod forward;
mod names;

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
