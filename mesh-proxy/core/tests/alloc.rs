//! A route match and a pick allocate nothing, and a match on a host with a thousand routes looks at few of them.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
    time::{Duration, Instant},
};

use mesh_api::{
    Resource,
    model::{self, string_match::Kind},
};
use mesh_core::{
    Change, Client, DiceKind, HttpOutcome, RequestView, Tables,
    balance::{Balancer, Pick},
};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn live(change: isize) {
    LIVE.with(|l| l.set(l.get() + change));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local without destructor.
#[allow(unsafe_code, reason = "an allocator that counts can only be made so; this is a test")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        live(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        live(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        live(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    f();
    COUNT.with(Cell::get) - before
}

struct Request {
    authority: &'static str,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
}

impl RequestView for Request {
    fn method(&self) -> &str {
        "GET"
    }
    fn authority(&self) -> &str {
        self.authority
    }
    fn path_and_query(&self) -> &str {
        &self.path
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header_values(&self, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
        self.headers.iter().filter(|(n, _)| *n == name).any(|(_, v)| f(v))
    }
}

const HOST: &str = "web.default.svc.cluster.local";

fn string(kind: Kind) -> Option<model::StringMatch> {
    Some(model::StringMatch { kind: Some(kind) })
}

fn rule(index: u32, matches: Vec<model::HttpMatch>) -> model::HttpRule {
    let to = |subset: &str, weight| model::WeightedDestination {
        destination: Some(model::Destination { host: HOST.into(), subset: subset.into(), port: 0 }),
        weight,
        headers: None,
    };
    model::HttpRule {
        index,
        matches,
        action: Some(model::http_rule::Action::Forward(model::Forward {
            destinations: vec![to("v1", 90), to("v2", 10)],
        })),
        ..Default::default()
    }
}

/// 500 exact, 500 prefix, one by header and regular expression, one for the rest.
fn mesh(endpoints: usize, lb: model::load_balancer::Simple) -> Tables {
    let mut http = Vec::new();
    for i in 0..1000u32 {
        let uri = match i % 2 {
            0 => Kind::Exact(format!("/exact/item-{i:04}/view")),
            _ => Kind::Prefix(format!("/prefix/{}/item-{i:04}/", "x".repeat(i as usize % 17))),
        };
        http.push(rule(i, vec![model::HttpMatch { uri: string(uri), ..Default::default() }]));
    }
    let by_header = model::HttpMatch {
        uri: string(Kind::Regex("/users/[0-9]+".into())),
        headers: vec![model::NamedMatch {
            name: "end-user".into(),
            r#match: string(Kind::Exact("jason".into())),
        }],
        ..Default::default()
    };
    http.push(rule(1000, vec![by_header]));
    http.push(rule(1001, vec![]));
    let subset = |name: &str| model::Subset {
        name: name.into(),
        labels: [("version".to_owned(), name.to_owned())].into(),
        policy: Some(model::TrafficPolicy {
            load_balancer: Some(model::LoadBalancer { simple: lb as i32, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let service = model::Service {
        host: HOST.into(),
        namespace: "default".into(),
        name: "web".into(),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec!["10.96.0.1".into()],
        ports: vec![model::Port { number: 80, protocol: model::Protocol::Http as i32, ..Default::default() }],
        virtual_hosts: vec![model::VirtualHost { source: "default/vs".into(), http, ..Default::default() }],
        policies: vec![model::DestinationPolicy {
            source: "default/dr".into(),
            subsets: vec![subset("v1"), subset("v2")],
            ..Default::default()
        }],
        ..Default::default()
    };
    let list = (0..endpoints).map(|i| model::Endpoint {
        address: format!("10.1.{}.{}", i / 250, i % 250 + 1),
        ports: vec![model::PortMap { service_port: 80, target_port: 8080 }],
        ready: true,
        workload: Some(model::Workload {
            labels: [("version".to_owned(), if i % 2 == 0 { "v1" } else { "v2" }.to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let endpoints = model::Endpoints { host: HOST.into(), endpoints: list.collect() };
    let changes = vec![Change::Set(Resource::Service(service)), Change::Set(Resource::Endpoints(endpoints))];
    let (tables, applied) = Tables::new().apply(changes);
    assert_eq!(applied.rejected, []);
    tables
}

fn dice() -> impl FnMut(DiceKind) -> f64 {
    let mut x: u64 = 88_172_645_463_325_252;
    move |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn requests() -> Vec<(Request, u32)> {
    let r =
        |path: &str| Request { authority: "web", path: path.into(), headers: vec![("end-user", "jason")] };
    vec![
        (r("/exact/item-0000/view"), 0),
        (r("/exact/item-0998/view?q=1"), 998),
        (r("/prefix//item-0017/and/more"), 17),
        (r(&format!("/prefix/{}/item-0999/x", "x".repeat(999 % 17))), 999),
        (r("/users/12345"), 1000),
        (r("/nothing/of/that"), 1001),
    ]
}

#[test]
fn a_match_allocates_nothing() {
    let tables = mesh(4, model::load_balancer::Simple::LeastRequest);
    let client = Client::in_namespace("default");
    let mut dice = dice();
    let mut route = |request: &Request, expected: u32| {
        let original = tables.by_vip("10.96.0.1".parse().unwrap(), 80);
        let d = tables.route_http(&client, 80, original.as_ref(), request, &mut dice);
        assert_eq!(d.rule.map(|r| r.index), Some(expected), "{}", request.path);
        assert!(matches!(d.outcome, HttpOutcome::Forward { .. }));
    };
    let requests = requests();
    // The first use of a regular expression makes its cache.
    requests.iter().for_each(|(r, i)| route(r, *i));
    let count = allocations(|| {
        for _ in 0..100 {
            requests.iter().for_each(|(r, i)| route(r, *i));
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn a_pick_allocates_nothing() {
    use model::load_balancer::Simple;
    for lb in [Simple::RoundRobin, Simple::Random, Simple::LeastRequest] {
        let tables = mesh(50, lb);
        let service = tables.service(HOST).unwrap();
        let cluster = service.cluster(&Client::in_namespace("default"), "v1", 80).unwrap();
        let mut balancer = Balancer::new();
        let mut dice = dice();
        let now = Instant::now();
        let tried = [cluster.endpoints[0].id()];
        let mut pick = || {
            let how = Pick { exclude: &tried, load: &|i| i as u32 % 3, now, hash: None, remote: false };
            assert!(balancer.pick(cluster, &how, &mut dice).is_some_and(|i| i != 0));
        };
        pick();
        assert_eq!(allocations(|| (0..1000).for_each(|_| pick())), 0, "{lb:?}");
    }
}

/// The figure for a release build is printed by `cargo test --release -p mesh-core --test alloc -- --nocapture`.
#[test]
fn a_thousand_routes_cost_no_more_than_a_few() {
    let tables = mesh(4, model::load_balancer::Simple::LeastRequest);
    let client = Client::in_namespace("default");
    let mut dice = dice();
    let requests: Vec<_> = requests().into_iter().filter(|(_, i)| *i < 1000).collect();
    let mut round = || {
        let start = Instant::now();
        for _ in 0..20 {
            for (r, _) in &requests {
                black_box(tables.route_http(&client, 80, None, black_box(r), &mut dice));
            }
        }
        start.elapsed() / (20 * requests.len() as u32)
    };
    let mut times: Vec<Duration> = (0..101).map(|_| round()).collect();
    times.sort_unstable();
    let (best, median) = (times[0], times[times.len() / 2]);
    println!("exact or prefix match on a host with 1002 routes: median {median:?}, best {best:?}");
    // Without optimisation, walking the routes in order takes over 100 µs.
    let limit = if cfg!(debug_assertions) { Duration::from_micros(60) } else { Duration::from_micros(2) };
    assert!(best < limit, "{best:?}");
}

/// A mesh of 1,000 services with two pods each, as a controller sends it.
#[test]
fn a_service_takes_little_memory() {
    let workload = |i: usize, j: usize| model::Workload {
        address: format!("10.{}.{}.{}", 1 + j, i / 250, i % 250 + 1),
        namespace: "default".into(),
        name: format!("s{i}-v{j}-5d4f8b9c7-abcde"),
        owner: format!("s{i}-v{j}"),
        labels: [
            ("app", format!("s{i}")),
            ("version", format!("v{j}")),
            ("pod-template-hash", "5d4f8b9c7".into()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into(),
        service_account: format!("s{i}"),
        ..Default::default()
    };
    let service = |i: usize| model::Service {
        host: format!("s{i}.default.svc.cluster.local"),
        namespace: "default".into(),
        name: format!("s{i}"),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec![format!("10.96.{}.{}", i / 250, i % 250 + 1)],
        ports: vec![model::Port { number: 80, name: "http".into(), protocol: model::Protocol::Http as i32 }],
        ..Default::default()
    };
    let endpoints = |i: usize| model::Endpoints {
        host: format!("s{i}.default.svc.cluster.local"),
        endpoints: (0..2)
            .map(|j| model::Endpoint {
                address: workload(i, j).address,
                ports: vec![model::PortMap { service_port: 80, target_port: 8080 }],
                node: format!("edge-{j}"),
                workload: Some(workload(i, j)),
                ready: true,
                locality: Some(model::Locality {
                    region: "eu".into(),
                    zone: "eu-1".into(),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect(),
    };
    let node = |j: usize| model::NodeWorkloads {
        node: format!("edge-{j}"),
        workloads: (0..1000).map(|i| workload(i, j)).collect(),
    };
    let before = LIVE.with(Cell::get);
    let tables = {
        let mut changes: Vec<_> = (0..2).map(|j| Change::Set(Resource::NodeWorkloads(node(j)))).collect();
        changes.extend((0..1000).map(|i| Change::Set(Resource::Service(service(i)))));
        changes.extend((0..1000).map(|i| Change::Set(Resource::Endpoints(endpoints(i)))));
        Tables::new().apply(changes).0
    };
    let bytes = (LIVE.with(Cell::get) - before) as usize;
    println!("a service with two pods: {} bytes", bytes / tables.service_count());
    assert!(bytes / tables.service_count() < 4 << 10);
}
