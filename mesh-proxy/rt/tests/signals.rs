//! Signals of a real process: this one.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;
use std::time::Duration;

use node_rt::{Drain, DrainConfig, Readiness, Reason, Stage, Tasks, handle_signals};

fn send(signal: &str) {
    let status = Command::new("kill").arg(signal).arg(std::process::id().to_string()).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_does_not_wait() {
    let drain = Drain::new();
    let tasks = Tasks::new(drain.clone());
    handle_signals(&tasks).unwrap();
    // A connection that would keep the drain for an hour.
    let _busy = drain.guard();
    send("-TERM");
    assert_eq!(drain.begun().await, Reason::Signal("SIGTERM"));
    let config = DrainConfig { drain_for: Duration::from_secs(3600), ..DrainConfig::default() };
    let readiness = Readiness::new();
    let second = async {
        drain.reached(Stage::StopAccepting).await;
        send("-INT");
    };
    let (report, ()) = tokio::join!(drain.run(config, &readiness, &tasks), second);
    assert_eq!((report.reason, report.cut_off), (Reason::Signal("SIGTERM"), 1));
}
