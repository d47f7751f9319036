//! Our CRDs on a real API server: it takes them as structural schemas, accepts Istio's own manifests unmodified, and
//! refuses what Istio's CRDs refuse.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;

use std::{collections::BTreeSet, path::Path, time::Duration};

use manifests::{install_crds, rules, vectors};
use mesh_testkit::kube::{KubeCluster, eventually};
use serde_json::{Value, json};

/// Kinds of ours.
fn is_ours(document: &str) -> bool {
    let of = |k: &istio_compat::types::KindInfo| {
        document.contains(&format!("kind: {}\n", k.kind))
            && document.contains(&format!("apiVersion: {}/", k.group))
    };
    istio_compat::types::KINDS.iter().any(of)
}

#[test]
fn the_api_server_takes_our_crds_and_judges_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = KubeCluster::start(dir.path()).unwrap();
    install_crds(&cluster);
    let crds: Value = serde_json::from_str(&cluster.kubectl(&["get", "crd", "-o", "json"]).unwrap()).unwrap();
    let conditions: Vec<&Value> = crds["items"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|c| c["status"]["conditions"].as_array().unwrap())
        .collect();
    assert!(!conditions.iter().any(|c| c["type"] == "NonStructuralSchema"), "{conditions:#?}");
    // The schema is published some time after the CRD serves.
    eventually(Duration::from_secs(20), Duration::from_millis(200), || {
        let explained = cluster
            .kubectl(&["explain", "virtualservice.spec.http.route.weight"])
            .map_err(|e| e.to_string())?;
        if explained.contains("integer") { Ok(()) } else { Err(explained) }
    })
    .unwrap();
    // A second apply changes nothing: what an upgrade does.
    install_crds(&cluster);

    let (samples, which) = rules(&[]);
    let mut accepted = 0;
    for file in yaml_files(&samples) {
        let objects = manifest_of_our_kinds(&cluster, &file);
        if !objects.is_empty() {
            let (_, errors) = dry_run(&cluster, objects);
            assert_eq!(errors, "", "{}", file.display());
            accepted += 1;
        }
    }
    println!("{accepted} files of {which} are accepted unmodified");
    assert!(accepted > 0);

    if let Some(vectors) = vectors() {
        for kind in istio_compat::types::KINDS.iter().map(|k| k.kind).chain(["crds"]) {
            judges_as_istios_crds_do(&cluster, &vectors, kind);
        }
    } else {
        println!("CONFORMANCE_VECTORS is not set: the cases of Istio's CRDs are not compared");
    }
}

fn yaml_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    files
}

/// The objects of a file whose kinds we define, as kubectl reads them.
fn manifest_of_our_kinds(cluster: &KubeCluster, file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let documents = text.split("\n---").map(|d| d.trim_start_matches("---"));
    let ours = documents.filter(|d| is_ours(d));
    ours.map(|document| {
        let args = ["create", "--dry-run=client", "--validate=ignore", "-o", "json", "-f", "-"];
        let json = cluster.kubectl_as(&cluster.admin_kubeconfig(), &args, document).unwrap();
        serde_json::from_str(&json).unwrap()
    })
    .collect()
}

/// Asks the API server without storing; returns the names that it accepts, and its complaints.
fn dry_run(cluster: &KubeCluster, mut items: Vec<Value>) -> (BTreeSet<String>, String) {
    for item in &mut items {
        item["metadata"]["namespace"] = "default".into(); // theirs do not exist here
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), list).unwrap();
    // kubectl goes on after a refusal, but then fails and says nothing of what was accepted on standard output.
    let path = file.path().to_str().unwrap();
    let args = ["create", "--dry-run=server", "--validate=ignore", "-o", "name", "-f", path];
    let (out, errors) = cluster.kubectl_output(&args).unwrap();
    let names = out.lines().filter_map(|l| Some(l.split_once('/')?.1.to_owned())).collect();
    (names, errors)
}

/// The cases of a kind, or of the CRDs themselves, where the verdict is theirs.
fn judges_as_istios_crds_do(cluster: &KubeCluster, vectors: &Path, kind: &str) {
    let Ok(text) = std::fs::read_to_string(vectors.join(format!("validation/{kind}.json"))) else { return };
    let data: Value = serde_json::from_str(&text).unwrap();
    let verdict = |c: &Value| if kind == "crds" { c["valid"].clone() } else { c["crd_valid"].clone() };
    let known = |c: &&Value| {
        let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        istio_compat::parse::is_known(&text("apiVersion"), &text("kind"))
    };
    let cases: Vec<&Value> =
        data["cases"].as_array().unwrap().iter().filter(|c| verdict(c).is_boolean()).filter(known).collect();
    let objects = cases.iter().enumerate().map(|(i, case)| {
        json!({ "apiVersion": case["apiVersion"], "kind": case["kind"], "metadata": { "name": format!("case-{i}") }, "spec": case["spec"] })
    });
    let (accepted, errors) = dry_run(cluster, objects.collect());
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let ours = accepted.contains(&format!("case-{i}"));
        if verdict(case) != ours {
            let said: Vec<&str> = errors.lines().filter(|l| l.contains(&format!("\"case-{i}\""))).collect();
            wrong.push(format!(
                "{}: Istio's CRD says {}, ours {ours}: {}",
                case["name"],
                verdict(case),
                said.join(" ")
            ));
        }
    }
    println!("{kind}: {} of {} CRD verdicts are Istio's", cases.len() - wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
