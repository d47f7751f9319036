mod garbage;
mod gateway_api;
mod incremental;
mod mesh;
mod outside;

use std::collections::HashMap;

use mesh_api::{Resource, model};
use serde_json::{Value, json};

use super::*;
use crate::{Kind, Level};

fn docs(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

/// An index as a folder of manifests uses it.
struct World {
    index: Index,
    all: HashMap<(ResourceType, String), Resource>,
    changed: Vec<String>,
}

impl World {
    fn new() -> Self {
        let options = Options { derive_endpoints: true, allocate_vips: true, ..Options::default() };
        let mut w = Self { index: Index::new(options), all: HashMap::new(), changed: Vec::new() };
        w.compile();
        w
    }

    fn with(yaml: &str) -> Self {
        let mut w = Self::new();
        w.apply(yaml);
        w
    }

    /// Applies, compiles, and returns what happened to each object.
    fn apply(&mut self, yaml: &str) -> Vec<Applied> {
        let applied = docs(yaml).iter().map(|d| self.index.apply(d)).collect();
        self.compile();
        applied
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        assert!(self.index.delete(&ObjectKey::new(kind, "", name)));
        self.compile();
    }

    fn delete_in(&mut self, kind: Kind, namespace: &str, name: &str) {
        assert!(self.index.delete(&ObjectKey::new(kind, namespace, name)));
        self.compile();
    }

    fn compile(&mut self) {
        self.changed.clear();
        for Change { kind, name, content } in self.index.compile() {
            let slot = (kind, name.to_string());
            self.changed.push(format!("{} {name}", kind.as_str()));
            match content {
                Some(c) => self.all.insert(slot, Resource::decode(kind, &name, &c.bytes).unwrap()),
                None => self.all.remove(&slot),
            };
        }
    }

    fn service(&self, host: &str) -> Option<&model::Service> {
        match self.all.get(&(ResourceType::Service, full(host)))? {
            Resource::Service(s) => Some(s),
            other => panic!("{other:?}"),
        }
    }

    fn endpoints(&self, host: &str) -> &[model::Endpoint] {
        match &self.all[&(ResourceType::Endpoints, full(host))] {
            Resource::Endpoints(e) => &e.endpoints,
            other => panic!("{other:?}"),
        }
    }

    fn node(&self, name: &str) -> Option<&model::Node> {
        match self.all.get(&(ResourceType::Node, name.to_owned()))? {
            Resource::Node(n) => Some(n),
            other => panic!("{other:?}"),
        }
    }

    fn workloads(&self, node: &str) -> Vec<&str> {
        match self.all.get(&(ResourceType::NodeWorkloads, node.to_owned())) {
            Some(Resource::NodeWorkloads(w)) => w.workloads.iter().map(|w| w.name.as_str()).collect(),
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn sources(&self, host: &str) -> Vec<&str> {
        self.service(host).unwrap().virtual_hosts.iter().map(|v| v.source.as_str()).collect()
    }
}

fn full(host: &str) -> String {
    if host.contains('.') || host.contains('*') {
        host.to_owned()
    } else {
        format!("{host}.default.svc.cluster.local")
    }
}

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00::10']
  selector: {app: reviews}
  ports:
  - {name: http, port: 9080, targetPort: web}
  - {name: metrics, port: 9090, targetPort: 15020, appProtocol: http}
---
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-6d4f5-abcde
  labels: {app: reviews, version: v1, pod-template-hash: 6d4f5}
  ownerReferences: [{kind: ReplicaSet, name: reviews-v1-6d4f5, controller: true}]
spec:
  nodeName: edge-a
  serviceAccountName: bookinfo-reviews
  containers: [{ports: [{name: web, containerPort: 8080}]}]
status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Node
metadata: {name: edge-a, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, selvage.io/site: shop-7}}
";

#[test]
fn a_service_with_its_pods_is_compiled() {
    let w = World::with(REVIEWS);
    let s = w.service("reviews").unwrap();
    assert_eq!(s.vips, ["10.96.0.10", "fd00::10"]);
    assert_eq!(s.kind(), model::service::Kind::ClusterIp);
    assert_eq!(
        s.ports.iter().map(|p| (p.number, p.protocol())).collect::<Vec<_>>(),
        [(9080, model::Protocol::Http), (9090, model::Protocol::Http)]
    );
    let [e] = w.endpoints("reviews") else { panic!("{:?}", w.endpoints("reviews")) };
    assert_eq!((e.address.as_str(), e.node.as_str(), e.ready), ("10.1.0.1", "edge-a", true));
    let ports: Vec<_> = e.ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(ports, [(9080, 8080), (9090, 15020)]);
    let workload = e.workload.as_ref().unwrap();
    assert_eq!(
        (workload.owner.as_str(), workload.service_account.as_str()),
        ("reviews-v1", "bookinfo-reviews")
    );
    assert_eq!(workload.labels["topology.kubernetes.io/zone"], "eu-1");
    let locality = e.locality.as_ref().unwrap();
    assert_eq!(
        (locality.region.as_str(), locality.zone.as_str(), locality.site.as_str()),
        ("eu", "eu-1", "shop-7")
    );
    assert_eq!(w.workloads("edge-a"), ["reviews-v1-6d4f5-abcde"]);
    assert!(w.index.findings().next().is_none());
}

#[test]
fn slices_win_over_selectors_and_pods_fill_in_who_is_there() {
    let mut w = World::with(REVIEWS);
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.1.0.1], conditions: {ready: true}, nodeName: edge-a, targetRef: {kind: Pod, name: reviews-v1-6d4f5-abcde, namespace: default}}
- {addresses: [10.1.0.9], conditions: {ready: false, terminating: true}, nodeName: edge-z}
- {addresses: [203.0.113.9], zone: eu-9}
";
    w.apply(slice);
    let all: Vec<_> =
        w.endpoints("reviews").iter().map(|e| (e.address.as_str(), e.ready, e.terminating)).collect();
    assert_eq!(all, [("10.1.0.1", true, false), ("10.1.0.9", false, true), ("203.0.113.9", true, false)]);
    assert_eq!(w.endpoints("reviews")[0].workload.as_ref().unwrap().owner, "reviews-v1");
    assert_eq!(w.endpoints("reviews")[0].ports.len(), 1, "the slice has no metrics port");
    assert_eq!(w.endpoints("reviews")[2].locality.as_ref().unwrap().zone, "eu-9");
    // A pod's labels are subset labels: its change reaches the endpoints.
    w.apply("{apiVersion: v1, kind: Pod, metadata: {name: reviews-v1-6d4f5-abcde, labels: {version: v9}}, spec: {nodeName: edge-a}, status: {podIP: 10.1.0.1}}");
    assert_eq!(w.endpoints("reviews")[0].workload.as_ref().unwrap().labels["version"], "v9");
    assert!(w.changed.contains(&"endpoints reviews.default.svc.cluster.local".to_owned()), "{:?}", w.changed);
    w.delete(Kind::EndpointSlice, "reviews-1");
    assert!(w.endpoints("reviews").is_empty(), "the pod no longer has the selected label");
}

#[test]
fn headless_external_and_stateful_services() {
    let mut w = World::with(
        "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, publishNotReadyAddresses: true, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, labels: {app: db}}
spec: {nodeName: node-1, hostname: db-0, subdomain: db}
status: {podIP: 10.1.0.5, phase: Pending}
---
apiVersion: v1
kind: Service
metadata: {name: ext}
spec: {type: ExternalName, externalName: API.example.com.}
",
    );
    let db = w.service("db").unwrap();
    assert_eq!((db.kind(), db.publish_not_ready), (model::service::Kind::Headless, true));
    assert_eq!((w.endpoints("db")[0].hostname.as_str(), w.endpoints("db")[0].ready), ("db-0", true));
    let ext = w.service("ext").unwrap();
    assert_eq!(
        (ext.kind(), ext.external_name.as_str()),
        (model::service::Kind::ExternalName, "api.example.com")
    );
    assert!(!w.all.contains_key(&(ResourceType::Endpoints, full("ext"))));
    w.delete(Kind::Service, "ext");
    assert!(w.service("ext").is_none());
}

#[test]
fn labels_leave_a_service_to_others() {
    let with = |labels: &str| {
        let mut w = World::new();
        w.apply(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}\n"));
        w.service("web").unwrap().uncaptured
    };
    let mut w = World::new();
    w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}\n");
    assert!(w.service("kubernetes").unwrap().uncaptured, "the way to the API server");
    let edgemesh = "service.edgemesh.kubeedge.io/service-proxy-name";
    assert!(!with("app: web"));
    assert!(with(&format!("{edgemesh}: ''")) && with("service.kubernetes.io/service-proxy-name: other"));
    assert!(with("selvage.io/capture: 'false'") && !with("selvage.io/capture: 'true'"));
    assert!(!with(&format!("{edgemesh}: x, selvage.io/capture: 'true'")), "our own label decides");
}

#[test]
fn pods_that_ended_or_are_not_ready_get_no_traffic() {
    let mut w = World::with(REVIEWS);
    let pod = |phase: &str, extra: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{app: reviews}}{extra}}}, spec: {{nodeName: node-1}}, \
             status: {{podIP: 10.1.0.7, phase: {phase}, conditions: [{{type: Ready, status: 'False'}}]}}}}"
        )
    };
    w.apply(&pod("Running", ""));
    assert_eq!(w.endpoints("reviews").iter().filter(|e| e.ready).count(), 1);
    assert_eq!(w.endpoints("reviews").len(), 2);
    w.apply(&pod("Running", ", deletionTimestamp: '2026-01-01T00:00:00Z'"));
    assert!(w.endpoints("reviews")[1].terminating);
    w.apply(&pod("Succeeded", ""));
    assert_eq!(w.endpoints("reviews").len(), 1);
    assert!(w.workloads("node-1").is_empty());
}

#[test]
fn nodes_come_from_kubernetes_and_from_the_registry() {
    let mut w = World::with(REVIEWS);
    assert_eq!(w.node("edge-a").unwrap().peer_id, "");
    let registration = Registration {
        peer_id: "12D3".to_owned(),
        addresses: vec!["/ip4/1.2.3.4/tcp/1".to_owned()],
        ..Registration::default()
    };
    w.index.register("edge-a", Some(registration.clone()));
    w.index.register("bare", Some(registration));
    w.compile();
    assert_eq!(w.changed, ["node bare", "node edge-a"]);
    assert_eq!(w.node("edge-a").unwrap().peer_id, "12D3");
    w.index.register("bare", None);
    w.compile();
    assert!(w.node("bare").is_none());
    w.delete(Kind::Node, "edge-a");
    assert_eq!(w.node("edge-a").unwrap().peer_id, "12D3");
    assert_eq!(w.endpoints("reviews")[0].locality.as_ref().unwrap().zone, "");
}

fn vs(name: &str, created: u32, hosts: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}, creationTimestamp: \
         '20{created:02}-01-01T00:00:00Z'}}, spec: {{hosts: [{hosts}], http: [{{route: [{{destination: {{host: \
         reviews}}}}]}}]}}}}\n---\n"
    )
}

#[test]
fn rules_claim_hosts_by_specificity_then_age() {
    let mut w = World::with(REVIEWS);
    w.apply(
        &(vs("young", 25, "reviews")
            + &vs("old", 20, "reviews")
            + &vs("wild", 10, "'*.default.svc.cluster.local'")),
    );
    assert_eq!(w.sources("reviews"), ["default/old", "default/young", "default/wild"]);
    // A wildcard that covers services is no host of its own; one that covers none is.
    assert!(w.service("*.default.svc.cluster.local").is_none());
    w.apply(&(vs("ext", 20, "'*.example.com'") + &vs("api", 20, "api.example.com")));
    assert_eq!(w.index.findings().count(), 0);
    let api = w.service("api.example.com").unwrap();
    assert_eq!((api.kind(), api.ports[0].number), (model::service::Kind::RouteOnly, 80));
    assert!(w.service("*.example.com").is_some());
    w.delete(Kind::VirtualService, "old");
    assert_eq!(w.changed, ["service reviews.default.svc.cluster.local"]);
    w.delete(Kind::Service, "reviews");
    assert!(w.service("*.default.svc.cluster.local").is_some());
    assert_eq!(w.service("reviews").unwrap().kind(), model::service::Kind::RouteOnly);
}

#[test]
fn delegates_touch_the_hosts_of_those_that_name_them() {
    let mut w = World::with(REVIEWS);
    w.apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: root}, spec: {hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], delegate: {name: leaf}}]}}");
    let leaf = |to: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: leaf}}, spec: {{http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}}}"
        )
    };
    w.apply(&leaf("one"));
    let before = w.service("reviews").unwrap().clone();
    assert_eq!(before.virtual_hosts[0].http.len(), 1, "{before:?}");
    w.apply(&leaf("two"));
    assert_ne!(w.service("reviews").unwrap(), &before);
    assert_eq!(w.changed, ["service reviews.default.svc.cluster.local"]);
}

#[test]
fn destination_rules_apply_to_the_hosts_that_they_cover() {
    let mut w = World::with(REVIEWS);
    w.apply("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: dr}, spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}}");
    let policies = &w.service("reviews").unwrap().policies;
    assert_eq!(policies[0].source, "default/dr");
    assert_eq!(policies[0].subsets[0].name, "v1");
    w.delete(Kind::DestinationRule, "dr");
    assert!(w.service("reviews").unwrap().policies.is_empty());
}

#[test]
fn bad_objects_are_named_and_the_last_good_one_stays() {
    let mut w = World::with(REVIEWS);
    w.apply(&vs("rule", 20, "reviews"));
    let bad = w.apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: rule}, spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}, weight: -3}]}]}}");
    assert_eq!(bad, [Applied::Rejected]);
    let bad =
        w.apply("{apiVersion: v1, kind: Service, metadata: {name: reviews}, spec: {ports: [{port: 70000}]}}");
    assert_eq!(bad, [Applied::Rejected]);
    assert!(w.changed.is_empty());
    assert_eq!(w.sources("reviews"), ["default/rule"]);
    let found: Vec<_> = w.index.findings().map(|f| (f.level, f.object.to_string(), f.path.clone())).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&(
        Level::Error,
        "Service default/reviews".to_owned(),
        "spec.ports[0].port".to_owned()
    )));
    assert!(
        found.iter().any(|(_, o, p)| o == "VirtualService default/rule" && p.starts_with("spec.http[0]")),
        "{found:?}"
    );
    w.apply(&vs("rule", 21, "reviews"));
    w.delete(Kind::Service, "reviews");
    assert_eq!(w.index.findings().count(), 0);
}

#[test]
fn unsupported_fields_are_findings_but_the_object_counts() {
    let mut w = World::with(REVIEWS);
    let odd = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: r}, spec: {hosts: [reviews], nonsense: 1, http: [{route: [{destination: {host: reviews}}]}]}}";
    assert_eq!(w.apply(odd), [Applied::Changed]);
    let found: Vec<_> = w.index.findings().cloned().collect();
    assert_eq!((found[0].level, found[0].path.as_str()), (Level::Warning, "spec.nonsense"));
    assert_eq!(w.sources("reviews"), ["default/r"]);
}

#[test]
fn what_is_none_of_ours_is_ignored_and_the_same_again_is_no_change() {
    let mut w = World::with(REVIEWS);
    assert_eq!(w.apply("{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}"), [Applied::Ignored]);
    let again = w.apply(REVIEWS);
    assert!(again.iter().all(|a| *a == Applied::Unchanged), "{again:?}");
    assert!(w.changed.is_empty());
}

fn many_services(count: usize) -> Index {
    let mut index = Index::new(Options::default());
    for i in 0..count {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{i}"), "namespace": format!("ns{}", i % 50)},
            "spec": {"clusterIP": format!("10.{}.{}.{}", 100 + i / 65536, i / 256 % 256, i % 256), "ports": [{"name": "http", "port": 80}]}});
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{i}-x"), "namespace": format!("ns{}", i % 50), "labels": {"kubernetes.io/service-name": format!("s{i}")}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [format!("10.200.{}.{}", i / 250 % 250, i % 250)], "nodeName": format!("n{}", i % 100)}]});
        assert_eq!((index.apply(&service), index.apply(&slice)), (Applied::Changed, Applied::Changed));
    }
    index
}

/// Compiles and returns how many (services, endpoint sets, changes) that took.
fn counted(index: &mut Index) -> (u64, u64, usize) {
    let before = index.stats();
    let changes = index.compile().len();
    let after = index.stats();
    (after.services - before.services, after.endpoints - before.endpoints, changes)
}

#[test]
fn with_5000_services_one_change_compiles_one_host() {
    let mut index = many_services(5000);
    let start = std::time::Instant::now();
    assert_eq!(counted(&mut index), (5000, 5000, 10_001));
    println!("5,000 services from nothing: {:?}", start.elapsed());
    let rule = |to: &str, host: &str| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "r", "namespace": "ns7"},
            "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": to}}]}]}})
    };
    for to in ["s7", "s57"] {
        let start = std::time::Instant::now();
        index.apply(&rule(to, "s7"));
        assert_eq!(counted(&mut index), (1, 0, 1));
        println!("one VirtualService among 5,000 services: {:?}", start.elapsed());
    }
    // A wildcard touches what it covers (and its own name), nothing else.
    index.delete(&ObjectKey::new(Kind::VirtualService, "ns7", "r"));
    assert_eq!(counted(&mut index), (1, 0, 1));
    index.apply(&rule("s7.ns7.svc.cluster.local", "*.ns7.svc.cluster.local"));
    assert_eq!(counted(&mut index), (101, 0, 100));
    // An endpoint touches its service's endpoints only; a label of a node nothing but what stands on it.
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s9-x", "namespace": "ns9", "labels": {"kubernetes.io/service-name": "s9"}},
        "ports": [{"name": "http", "port": 8081}], "endpoints": [{"addresses": ["10.200.0.9"], "nodeName": "n9"}]});
    index.apply(&slice);
    assert_eq!(counted(&mut index), (0, 1, 1));
    index.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9", "labels": {"topology.kubernetes.io/zone": "z"}}}));
    assert_eq!(counted(&mut index), (0, 50, 51));
    index.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9", "labels": {"topology.kubernetes.io/zone": "z", "x": "y"}}}));
    assert_eq!(counted(&mut index), (0, 0, 1));
    // Checking everything finds nothing that was missed.
    index.touch_all();
    let start = std::time::Instant::now();
    assert_eq!(counted(&mut index), (5001, 5000, 0));
    println!("everything checked again: {:?}", start.elapsed());
}

#[test]
fn services_without_an_address_get_one_and_two_cannot_have_the_same() {
    let service = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec} ports: [{{port: 80}}]}}}}\n---\n"
        )
    };
    let mut w = World::with(&(service("a", "") + &service("b", "")));
    let (a, b) = (w.service("a").unwrap().vips.clone(), w.service("b").unwrap().vips.clone());
    assert!(a[0].starts_with("240.240.") && b[0].starts_with("240.240.") && a != b, "{a:?} {b:?}");
    assert_eq!(w.service("a").unwrap().kind(), model::service::Kind::ClusterIp);
    // The same again after a restart, whatever came first.
    let other = World::with(&(service("b", "") + &service("c", "") + &service("a", "")));
    assert_eq!((&other.service("a").unwrap().vips, &other.service("b").unwrap().vips), (&a, &b));
    w.apply(&service("a", "clusterIP: None,"));
    assert_eq!(w.service("a").unwrap().kind(), model::service::Kind::Headless);

    w.apply(&(service("one", "clusterIP: 10.0.0.1,") + &service("two", "clusterIP: 10.0.0.1,")));
    assert_eq!(w.service("one").unwrap().vips, ["10.0.0.1"]);
    assert!(w.service("two").unwrap().vips.is_empty());
    let found: Vec<_> = w.index.findings().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["Service default/two: spec.clusterIP: 10.0.0.1 belongs to service default/one already"]
    );
    w.delete(Kind::Service, "one");
    assert_eq!(w.service("two").unwrap().vips, ["10.0.0.1"]);
    assert_eq!(w.index.findings().count(), 0);
}
