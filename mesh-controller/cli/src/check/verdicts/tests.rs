use serde_json::json;

use super::*;
use crate::doctor::Status;

fn row(node: &str) -> Row {
    Row {
        node: node.to_owned(),
        ready: true,
        answers: true,
        connected: true,
        version: "0.1.0".to_owned(),
        certificate_left: Some(5000),
        ..Row::default()
    }
}

fn state(more: &Value) -> Vec<(String, Result<Value>)> {
    let mut state = json!({ "synced": true, "leader": true, "version": "0.1.0", "source": { "healthy": true },
        "findings": [], "ca_expires": 400 * DAY });
    state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vec![("c-1".to_owned(), Ok(state))]
}

#[test]
fn the_release_and_its_version_are_compared() {
    let controller = Workload {
        name: "mesh-controller".to_owned(),
        release: "mesh".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Workload::default()
    };
    let of = |w: &Workload, name| release(std::slice::from_ref(w), name, "ns");
    assert_eq!(of(&controller, "mesh").status, Status::Ok);
    assert!(of(&controller, "other").fix.contains("--release mesh"));
    let old = Workload { version: "0.0.1".to_owned(), ..controller };
    assert!(of(&old, "mesh").found.contains("this meshctl is"));
    assert_eq!(release(&[], "mesh", "ns").status, Status::Fail);
}

#[test]
fn a_workload_that_is_not_there_yet_or_not_of_the_newest_form_is_said() {
    let set = |ready, updated| Workload {
        kind: "DaemonSet",
        name: "mesh-proxy".to_owned(),
        wanted: 3,
        ready,
        updated,
        ..Workload::default()
    };
    let stuck = PodFacts {
        name: "mesh-proxy-x".to_owned(),
        trouble: "ErrImagePull".to_owned(),
        ..PodFacts::default()
    };
    assert_eq!(workload(&set(3, 3), &[]).status, Status::Ok);
    let rolling = workload(&set(3, 1), std::slice::from_ref(&stuck));
    assert_eq!(rolling.status, Status::Warn);
    assert!(
        rolling.found.contains("1 of the newest form") && rolling.found.contains("ErrImagePull"),
        "{rolling:?}"
    );
    assert_eq!(workload(&set(0, 3), &[stuck]).status, Status::Fail);
    let none = Workload { kind: "Deployment", ..Workload::default() };
    assert!(workload(&none, &[]).found.contains("scaled to none"));
}

#[test]
fn controllers_that_are_silent_blind_or_without_a_leader_are_said() {
    assert_eq!(controllers(&state(&json!({}))).status, Status::Ok);
    assert!(controllers(&state(&json!({ "leader": false }))).found.contains("none of them leads"));
    let blind = controllers(&state(&json!({ "source": { "healthy": false, "error": "403" } })));
    assert!(blind.status == Status::Warn && blind.found.contains("403"), "{blind:?}");
    let silent = vec![("c-1".to_owned(), Err(anyhow::anyhow!("no answer")))];
    assert_eq!(controllers(&silent).status, Status::Fail);
    let mut one_of_two = state(&json!({}));
    one_of_two.extend(silent);
    assert_eq!(controllers(&one_of_two).status, Status::Warn);
    assert_eq!(controllers(&[]).status, Status::Fail);
}

#[test]
fn nodes_without_a_proxy_are_named() {
    let two = [("a".to_owned(), true), ("b".to_owned(), false)];
    let check = nodes(&two, &[]);
    assert!(
        check.found.contains("without: a") && check.found.contains("not ready themselves: b"),
        "{check:?}"
    );
    assert_eq!(nodes(&[], &[]).status, Status::Ok);
}

#[test]
fn proxies_that_are_away_or_refuse_are_named() {
    let proxy = |node: &str, sync| Proxy { node: node.to_owned(), sync, ..Proxy::default() };
    let status = |all: &[Proxy]| synced(all).status;
    assert_eq!(status(&[]), Status::Fail);
    assert_eq!(status(&[proxy("a", Sync::Synced), proxy("b", Sync::Behind)]), Status::Ok);
    assert_eq!(status(&[proxy("a", Sync::Away)]), Status::Warn);
    assert_eq!(status(&[proxy("a", Sync::Refused)]), Status::Fail);
    let slow = Proxy { behind_ms: Some(11_000), ..proxy("a", Sync::Behind) };
    assert_eq!(status(&[slow]), Status::Warn);
}

#[test]
fn certificates_and_versions_are_compared_over_the_mesh() {
    let check = certificates(&[row("a"), row("b")], &state(&json!({})), DAY);
    assert!(check.status == Status::Ok && check.found.contains("399 days"), "{check:?}");
    let ended = Row { certificate_left: Some(-1), ..row("b") };
    assert!(certificates(&[row("a"), ended], &state(&json!({})), DAY).found.contains("those of b"));
    let none = Row { certificate_left: None, ..row("b") };
    assert!(certificates(&[none], &state(&json!({})), DAY).found.contains("b have none"));
    assert_eq!(
        certificates(&[row("a")], &state(&json!({ "ca_expires": 5 * DAY })), DAY).status,
        Status::Warn
    );

    assert!(versions(&[row("a")], &state(&json!({}))).found.contains("all run 0.1.0"));
    let old = Row { version: "0.0.9".to_owned(), ..row("b") };
    let check = versions(&[row("a"), old], &state(&json!({})));
    assert!(check.status == Status::Warn && check.found.contains("0.0.9 on b"), "{check:?}");
}

#[test]
fn a_webhook_whose_ca_has_ended_is_a_failure() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let pem = params.self_signed(&key).unwrap().pem();
    let of = |pem: &str, now: u64| {
        use base64::Engine as _;
        let bundle = base64::engine::general_purpose::STANDARD.encode(pem);
        let found = json!({ "metadata": { "name": "selvage-validator" }, "webhooks": [{ "name": "x", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "clientConfig": { "caBundle": bundle,
            "service": { "namespace": "ns", "name": "mesh-webhook" } } }] });
        webhook(Some(&serde_json::from_value(found).unwrap()), "ns", now)
    };
    let end = 1_893_456_000;
    assert_eq!(last_end(pem.as_bytes()), Some(end));
    let status = |now| of(&pem, now).status;
    assert_eq!(
        (status(end - 100 * DAY), status(end - DAY), status(end)),
        (Status::Ok, Status::Warn, Status::Fail)
    );
    assert_eq!(of("", 0).status, Status::Fail);
    assert_eq!(webhook(None, "ns", 0).status, Status::Warn);
}

#[test]
fn definitions_are_compared_by_version_and_field() {
    let crd = |versions: &[&str], fields: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            fields.iter().map(|f| ((*f).to_owned(), json!({ "type": "string" }))).collect();
        let versions: Vec<Value> = versions
            .iter()
            .map(|v| {
                json!({ "name": v, "served": true, "schema": { "openAPIV3Schema": {
                "properties": { "spec": { "properties": { "list": { "items": { "properties": properties } } } } } } } })
            })
            .collect();
        json!({ "metadata": { "name": "things.example.com" }, "spec": { "versions": versions } })
    };
    let ours = [crd(&["v1", "v1beta1"], &["a", "b"])];
    let with = |there: Value| crds(&ours, &BTreeMap::from([("things.example.com".to_owned(), there)]));
    assert_eq!(crds(&ours, &BTreeMap::new()).status, Status::Fail);
    assert_eq!(with(crd(&["v1", "v1beta1"], &["a", "b", "c"])).status, Status::Ok);
    assert!(with(crd(&["v1"], &["a", "b"])).found.contains("lacks version v1beta1"));
    assert!(with(crd(&["v1", "v1beta1"], &["a"])).found.contains("field spec.list.b of v1"));
    // Every definition that we ship is like itself.
    let all = istio_compat::crd::all();
    let found = all.iter().map(|c| (c["metadata"]["name"].as_str().unwrap().to_owned(), c.clone())).collect();
    assert_eq!(crds(&all, &found).status, Status::Ok);
}

#[test]
fn rules_without_effect_are_named() {
    assert_eq!(rules(&state(&json!({}))).status, Status::Ok);
    let finding = json!([{ "level": "error", "object": { "kind": "VirtualService", "namespace": "shop", "name": "bad" } }]);
    let check = rules(&state(&json!({ "findings": finding })));
    assert!(check.status == Status::Warn && check.found.contains("VirtualService shop/bad"), "{check:?}");
}
