//! The descriptor limit, in a process of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::File;
use std::process::Command;

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let limit = "--nofile=64:300";
    let status = Command::new("prlimit").args([limit, "--pid", &std::process::id().to_string()]).status();
    assert!(status.unwrap().success());
    let open = || {
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.len()
    };
    assert!(open() < 64);
    assert_eq!(node_rt::raise_descriptor_limit(), 300);
    assert!(open() > 200);
    assert_eq!(node_rt::raise_descriptor_limit(), 300);
}
