//! Replays the route vectors that the folder named by `CONFORMANCE_VECTORS` holds through the real data path: each
//! case's objects are compiled as the controller does, a worker's listener takes the request, and upstreams on
//! loopback, one for each destination, say what reached them. Without the variable nothing is tested, and it is said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "test servers and clients belong to the test's own runtime")]
#![allow(unreachable_pub, missing_docs, dead_code, reason = "modules of several test programs")]

#[path = "conformance/check.rs"]
mod check;
#[path = "conformance/mesh.rs"]
mod mesh;
#[path = "outbound/upstream.rs"]
mod upstream;
#[path = "outbound/world.rs"]
mod world;

use std::path::{Path, PathBuf};

use check::Faults;
use mesh::Mesh;
use serde_json::Value;

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CONFORMANCE_VECTORS").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: CONFORMANCE_VECTORS names no folder of vectors");
    }
    dir
}

fn read(dir: &Path, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(file)).unwrap()).unwrap()
}

/// Runs every case of a suite and prints the counts.
fn run(suite: &str, file: &str, one: impl AsyncFn(&Mesh, &Value) -> Faults) {
    let Some(dir) = vectors() else { return };
    let world = read(&dir, "routes/world.json");
    let cases = read(&dir, file);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut passed, mut failed, mut advisory) = (0, 0, 0);
    for case in cases["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let faults = runtime.block_on(async {
            let mesh = Mesh::start(&world, case).await;
            let mut faults = one(&mesh, case).await;
            if !faults.0.is_empty() {
                faults.0.extend(mesh.problems.iter().cloned());
            }
            faults
        });
        if faults.0.is_empty() {
            passed += 1;
        } else if case.get("note").is_some() {
            println!("FAIL {suite}/{id}: {} (advisory)", faults.0.join(" | "));
            advisory += 1;
        } else {
            println!("FAIL {suite}/{id}: {}", faults.0.join(" | "));
            failed += 1;
        }
    }
    println!("{suite}: {passed} passed, {} failed, 0 skipped", failed + advisory);
    assert_eq!(failed, 0, "{failed} cases of {suite} fail");
    let strict = std::env::var_os("CONFORMANCE_STRICT").is_some();
    assert!(!strict || advisory == 0, "{advisory} advisory cases of {suite} fail");
}

#[test]
fn http() {
    run("routes/http", "routes/http.json", check::http);
}

#[test]
fn l4() {
    run("routes/l4", "routes/l4.json", check::l4);
}
