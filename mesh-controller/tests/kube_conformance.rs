//! Gateway API's official conformance suite on the mesh: a real control plane, controller and proxies of this project,
//! one proxy with an address of its own for each Gateway, pods as programs in network namespaces. It takes many minutes
//! and runs when SELVAGE_GATEWAY_CONFORMANCE is set, as `make kube-test` does; its value may name tests (`A,B`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;
#[path = "kube/suite.rs"]
mod suite;

#[test]
fn gateway_apis_own_suite() {
    let wanted = std::env::var("SELVAGE_GATEWAY_CONFORMANCE").unwrap_or_default();
    if ["", "0"].contains(&wanted.as_str()) {
        println!("SELVAGE_GATEWAY_CONFORMANCE is not set: the suite of Gateway API is not run");
        return;
    }
    let only = (wanted != "1").then_some(wanted);
    let report = suite::run(only.as_deref());
    println!("{}", report.text);
    let known = suite::known();
    let new: Vec<&String> = report.failed.iter().filter(|t| !known.contains(&t.as_str())).collect();
    assert!(new.is_empty(), "failed, and not listed in docs/gateway-api.md: {new:?}");
    assert!(report.passed > 0, "no test ran");
}
