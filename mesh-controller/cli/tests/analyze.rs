//! `meshctl analyze` and `meshctl webhook` as a user calls them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn meshctl(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", text(&output.stdout), text(&output.stderr)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    root.join("examples").join(name).display().to_string()
}

#[test]
fn the_example_says_what_its_comments_say() {
    let output = meshctl(&["analyze", "-f", &example("analyze"), "-o", "json"], "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = json_of(&output);
    let found: BTreeSet<(&str, &str)> = said
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["code"].as_str().unwrap(), m["path"].as_str().unwrap()))
        .collect();
    let wanted = BTreeSet::from([
        ("IST0101", "spec.http[0].route[0].destination.host"),
        ("IST0101", "spec.http[1].route[0].destination.host"),
        ("IST0131", "spec.http[1].match[0]"),
        ("IST0173", "spec.subsets[1]"),
    ]);
    assert_eq!(found, wanted);
    let first = &said[0];
    let keys: BTreeSet<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let format = ["code", "name", "level", "kind", "namespace", "resource", "message", "path"];
    assert_eq!(keys, BTreeSet::from(format));
    assert_eq!(
        (&first["name"], &first["level"], &first["kind"]),
        (&json!("ReferencedResourceNotFound"), &json!("Error"), &json!("VirtualService"))
    );
    assert_eq!(
        (&first["namespace"], &first["resource"]),
        (&json!("shop"), &json!("VirtualService shop/reviews"))
    );
}

#[test]
fn codes_namespaces_and_exit_codes() {
    let shop = example("analyze");
    let only = meshctl(&["analyze", "-f", &shop, "--codes", "IST0131,ist0173", "-o", "json"], "");
    let said = json_of(&only);
    let codes: Vec<&str> = said.as_array().unwrap().iter().map(|m| m["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["IST0173", "IST0131"], "the worst first");
    let infos = meshctl(&["analyze", "-f", &shop, "--codes", "IST0131"], "");
    assert_eq!(infos.status.code(), Some(0), "nothing of level error");
    assert!(
        text(&infos.stdout)
            .starts_with("Info [IST0131] (VirtualService shop/reviews spec.http[1].match[0]) ")
    );
    let elsewhere = meshctl(&["analyze", "-f", &shop, "-n", "other", "-o", "json"], "");
    assert_eq!((elsewhere.status.code(), json_of(&elsewhere)), (Some(0), json!([])));
    let all = meshctl(&["analyze", "-f", &shop, "-n", "other", "-A", "-o", "json"], "");
    assert_eq!(json_of(&all).as_array().unwrap().len(), 4);
    for wrong in [&["analyze", "-f", "/nowhere"][..], &["analyze", "-f", &shop, "--codes", "IST9999"]] {
        assert_eq!(meshctl(wrong, "").status.code(), Some(2), "{wrong:?}");
    }
    let odd = meshctl(
        &["analyze", "-f", "-", "-o", "json"],
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\n",
    );
    assert_eq!((odd.status.code(), json_of(&odd)), (Some(0), json!([])));
    assert!(text(&odd.stderr).contains("Endpoints a is ignored"));
    let nothing = meshctl(&["analyze", "-f", "-"], "");
    assert!(text(&nothing.stdout).contains("Nothing to complain about"));
}

#[test]
fn a_cluster_that_is_not_there_is_no_finding() {
    let missing = meshctl(&["analyze", "--kubeconfig", "/nowhere/config"], "");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("/nowhere/config"), "{}", text(&missing.stderr));
}

#[test]
fn the_webhook_configuration_holds_the_ca_and_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let manifest = json_of(&meshctl(&["webhook", "--state-dir", state, "-o", "json"], ""));
    assert_eq!(manifest["kind"], "ValidatingWebhookConfiguration");
    let hook = &manifest["webhooks"][0];
    assert_eq!(hook["failurePolicy"], "Ignore");
    assert_eq!(hook["sideEffects"], "None");
    assert_eq!(hook["clientConfig"]["service"]["port"], 15017);
    assert!(hook["clientConfig"]["caBundle"].as_str().unwrap().len() > 100);
    let rules = hook["rules"].as_array().unwrap();
    assert!(rules.iter().any(|r| r["resources"].as_array().unwrap().contains(&json!("serviceentries"))));
    let closed =
        meshctl(&["webhook", "--state-dir", state, "--fail-closed", "--url", "https://a/validate"], "");
    let yaml = text(&closed.stdout);
    assert!(yaml.contains("failurePolicy: Fail") && yaml.contains("url: https://a/validate"), "{yaml}");
}
