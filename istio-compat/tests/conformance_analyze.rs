//! Replays the cases of Istio's analyzer tests from the folder named by `CONFORMANCE_VECTORS`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use istio_compat::{
    analyze::{self, Options, World},
    yaml,
};
use serde_json::Value;

/// The time for which the certificates in the data are judged: they are either long expired or hold for a century.
const NOW: i64 = 1_780_000_000;

/// Files of the harness of the original tests that the data does not hold.
fn is_left_out(dir: &Path, case: &Value) -> Option<String> {
    ["meshConfigFile", "meshNetworksFile"].into_iter().find_map(|key| {
        let file = case[key].as_str()?;
        (!dir.join(file).exists()).then(|| format!("{file} is not there"))
    })
}

fn values(dir: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    // As the original tests read: a document that is no YAML takes none of the others with it.
    yaml::documents(&text).unwrap_or_else(|_| {
        let one = |document: &str| {
            yaml::documents(document).unwrap_or_else(|e| {
                println!("{file}: a document is left out: {e}");
                Vec::new()
            })
        };
        text.split("\n---").flat_map(one).collect()
    })
}

fn settings(dir: &Path, case: &Value, key: &str) -> Value {
    case[key].as_str().and_then(|file| values(dir, file).into_iter().next()).unwrap_or_default()
}

/// What we say, as the data says it: code and resource, sorted.
fn said(dir: &Path, case: &Value) -> Vec<(String, String)> {
    let mut world = World::new(Options {
        // As in the original tests: what names no namespace has none.
        default_namespace: String::new(),
        assume_ingress_gateway: true,
        now: NOW,
        mesh_config: settings(dir, case, "meshConfigFile"),
        mesh_networks: settings(dir, case, "meshNetworksFile"),
        ..Options::default()
    });
    for file in case["files"].as_array().unwrap() {
        for value in values(dir, file.as_str().unwrap()) {
            world.add(value);
        }
    }
    let analyzer = case["analyzer"].as_str().unwrap();
    // The analyzers of schemas are one with a parameter: the kind.
    let (name, kind) = match analyzer.split_once("(collections.") {
        Some((name, kind)) => (name, Some(kind.trim_end_matches(')'))),
        None => (analyzer, None),
    };
    if !analyze::ANALYZERS.iter().any(|a| a.name == name) {
        return vec![("no such analyzer".to_owned(), name.to_owned())];
    }
    let mut out: Vec<_> = analyze::run(&world, |a| a.name == name)
        .into_iter()
        .filter(|m| kind.is_none_or(|k| k == m.kind))
        .map(|m| (m.code.to_owned(), m.resource))
        .collect();
    out.sort();
    out
}

#[test]
fn analyze_cases() {
    let Some(dir) = std::env::var_os("CONFORMANCE_VECTORS") else {
        println!("skipped: CONFORMANCE_VECTORS names no folder of vectors");
        return;
    };
    let dir = Path::new(&dir).join("analyze");
    let index: Value = serde_json::from_str(&fs::read_to_string(dir.join("index.json")).unwrap()).unwrap();
    let dir = dir.join("testdata");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in index["cases"].as_array().unwrap() {
        let id = case["case"].as_str().unwrap();
        if let Some(reason) = is_left_out(&dir, case) {
            println!("skipped analyze/{id}: {reason}");
            skipped += 1;
            continue;
        }
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let mut expected: Vec<(String, String)> =
            case["expected"].as_array().unwrap().iter().map(|e| (text(&e[0]), text(&e[1]))).collect();
        expected.sort();
        let got = said(&dir, case);
        if got == expected {
            passed += 1;
        } else {
            failed += 1;
            let only = |a: &[(String, String)], b: &[(String, String)]| {
                let mut b = b.to_vec();
                let mut out = a.to_vec();
                out.retain(|x| b.iter().position(|y| y == x).map(|i| b.remove(i)).is_none());
                out
            };
            println!(
                "FAIL analyze/{id}: expected {:?}, got {:?}",
                only(&expected, &got),
                only(&got, &expected)
            );
        }
    }
    println!("\nanalyze: {passed} passed, {failed} failed, {skipped} skipped");
    assert_eq!(failed, 0, "cases fail");
}
