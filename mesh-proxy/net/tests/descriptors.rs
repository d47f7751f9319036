//! What happens when the process runs out of descriptors. A process of its own, because the limit is.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::File;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_net::listen::{AcceptErrors, accept, tcp_reuseport};
use tokio::net::TcpStream;

#[tokio::test]
async fn accepting_pauses_while_there_are_no_descriptors_and_goes_on_after() {
    let limited =
        Command::new("prlimit").args(["--nofile=256", "--pid", &std::process::id().to_string()]).status();
    assert!(limited.unwrap().success());
    let listener = tcp_reuseport("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    assert!(hoard.len() > 100 && hoard.len() < 256);
    let errors = AcceptErrors::default();
    let mut accepting = std::pin::pin!(accept(&listener, &errors));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut accepting).await;
    assert!(early.is_err(), "accepted without a descriptor");
    let tries = errors.resource.load(Ordering::Relaxed);
    assert!((1..20).contains(&tries), "{tries} tries in half a second: it spins");
    drop(hoard);
    let (_, peer) = accepting.await;
    assert_eq!(peer, client.local_addr().unwrap());
}
