//! Whatever an object says, it is taken or refused: the index neither stops nor gives out what nodes would refuse.

use mesh_api::{Resource, check};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::*;
use crate::Kind;

/// Names that objects really have, so that garbage reaches the code behind them.
const KEYS: [&str; 52] = [
    "spec",
    "status",
    "ports",
    "port",
    "name",
    "protocol",
    "appProtocol",
    "targetPort",
    "clusterIP",
    "clusterIPs",
    "type",
    "externalName",
    "selector",
    "endpoints",
    "addresses",
    "conditions",
    "ready",
    "nodeName",
    "targetRef",
    "kind",
    "hosts",
    "http",
    "match",
    "uri",
    "prefix",
    "regex",
    "route",
    "destination",
    "host",
    "subset",
    "weight",
    "tcp",
    "tls",
    "sniHosts",
    "servers",
    "credentialName",
    "mode",
    "resolution",
    "location",
    "address",
    "workloadSelector",
    "labels",
    "egress",
    "gateways",
    "number",
    "data",
    "timeout",
    "trafficPolicy",
    "subsets",
    "labels",
    "podIP",
    "podIPs",
];

const TEXTS: [&str; 14] = [
    "",
    "a",
    "*",
    "*.default.svc.cluster.local",
    "10.0.0.1",
    "fd00::1",
    "None",
    "ExternalName",
    "[",
    "x.y",
    "65536",
    "-1",
    "5s",
    "a.default.svc.cluster.local",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0i64), Just(80), Just(-1), Just(70_000), any::<i64>()].prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..TEXTS.len()).prop_map(|i| TEXTS[i].into()),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((0..KEYS.len(), inner), 0..5).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (KEYS[k].to_owned(), v))
                .collect::<Map<_, _>>()
                .into()),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    let kind = (0..Kind::ALL.len()).prop_map(|i| Kind::ALL[i]);
    (kind, 0..3u8, value(), value(), proptest::option::of(value())).prop_map(|(kind, name, spec, status, labels)| {
        let group = kind.group();
        let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/{}", kind.versions()[0]) };
        let mut object = json!({"apiVersion": api_version, "kind": kind.as_str(), "spec": spec, "status": status,
            "metadata": {"name": format!("o{name}"), "labels": {"kubernetes.io/service-name": "o1", "app": "a"}}});
        if kind == Kind::EndpointSlice && let Value::Object(fields) = &spec {
            let own = fields.clone().into_iter().filter(|(k, _)| k != "kind");
            object.as_object_mut().unwrap().extend(own);
        }
        if let Some(labels) = labels {
            object["metadata"]["labels"] = labels;
        }
        object
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_taken_or_refused(objects in proptest::collection::vec(object(), 1..8)) {
        let mut index = Index::new(Options { derive_endpoints: true, allocate_vips: true, ..Options::default() });
        for object in &objects {
            let refused = index.apply(object) == Applied::Rejected;
            let key = ObjectKey::of(object).unwrap();
            prop_assert!(!refused || !index.findings_of(&key).is_empty(), "{key} is refused without a reason");
        }
        for change in index.compile() {
            let Some(content) = change.content else { continue };
            let resource = Resource::decode(change.kind, &change.name, &content.bytes).unwrap();
            prop_assert_eq!(check(&change.name, &resource), Vec::new());
        }
    }

    #[test]
    fn anything_at_all_is_survived(object in value()) {
        let mut index = Index::new(Options::default());
        index.apply(&object);
        index.compile();
    }
}
