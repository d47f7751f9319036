//! The program itself: help, completion, configuration errors, signals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Output, Stdio},
};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
    command.args(args).env_remove("RUST_BACKTRACE");
    command
}

fn output(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

#[test]
fn help_and_completion_are_printed() {
    let help = output(&["--help"]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    for part in ["--source", "--state-dir", "dir:PATH", "MESH_CONTROLLER_STATE_DIR", "completion"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let bash = output(&["completion", "bash"]);
    assert!(bash.status.success() && String::from_utf8(bash.stdout).unwrap().contains("complete -F"));
}

#[test]
fn all_mistakes_are_listed_and_the_exit_code_is_2() {
    let wrong = output(&["--source", "ftp:x", "--listen", "nowhere", "--set", "nonsense=1"]);
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{text}");
    for part in ["source", "listen", "nonsense"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_effective_configuration_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("dir:{}", dir.path().display());
    let printed = program(&["--print-config", "--source", &source])
        .env("MESH_CONTROLLER_TRUST_DOMAIN", "example.org")
        .output()
        .unwrap();
    let config: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(
        (config["source"].as_str(), config["trustDomain"].as_str()),
        (Some(&*source), Some("example.org"))
    );
}

struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn it_serves_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("dir:{}", dir.path().display());
    let state = dir.path().join("state").display().to_string();
    let any = "127.0.0.1:0";
    let args = ["--source", &source, "--state-dir", &state, "--listen", any, "--metrics-listen", any];
    let mut child = Kill(
        program(&args)
            .args(["--admin-listen", any, "--log-format", "json"])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    // The log may go to either.
    let (out, err) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
    let (sender, lines) = std::sync::mpsc::sync_channel::<String>(1000);
    for reader in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
    }
    let started = lines.iter().find(|l| l.contains("started")).expect("a log line");
    let value: serde_json::Value = serde_json::from_str(&started).unwrap();
    let metrics =
        value["metrics"].as_str().or_else(|| value["fields"]["metrics"].as_str()).expect("an address");
    let mut answer = String::new();
    for _ in 0..200 {
        let mut tcp = TcpStream::connect(metrics).unwrap();
        tcp.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        answer.clear();
        tcp.read_to_string(&mut answer).unwrap();
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}
