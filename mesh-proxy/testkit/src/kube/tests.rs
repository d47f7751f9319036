use super::*;

fn alive(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty())
}

#[test]
fn a_daemon_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = Command::new("sh");
    // A worker of its own, as nginx has: it must go too.
    command.args(["-c", "sleep 1000 & echo $!; wait"]);
    let daemon = Daemon::spawn("sleeper", &Wrap::none(), command, &log).unwrap();
    let mut pid = 0;
    eventually(Duration::from_secs(10), Duration::from_millis(10), || {
        pid = std::fs::read_to_string(&log).unwrap().trim().parse().map_err(|_| "no pid yet")?;
        Ok::<(), &str>(())
    })
    .unwrap();
    // In the middle of an exec a process has no command line either.
    eventually(Duration::from_secs(10), Duration::from_millis(10), || {
        if alive(pid) { Ok(()) } else { Err("not started") }
    })
    .unwrap();
    let start = Instant::now();
    drop(daemon);
    assert!(start.elapsed() < Duration::from_secs(30), "it ended by itself");
    eventually(Duration::from_secs(10), Duration::from_millis(10), || {
        if alive(pid) { Err("alive") } else { Ok(()) }
    })
    .unwrap();
}

#[test]
fn a_program_that_ends_is_reported_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo cannot bind >&2; exit 3"]);
    let mut daemon = Daemon::spawn("broken", &Wrap::none(), command, &dir.path().join("log")).unwrap();
    let error = daemon.wait_ready(Duration::from_secs(20), || Err("refused".into())).unwrap_err().to_string();
    assert!(error.contains("cannot bind") && error.contains("exit status: 3"), "{error}");
}

#[test]
fn a_prefix_keeps_arguments_and_environment() {
    let wrap = Wrap::prefix(["env", "A=1"]);
    let mut command = Command::new("sh");
    command.args(["-c", "echo $A $B"]).env("B", "2");
    let output = wrap.apply(command).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 2\n");
}
