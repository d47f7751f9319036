//! The test cluster itself: pods run, reach each other at a ClusterIP, and are told what they are; and when its owner is
//! killed, nothing of it is left on the machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use mesh_testkit::{
    bins,
    cluster::{possible, remove_leftovers},
    kube::eventually,
};

const POD: &str = r#"{ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one", "labels": { "app": "one" } },
    "spec": { "containers": [{ "name": "echo", "image": "selvage/echo:test", "imagePullPolicy": "IfNotPresent",
        "args": ["serve", "--name", "one", "--http", "8080"] }] } }"#;

#[test]
fn a_cluster_of_a_killed_owner_leaves_nothing() {
    if let Err(why) = possible() {
        println!("skipped: {why}");
        return;
    }
    let program = bins::find("cluster").unwrap();
    let mut owner = Command::new(&program)
        .args(["up", "alone", "--programs", "echo", "--name", "killed"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let up = lines.map_while(Result::ok).find(|l| l.contains("Ctrl-C"));
    assert!(up.is_some(), "the cluster did not come up");
    let kubectl = |args: &[&str]| {
        let output =
            Command::new(&program).args(["--name", "killed", "kubectl"]).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let pod = std::env::temp_dir().join(format!("selvage-pod-{}.json", std::process::id()));
    std::fs::write(&pod, POD).unwrap();
    assert!(kubectl(&["apply", "-f", pod.to_str().unwrap()]).0);
    std::fs::remove_file(&pod).unwrap();
    assert!(kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]).0);
    assert!(kubectl(&["expose", "pod", "one", "--port=8080"]).0);
    let call = ["exec", "one", "--", "/usr/local/bin/echo", "call", "http://one:8080/", "-n", "3"];
    eventually(Duration::from_secs(20), Duration::from_millis(300), || {
        let (called, said) = kubectl(&call);
        if called { Ok(()) } else { Err(said) }
    })
    .unwrap();
    assert!(!groups("killed").is_empty() && processes("killed") > 5);

    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually(Duration::from_secs(20), Duration::from_millis(100), || {
        remove_leftovers();
        let left = (processes("killed"), groups("killed"));
        if left == (0, Vec::new()) { Ok(()) } else { Err(left) }
    })
    .unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("killed-"), "{mounts}");
}

/// Processes of that world, containers' too: by what they were started with.
fn processes(world: &str) -> usize {
    let wanted = format!("/{world}-");
    let lines = |pid: &Path| std::fs::read(pid.join("cmdline")).unwrap_or_default();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|p| String::from_utf8_lossy(&lines(&p.path())).contains(&wanted)).count()
}

/// Control groups of that world.
fn groups(world: &str) -> Vec<String> {
    let wanted = format!("selvage-{world}-");
    let mut found = Vec::new();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let inside = std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten();
        let names =
            inside.chain(std::iter::once(hierarchy)).map(|e| e.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|n| n.starts_with(&wanted)));
    }
    found
}
