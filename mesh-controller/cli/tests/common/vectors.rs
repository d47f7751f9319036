//! Reading test vectors and counting results.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// The folder of vectors; says so when there is none.
pub(crate) fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CONFORMANCE_VECTORS").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: CONFORMANCE_VECTORS names no folder of vectors");
    }
    dir
}

pub(crate) fn cases(dir: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["cases"].as_array().unwrap().clone()
}

/// The services of the world, as Kubernetes objects.
pub(crate) fn world_objects(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("routes/world.json")).unwrap();
    let services: Vec<Value> = serde_json::from_str(&text).unwrap();
    services.iter().map(service).collect()
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

/// Settings of the mesh that a case has, as Kubernetes holds them.
pub(crate) fn mesh_config(case: &Value) -> Option<Value> {
    let text = case.get("meshConfig")?.as_str()?;
    Some(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "istio", "namespace": "istio-system" }, "data": { "mesh": text },
    }))
}

/// Counts of one suite.
pub(crate) struct Report {
    suite: &'static str,
    passed: usize,
    failed: Vec<String>,
    advisory: usize,
    skipped: usize,
}

impl Report {
    pub(crate) fn new(suite: &'static str) -> Self {
        Self { suite, passed: 0, failed: Vec::new(), advisory: 0, skipped: 0 }
    }

    /// A case with its faults; one that is only advisory does not fail the suite.
    pub(crate) fn case(&mut self, id: &str, faults: &[String], advisory: bool) {
        if faults.is_empty() {
            self.passed += 1;
            return;
        }
        println!(
            "FAIL {}/{id}: {}{}",
            self.suite,
            faults.join(" | "),
            if advisory { " (advisory)" } else { "" }
        );
        if advisory {
            self.advisory += 1;
        } else {
            self.failed.push(id.to_owned());
        }
    }

    pub(crate) fn skip(&mut self, id: &str, reason: &str) {
        println!("SKIP {}/{id}: needs {reason}", self.suite);
        self.skipped += 1;
    }

    /// Prints the counts; fails when a case did.
    pub(crate) fn finish(self) {
        let failed = self.failed.len() + self.advisory;
        // Alone on its line, also behind what the test harness has begun to print.
        println!("\n{}: {} passed, {failed} failed, {} skipped", self.suite, self.passed, self.skipped);
        assert!(self.failed.is_empty(), "{} cases fail: {:?}", self.failed.len(), self.failed);
    }
}
