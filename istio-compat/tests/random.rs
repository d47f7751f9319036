//! Objects that the schema allows never make parsing, validation or translation panic, and what is compiled from an
//! object that validation accepts is never refused by a node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/generate.rs"]
mod generate;

use std::sync::LazyLock;

use generate::{Choices, value};
use istio_compat::{
    crd, parse, translate,
    types::{Resource, VirtualService},
    validate,
};
use mesh_api::{Resource as Compiled, check, model};
use proptest::prelude::*;
use serde_json::{Value, json};

fn spec_schema(kind: &str) -> &'static Value {
    let crd = CRDS.iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap();
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

static CRDS: LazyLock<Vec<Value>> = LazyLock::new(crd::all);

fn run(kind: &str, bytes: &[u8]) -> Option<Resource> {
    let spec = value(spec_schema(kind), &mut Choices(bytes, 0), 0);
    let info = istio_compat::types::kind_info(kind).unwrap();
    let object = json!({
        "apiVersion": format!("{}/{}", info.group, info.versions[0]), "kind": kind,
        "metadata": { "name": "random", "namespace": "default" }, "spec": spec,
    });
    let parsed = parse(&object).expect("what the schema allows is read");
    assert!(parsed.unknown.is_empty(), "{:?}", parsed.unknown);
    let valid = validate::judge(&parsed).is_valid();
    translate_all(&parsed.resource, valid);
    valid.then_some(parsed.resource)
}

fn translate_all(resource: &Resource, valid: bool) {
    let ctx = translate::Context::default();
    let mut service =
        model::Service { host: "reviews.default.svc.cluster.local".to_owned(), ..Default::default() };
    match resource {
        Resource::VirtualService(vs) => {
            let itself = |_: &str, _: &str| -> Option<&VirtualService> { Some(vs) };
            translate::virtual_service(vs, &ctx, &itself);
            service.virtual_hosts =
                translate::virtual_hosts(&service.host, true, &[vs], &ctx, &translate::no_delegates);
        }
        Resource::DestinationRule(dr) => {
            translate::destination_rule(dr, &ctx);
            service.policies = translate::policies(&service.host, "default", &[dr], &ctx);
        }
        Resource::Gateway(gateway) => {
            let compiled = translate::gateway::gateway(gateway);
            if valid {
                let problems = check(&compiled.name.clone(), &Compiled::Gateway(compiled));
                assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
            }
        }
        Resource::ServiceEntry(entry) => {
            for host in translate::external::hosts(entry) {
                let endpoints = translate::external::endpoints(&host, entry);
                let made = translate::external::service(
                    &host,
                    &[entry],
                    |_| model::Protocol::Http,
                    &translate::Context::default(),
                )
                .unwrap();
                if valid {
                    let problems = check(&host, &Compiled::Service(made));
                    assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
                    let endpoints = model::Endpoints { host: host.clone(), endpoints };
                    let problems = check(&host, &Compiled::Endpoints(endpoints));
                    assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
                }
            }
        }
        Resource::Sidecar(sidecar) => {
            let compiled = translate::scope::sidecar(sidecar, &ctx, &|_, _| model::Protocol::Http);
            if valid {
                let problems = check(&compiled.name.clone(), &Compiled::Sidecar(compiled));
                assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
            }
        }
        Resource::Telemetry(telemetry) => drop(translate::telemetry::telemetry(telemetry, &ctx)),
        _ => {}
    }
    if valid {
        let problems = check(&service.host.clone(), &Compiled::Service(service));
        assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn virtual_services(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        run("VirtualService", &bytes);
    }

    #[test]
    fn destination_rules(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        run("DestinationRule", &bytes);
    }

    #[test]
    fn other_kinds(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0..istio_compat::types::KINDS.len()) {
        run(istio_compat::types::KINDS[kind].kind, &bytes);
    }

    /// Any JSON at all is answered, not only what the schema allows.
    #[test]
    fn garbage(text in "[\\PC]{0,200}", kind in "VirtualService|DestinationRule|Service") {
        let metadata = json!({ "name": text });
        let spec = json!({ "hosts": [text], "host": text, "http": [{ "timeout": text, "match": text }], (text.clone()): 1 });
        let _ = parse(&json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec }));
        let _ = istio_compat::yaml::documents(&text);
        let _ = istio_compat::duration::parse(&text);
    }
}
