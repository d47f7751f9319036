//! The mesh of one case: objects compiled as the controller does, an upstream for each destination, a worker.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderName, HeaderValue};
use mesh_api::{Resource, model};
use mesh_core::DiceKind;
use mesh_index::{Applied, Index, Options as IndexOptions};
use serde_json::{Value, json};

use mesh_proxy::gateway::{Gateway, GatewayConfig};

use crate::{
    upstream::{Upstream, tcp},
    world::{Options, World},
};
use tokio::io::AsyncWriteExt;

/// Where a destination's upstream is, and what it stands for.
pub struct Place {
    pub host: String,
    pub port: u16,
    pub labels: BTreeMap<String, String>,
    pub http: Option<Arc<Upstream>>,
    pub addr: SocketAddr,
}

pub struct Mesh {
    pub world: World,
    pub places: Vec<Place>,
    /// An address that no service has.
    pub stranger: Option<Arc<Upstream>>,
    /// The address to call.
    pub called: SocketAddr,
    /// The port of the gateway, where the case is one of a gateway.
    pub gateway: Option<SocketAddr>,
    /// Subsets by host and name.
    pub subsets: BTreeMap<(String, String), BTreeMap<String, String>>,
    pub problems: Vec<String>,
}

impl Mesh {
    pub async fn start(services: &Value, case: &Value) -> Self {
        let objects: Vec<Value> = services.as_array().unwrap().iter().map(service).collect();
        let config = case["config"].as_array().unwrap();
        let (mut resources, problems) = compile(objects.iter().chain(config), case);
        let subsets = subsets(&resources);
        let mut places = Vec::new();
        let l4 = case.get("connection").is_some();
        let hosts: Vec<model::Service> = resources
            .iter()
            .filter_map(|r| match r {
                Resource::Service(s) if !s.vips.is_empty() || is_external(s) => Some(s.clone()),
                _ => None,
            })
            .collect();
        // Hosts outside are upstreams on loopback too; how they are resolved has tests of its own.
        for r in &mut resources {
            if let Resource::Service(s) = r
                && is_external(s)
            {
                s.set_resolution(model::service::Resolution::Static);
            }
        }
        for s in &hosts {
            let (endpoints, new) = endpoints(s, case, &subsets, l4).await;
            resources.push(endpoints);
            places.extend(new);
        }
        resources.push(client(case));
        let (called, stranger) = called(case, &hosts).await;
        let (gateway, at) = gateway(case).unzip();
        let options = Options { called: vec![called], dice: Some(dice()), gateway, ..Options::default() };
        let world = World::start(resources, options);
        Self { world, places, stranger, called, gateway: at, subsets, problems }
    }

    /// A connection of the client.
    pub async fn dial(&self) -> tokio::net::TcpStream {
        let Some(at) = self.gateway else { return self.world.dial(&self.called.to_string()).await };
        // A listener comes soon, not at once.
        for _ in 0..200 {
            if let Ok(stream) = tokio::net::TcpStream::connect(at).await {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the gateway does not listen")
    }
}

fn is_external(s: &model::Service) -> bool {
    s.kind() == model::service::Kind::External
}

/// The gateway of a case and where it listens.
fn gateway(case: &Value) -> Option<(Arc<Gateway>, SocketAddr)> {
    let client = &case["client"];
    if client["type"] != "gateway" {
        return None;
    }
    let port = client["port"].as_u64().unwrap() as u16;
    let free = mesh_testkit::ports::free_port();
    let labels = client["labels"].as_object().into_iter().flatten();
    let config = GatewayConfig {
        labels: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect(),
        namespace: client["namespace"].as_str().unwrap().to_owned(),
        ports: [(port, free)].into(),
    };
    Some((Arc::new(Gateway::new(config, None)), SocketAddr::from(([127, 0, 0, 1], free))))
}

/// Weights are drawn in even steps, so that shares come out exact; whatever may happen by chance happens.
fn dice() -> Arc<dyn Fn(DiceKind) -> f64 + Send + Sync> {
    let (weights, others) = (AtomicU64::new(0), AtomicU64::new(0));
    Arc::new(move |kind| {
        let step = |n: &AtomicU64, by: u64| ((n.fetch_add(1, Ordering::SeqCst) * by) % 100) as f64 / 100.0;
        match kind {
            DiceKind::Weight => step(&weights, 1),
            DiceKind::Balance => step(&others, 37),
            DiceKind::Backoff => 0.5,
            DiceKind::FaultAbort | DiceKind::FaultDelay | DiceKind::Mirror => 0.0,
        }
    })
}

fn service(s: &Value) -> Value {
    let ports: Vec<Value> = s["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap().to_ascii_lowercase();
            json!({ "name": p["name"], "port": p["port"], "protocol": "TCP", "appProtocol": protocol })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": s["name"], "namespace": s["namespace"] },
        "spec": { "clusterIP": s["vip"], "clusterIPs": [s["vip"]], "ports": ports, "selector": { "app": s["name"] } },
    })
}

fn compile<'a>(objects: impl Iterator<Item = &'a Value>, case: &Value) -> (Vec<Resource>, Vec<String>) {
    let mut index = Index::new(IndexOptions::default());
    let mut problems = Vec::new();
    if let Some(text) = case["meshConfig"].as_str() {
        index.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "istio", "namespace": "istio-system" }, "data": { "mesh": text },
        }));
    }
    for object in objects {
        if index.apply(object) == Applied::Ignored {
            problems.push(format!("{} is ignored", object["kind"]));
        }
    }
    let mut resources = Vec::new();
    for change in index.compile() {
        let Some(content) = change.content else { continue };
        resources.push(Resource::decode(change.kind, &change.name, &content.bytes).unwrap());
    }
    resources.retain(|r| !matches!(r, Resource::Endpoints(_)));
    problems.extend(index.findings().map(ToString::to_string));
    (resources, problems)
}

fn subsets(resources: &[Resource]) -> BTreeMap<(String, String), BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for r in resources {
        let Resource::Service(s) = r else { continue };
        for subset in s.policies.iter().flat_map(|p| &p.subsets) {
            out.entry((s.host.clone(), subset.name.clone())).or_insert_with(|| subset.labels.clone());
        }
    }
    out
}

/// One pod for each subset and one that is in none, each with a listener of its own for each port.
async fn endpoints(
    s: &model::Service,
    case: &Value,
    subsets: &BTreeMap<(String, String), BTreeMap<String, String>>,
    l4: bool,
) -> (Resource, Vec<Place>) {
    let mut pods: Vec<BTreeMap<String, String>> = vec![BTreeMap::new()];
    pods.extend(subsets.iter().filter(|((host, _), _)| *host == s.host).map(|(_, labels)| labels.clone()));
    pods.dedup();
    let named = |key: &str, port: u32, labels: &BTreeMap<String, String>| {
        case["upstream"][key].as_array().into_iter().flatten().any(|name| {
            let name = name.as_str().unwrap();
            let parts: Vec<_> = name.split('|').collect();
            let subset = subsets.get(&(s.host.clone(), parts[2].to_owned()));
            parts[3] == s.host
                && parts[1] == port.to_string()
                && (parts[2].is_empty() || subset.is_some_and(|l| l == labels))
        })
    };
    let (mut list, mut places) = (Vec::new(), Vec::new());
    for (i, labels) in pods.iter().enumerate() {
        let mut ports = Vec::new();
        for p in &s.ports {
            if named("no_endpoints", p.number, labels) {
                continue;
            }
            let place = place(s, p.number as u16, labels, case, l4, places.len()).await;
            let refused = named("refuse", p.number, labels);
            let target = if refused { 1 } else { place.addr.port() };
            ports.push(model::PortMap { service_port: p.number, target_port: target.into() });
            places.push(place);
        }
        list.push(model::Endpoint {
            address: "127.0.0.1".into(),
            ports,
            workload: Some(model::Workload {
                address: "127.0.0.1".into(),
                namespace: s.namespace.clone(),
                name: format!("{}-{i}", s.name),
                labels: labels.clone(),
                ..Default::default()
            }),
            ready: true,
            ..Default::default()
        });
    }
    (Resource::Endpoints(model::Endpoints { host: s.host.clone(), endpoints: list }), places)
}

async fn place(
    s: &model::Service,
    port: u16,
    labels: &BTreeMap<String, String>,
    case: &Value,
    l4: bool,
    number: usize,
) -> Place {
    let common = |http: Option<Arc<Upstream>>, addr| Place {
        host: s.host.clone(),
        port,
        labels: labels.clone(),
        http,
        addr,
    };
    if l4 {
        let tag = format!("{}|{port}|{number}\n", s.host);
        let addr = tcp(move |mut stream| {
            let tag = tag.clone();
            async move {
                let _gone = stream.write_all(tag.as_bytes()).await;
            }
        })
        .await;
        return common(None, addr);
    }
    let upstream = Upstream::start(&s.host).await;
    for (name, value) in case["upstream"]["response_headers"].as_object().into_iter().flatten() {
        let (name, value) = (name.parse::<HeaderName>().unwrap(), value.as_str().unwrap());
        upstream.extra_headers.lock().unwrap().append(name, HeaderValue::from_str(value).unwrap());
    }
    common(Some(Arc::clone(&upstream)), upstream.addr)
}

/// Who calls: connections come from loopback.
fn client(case: &Value) -> Resource {
    let labels = case["client"]["labels"].as_object().into_iter().flatten();
    Resource::NodeWorkloads(model::NodeWorkloads {
        node: "here".into(),
        workloads: vec![model::Workload {
            address: "127.0.0.1".into(),
            namespace: case["client"]["namespace"].as_str().unwrap().into(),
            name: "caller".into(),
            labels: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect(),
            ..Default::default()
        }],
    })
}

/// The address that the client calls: what DNS would say for the name, or somebody outside the mesh.
async fn called(case: &Value, services: &[model::Service]) -> (SocketAddr, Option<Arc<Upstream>>) {
    if let Some(address) = case["connection"]["address"].as_str() {
        let port = case["connection"]["port"].as_u64().unwrap() as u16;
        return (SocketAddr::new(address.parse().unwrap(), port), None);
    }
    let port = case["client"]["port"].as_u64().unwrap() as u16;
    let authority = case["request"]["authority"].as_str().unwrap().to_ascii_lowercase();
    let name = authority.split(':').next().unwrap();
    let namespace = case["client"]["namespace"].as_str().unwrap();
    // What goes to the called address has to find somebody there.
    let passes = case["expected"]["action"] == "passthrough";
    let found = services.iter().filter(|s| !passes && !s.vips.is_empty()).find(|s| {
        let short = s.name == name && s.namespace == namespace;
        let has_port = s.ports.iter().any(|p| p.number == u32::from(port));
        let forms = [
            s.host.clone(),
            format!("{}.{}", s.name, s.namespace),
            format!("{}.{}.svc", s.name, s.namespace),
        ];
        has_port && (short || forms.iter().any(|f| *f == name))
    });
    if let Some(s) = found {
        let vip: IpAddr = s.vips[0].parse().unwrap();
        return (SocketAddr::new(vip, port), None);
    }
    // One for each case: those of earlier cases still listen.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::SeqCst);
    let outside = SocketAddr::from(([127, 77, (n / 250) as u8, (n % 250) as u8 + 1], port));
    let stranger = match std::net::TcpListener::bind(outside) {
        Ok(free) => {
            drop(free);
            Some(Upstream::start_at("stranger", outside).await)
        }
        // Ports below 1024 need a privilege; only passthrough cases miss it.
        Err(_) => None,
    };
    (outside, stranger)
}
