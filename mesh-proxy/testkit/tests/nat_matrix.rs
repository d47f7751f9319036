//! A few cells of the NAT matrix, which `make nat-matrix` measures in full.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::process::Command;

use mesh_testkit::bins;
use serde_json::Value;

#[test]
fn pairs_that_can_be_punched_are_and_the_others_are_relayed() {
    for program in ["mesh-proxy", "mesh-controller", "meshctl", "lab", "echo"] {
        bins::find(program).unwrap();
    }
    let cells = [
        ("port-restricted:port-restricted", "punched"),
        ("symmetric:full-cone", "punched"),
        ("symmetric:symmetric", "relayed"),
        ("full-cone:port-restricted", "punched"),
    ];
    let list: Vec<&str> = cells.iter().map(|(cell, _)| *cell).collect();
    let output = Command::new(bins::find("nat-matrix").unwrap())
        .args(["--kinds", "port-restricted,full-cone,symmetric", "--transports", "quic", "--slack", "10"])
        .args(["--cells", &list.join(","), "-o", "json"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"));
    assert!(output.status.success(), "{found:#}\n{errors}");
    for (cell, path) in cells {
        let reached = found["cells"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| format!("{}:{}", c["from"].as_str().unwrap(), c["to"].as_str().unwrap()) == cell);
        assert_eq!(reached.unwrap()["reached"], path, "{cell}: {found:#}");
    }
}
