//! The demo passes without root, says so in its last line, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::process::Command;

use mesh_testkit::{bins, lab::state};

#[test]
fn the_demo_passes_without_root() {
    // The demo takes its programs from its own folder.
    for program in ["mesh-proxy", "mesh-controller", "meshctl", "lab", "echo"] {
        bins::find(program).unwrap();
    }
    let output = Command::new(bins::find("demo").unwrap()).arg("--unprivileged").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(last.starts_with("demo: ") && last.ends_with(" passed, 0 failed, 0 skipped"), "{last}");
    assert!(!text.contains('\x1b'), "colours only on a terminal");
    assert!(!state::all().iter().any(|(n, _)| n.starts_with("demo-")), "nothing is left");
}
