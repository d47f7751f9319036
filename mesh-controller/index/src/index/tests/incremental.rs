//! Whatever happens in whatever order: compiling only what is touched comes to the same as compiling all of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;
use crate::Kind;

#[derive(Debug, Clone)]
enum Step {
    Apply(Value),
    Delete(ObjectKey),
    Register(String, bool),
    Compile,
}

fn name(prefix: &'static str) -> impl Strategy<Value = String> {
    (0..4u8).prop_map(move |i| format!("{prefix}{i}"))
}

fn object() -> impl Strategy<Value = Value> {
    let service = (name("s"), 0..3u8, 1..4u16).prop_map(|(n, kind, port)| {
        let spec = match kind {
            0 => json!({"clusterIP": format!("10.0.0.{port}"), "selector": {"app": n}, "ports": [{"name": "http", "port": port}]}),
            1 if port == 3 => json!({"ports": [{"port": port}]}),
            1 => json!({"clusterIP": "None", "selector": {"app": n}, "ports": [{"port": port}]}),
            _ => json!({"type": "ExternalName", "externalName": "x.example"}),
        };
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": n}, "spec": spec})
    });
    let pod = (name("p"), name("s"), name("n"), 1..4u8, any::<bool>()).prop_map(|(n, app, node, ip, ready)| {
        let ready = if ready { "True" } else { "False" };
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": n, "labels": {"app": app}}, "spec": {"nodeName": node},
            "status": {"podIP": format!("10.1.0.{ip}"), "conditions": [{"type": "Ready", "status": ready}]}})
    });
    let slice = (name("e"), name("s"), proptest::collection::vec((1..4u8, name("p"), name("n")), 0..3)).prop_map(
        |(n, service, endpoints)| {
            let endpoints: Vec<_> = endpoints
                .into_iter()
                .map(|(ip, pod, node)| json!({"addresses": [format!("10.1.0.{ip}")], "nodeName": node, "targetRef": {"kind": "Pod", "name": pod}}))
                .collect();
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": n, "labels": {"kubernetes.io/service-name": service}},
                "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
        },
    );
    let node = (name("n"), 0..3u8).prop_map(|(n, zone)| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": n, "labels": {"topology.kubernetes.io/zone": format!("z{zone}")}}})
    });
    let hosts = prop_oneof![
        name("s"),
        Just("*.default.svc.cluster.local".to_owned()),
        Just("*.x.org".to_owned()),
        Just("a.x.org".to_owned())
    ];
    let rule = (name("v"), proptest::collection::vec(hosts.clone(), 0..3), name("s"), name("v")).prop_map(|(n, hosts, to, delegate)| {
        let http = if hosts.len() == 2 { json!([{"delegate": {"name": delegate}}]) } else { json!([{"route": [{"destination": {"host": to}}]}]) };
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": n}, "spec": {"hosts": hosts, "http": http}})
    });
    let policy = (name("d"), hosts, 0..3u8).prop_map(|(n, host, v)| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": n}, "spec": {"host": host, "subsets": [{"name": format!("v{v}"), "labels": {"v": "1"}}]}})
    });
    prop_oneof![4 => prop_oneof![service, pod, slice, node, rule, policy], 2 => outside()]
}

/// What Istio adds to Kubernetes.
fn outside() -> impl Strategy<Value = Value> {
    let istio = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let host = || {
        prop_oneof![Just("a.x.org"), Just("b.x.org"), Just("*.x.org"), Just("s1.default.svc.cluster.local")]
    };
    let entry = (name("se"), host(), name("s"), 0..5u8, 1..3u16).prop_map(move |(n, host, app, shape, port)| {
        let ports = json!([{"number": port, "name": "http", "protocol": "HTTP"}]);
        let mut spec = json!({"hosts": [host], "ports": ports, "resolution": if shape < 3 { "STATIC" } else { "DNS" }});
        match shape {
            0 => spec["endpoints"] = json!([{"address": "1.1.1.1"}]),
            1 => spec["workloadSelector"] = json!({"labels": {"app": app}}),
            2 => spec["addresses"] = json!([format!("10.0.0.{port}")]),
            _ => spec["endpoints"] = json!([{"address": "other.org"}]),
        }
        istio("ServiceEntry", &n, spec)
    });
    let workload = (name("we"), name("s"), 1..4u8).prop_map(move |(n, app, ip)| {
        istio("WorkloadEntry", &n, json!({"address": format!("2.2.2.{ip}"), "labels": {"app": app}}))
    });
    let gateway = (name("g"), name("s"), host(), name("c"), any::<bool>()).prop_map(
        move |(n, app, host, secret, tls)| {
            let mut server =
                json!({"port": {"number": 80, "name": "p", "protocol": "HTTP"}, "hosts": [host]});
            if tls {
                server["port"]["protocol"] = json!("HTTPS");
                server["tls"] = json!({"mode": "SIMPLE", "credentialName": secret});
            }
            istio("Gateway", &n, json!({"selector": {"app": app}, "servers": [server]}))
        },
    );
    let bound = (name("v"), host(), name("g"), any::<bool>()).prop_map(move |(n, host, gateway, mesh)| {
        let mut gateways = vec![gateway];
        if mesh && !host.starts_with('*') {
            gateways.push("mesh".to_owned());
        }
        istio("VirtualService", &n, json!({"hosts": [host], "gateways": gateways, "http": [{"route": [{"destination": {"host": "s1"}}]}]}))
    });
    let secret = (name("c"), 0..3u8).prop_map(|(n, v)| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": n}, "stringData": {"tls.crt": format!("{v}"), "tls.key": "k"}})
    });
    let scope = (name("sc"), host()).prop_map(move |(n, host)| {
        istio("Sidecar", &n, json!({"egress": [{"hosts": [format!("*/{host}")]}]}))
    });
    prop_oneof![3 => entry, 1 => workload, 2 => gateway, 2 => bound, 1 => secret, 1 => scope]
}

fn step() -> impl Strategy<Value = Step> {
    let key = (0..Kind::ALL.len(), 0..4u8).prop_map(|(kind, i)| {
        let kind = Kind::ALL[kind];
        let prefix = match kind {
            Kind::Namespace => "ns",
            Kind::Node => "n",
            Kind::Service => "s",
            Kind::EndpointSlice => "e",
            Kind::Pod => "p",
            Kind::VirtualService => "v",
            Kind::DestinationRule => "d",
            Kind::ServiceEntry => "se",
            Kind::WorkloadEntry => "we",
            Kind::Gateway => "g",
            Kind::Secret => "c",
            Kind::Sidecar => "sc",
            _ => "other",
        };
        ObjectKey::new(kind, "default", &format!("{prefix}{i}"))
    });
    prop_oneof![
        6 => object().prop_map(Step::Apply),
        2 => key.prop_map(Step::Delete),
        1 => (name("n"), any::<bool>()).prop_map(|(n, there)| Step::Register(n, there)),
        2 => Just(Step::Compile),
    ]
}

type Outputs = BTreeMap<(ResourceType, Arc<str>), String>;

fn outputs(index: &Index) -> Outputs {
    index.resources().map(|(kind, name, content)| ((kind, name.clone()), content.version.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn incremental_is_the_same_as_from_scratch(steps in proptest::collection::vec(step(), 0..60), derive in any::<bool>()) {
        let options = Options { derive_endpoints: derive, allocate_vips: derive, ..Options::default() };
        let mut index = Index::new(options.clone());
        let mut told: Outputs = BTreeMap::new();
        let (mut objects, mut registered) = (BTreeMap::new(), BTreeMap::new());
        for step in steps.into_iter().chain([Step::Compile]) {
            match step {
                Step::Apply(object) => {
                    // A refused object leaves the last good one, so the mirror does the same.
                    if index.apply(&object) != Applied::Rejected {
                        objects.insert(ObjectKey::of(&object).unwrap(), object);
                    }
                }
                Step::Delete(key) => prop_assert_eq!(index.delete(&key), objects.remove(&key).is_some()),
                Step::Register(node, there) => {
                    let registration = Registration { peer_id: node.clone(), ..Registration::default() };
                    index.register(&node, there.then(|| registration.clone()));
                    if there { registered.insert(node, registration); } else { registered.remove(&node); }
                }
                Step::Compile => {
                    for change in index.compile() {
                        let slot = (change.kind, change.name);
                        match change.content {
                            Some(content) => { told.insert(slot, content.version.clone()); }
                            None => { prop_assert!(told.remove(&slot).is_some()); }
                        }
                    }
                }
            }
        }
        let mut fresh = Index::new(options);
        for object in objects.values() {
            fresh.apply(object);
        }
        for (node, registration) in registered {
            fresh.register(&node, Some(registration));
        }
        fresh.compile();
        prop_assert_eq!(&told, &outputs(&index));
        prop_assert_eq!(&told, &outputs(&fresh));
        index.touch_all();
        prop_assert!(index.compile().is_empty());
    }
}
