//! Replays Istio's validation cases and samples from the folder named by `CONFORMANCE_VECTORS`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use istio_compat::{ParseError, parse, translate, types::Resource, validate, yaml};
use serde_json::{Value, json};

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CONFORMANCE_VECTORS").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: CONFORMANCE_VECTORS names no folder of vectors");
    }
    dir
}

/// What would be said against an object. VirtualServices and DestinationRules are judged by the webhook alone, as are
/// counts of certificates, of which Istio's webhook only warns.
fn errors(object: &Value) -> Vec<String> {
    match parse(object) {
        Err(e) => vec![e.to_string()],
        Ok(parsed) => {
            validate::judge(&parsed).errors.iter().map(|f| format!("{}: {}", f.path, f.message)).collect()
        }
    }
}

#[test]
fn admission() {
    let Some(dir) = vectors() else { return };
    let mut all_failed = Vec::new();
    let mut files: Vec<_> =
        fs::read_dir(dir.join("validation")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    for path in files {
        let kind = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for case in file["cases"].as_array().unwrap() {
            let object = json!({
                "apiVersion": case["apiVersion"], "kind": case["kind"],
                "metadata": case["metadata"], "spec": case["spec"],
            });
            let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
            if !parse::is_known(&text("apiVersion"), &text("kind")) {
                skipped += 1;
                continue;
            }
            let errors = errors(&object);
            if errors.is_empty() == (case["valid"] == true) {
                passed += 1;
            } else {
                failed += 1;
                let expected = if case["errors"].is_array() {
                    &case["errors"]
                } else {
                    &case["expected_error_contains"]
                };
                println!("FAIL validation/{kind}/{}: expected {expected}, got {errors:?}", case["name"]);
                all_failed.push(case["name"].clone());
            }
        }
        println!("\nvalidation/{kind}: {passed} passed, {failed} failed, {skipped} skipped");
    }
    assert!(all_failed.is_empty(), "{} cases fail", all_failed.len());
}

/// One object of each kind and version that Istio accepts.
#[test]
fn dataset() {
    let Some(dir) = vectors() else { return };
    let (mut passed, mut skipped) = (0, 0);
    for file in fs::read_dir(dir.join("validation/dataset")).unwrap().map(|e| e.unwrap().path()) {
        for document in yaml::documents(&fs::read_to_string(&file).unwrap()).unwrap() {
            match parse(&document) {
                Err(ParseError::OtherKind { .. }) => skipped += 1,
                Err(e) => panic!("{}: {e}", file.display()),
                Ok(parsed) => {
                    assert_eq!(validate::judge(&parsed).errors, [], "{}", file.display());
                    passed += 1;
                }
            }
        }
    }
    println!("\nvalidation/dataset: {passed} passed, 0 failed, {skipped} skipped");
}

fn yaml_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            yaml_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            out.push(path);
        }
    }
    out.sort();
}

#[test]
fn samples() {
    let Some(dir) = vectors() else { return };
    let mut files = Vec::new();
    yaml_files(&dir.join("samples"), &mut files);
    let (mut objects, mut unsupported, mut templates) = (0, 0, 0);
    for file in files {
        let name = file.strip_prefix(&dir).unwrap().display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        if text.contains("{{") {
            templates += 1;
            continue;
        }
        let documents = yaml::documents(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        for document in documents {
            let parsed = match parse(&document) {
                Ok(parsed) => parsed,
                Err(ParseError::OtherKind { .. }) => continue,
                Err(e) => panic!("{name}: {e}"),
            };
            objects += 1;
            let key = parsed.resource.meta().key();
            // Old samples have fields that Istio has dropped; they must be named, not refused.
            for finding in &parsed.unknown {
                println!("{name} {key}: {} {}", finding.path, finding.message);
            }
            for finding in &parsed.unsupported {
                unsupported += 1;
                println!("{name} {key}: {} has no effect: {}", finding.path, finding.message);
            }
            let verdict = validate::judge(&parsed);
            // Some files for Istio's own integration tests are wrong on purpose.
            if !verdict.is_valid() && name.contains("_tests/integration") {
                println!("{name} {key}: refused: {:?}", verdict.errors);
                continue;
            }
            assert!(verdict.is_valid(), "{name} {key}: {:?}", verdict.errors);
            translates(&parsed.resource, &name);
        }
    }
    println!(
        "samples: {objects} objects read, {unsupported} fields without effect named, {templates} templates left out"
    );
    assert!(objects > 0);
}

fn translates(resource: &Resource, name: &str) {
    let ctx = translate::Context::default();
    match resource {
        Resource::VirtualService(vs) => {
            let hosts = translate::virtual_service(vs, &ctx, &translate::no_delegates);
            assert_eq!(hosts.len(), vs.spec.hosts.len(), "{name}: hosts");
            for (_, host) in &hosts {
                assert_eq!(
                    host.http.len(),
                    vs.spec.http.iter().filter(|r| r.delegate.is_none()).count(),
                    "{name}"
                );
                assert_eq!(
                    (host.tcp.len(), host.tls.len()),
                    (vs.spec.tcp.len(), vs.spec.tls.len()),
                    "{name}"
                );
            }
        }
        Resource::DestinationRule(dr) => {
            let (_, policy) = translate::destination_rule(dr, &ctx).expect("exported to somebody");
            assert_eq!(policy.subsets.len(), dr.spec.subsets.len(), "{name}");
        }
        _ => {}
    }
}
