//! The control side against a real controller: joining, following, going on without it, restarting without it,
//! garbage, and being replaced by another process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "control/gateway.rs"]
mod gateway;
#[path = "control/support.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use support::{Controller, Proxy, backend, config, free_port, get_by, pod, service};

const SOON: Duration = Duration::from_secs(10);
const WEB: &str = "http://web.default.svc.cluster.local/";

async fn world() -> (String, Controller) {
    let v1 = backend("v1", "127.0.0.2:0").await;
    let v2 = backend("v2", &format!("127.0.0.3:{}", v1.port())).await;
    let text = service("web", "10.96.0.1", v1.port())
        + &pod("web", "v1", &v1.ip().to_string(), "edge-a")
        + &pod("web", "v2", &v2.ip().to_string(), "edge-a");
    let controller = Controller::start(&[("world.yaml", text.clone())]).await;
    (text, controller)
}

fn only(version: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec:\n  host: web\n  \
         subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, labels: {{version: v2}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  \
         http:\n  - route: [{{destination: {{host: web, subset: {version}}}}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_follows_and_goes_on_without_the_controller() {
    let (_, mut controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    proxy.ready(SOON).await;
    assert!(proxy.running.shared.tables.load().by_vip("10.96.0.1".parse().unwrap(), 80).is_some());
    let (status, body) = proxy.get(WEB).await.unwrap();
    assert!(status == 200 && ["v1", "v2"].contains(&body.as_str()), "{status} {body}");
    assert!(proxy.metric("selvage_discovery_connected").await > 0.5);

    // A rule takes effect, and another one replaces it.
    for version in ["v1", "v2"] {
        controller.write("rule.yaml", &only(version));
        let took = proxy
            .until("the rule is here", |t| {
                t.service("web.default.svc.cluster.local").is_some_and(|s| {
                    s.virtual_hosts
                        .iter()
                        .any(|v| format!("{:?}", v.http[0].action).contains(&format!("{version:?}")))
                })
            })
            .await;
        println!("rule file to effect: {took:?}");
        for _ in 0..10 {
            assert_eq!(proxy.get(WEB).await.unwrap(), (200, version.to_owned()));
        }
    }
    let dump = proxy.admin("/config_dump").await;
    assert_eq!(dump["services"][0]["host"], "web.default.svc.cluster.local");
    assert_eq!(dump["services"][0]["virtual_hosts"][0]["source"], "default/web");
    assert_eq!(dump["services"][0]["endpoints"].as_array().unwrap().len(), 2);

    // This node is in the registry, with addresses: its report came back as a resource.
    proxy
        .until("this node's registry entry", |t| t.node("edge-a").is_some_and(|n| !n.peer_id.is_empty()))
        .await;

    // The controller is gone: nothing changes.
    controller.down().await;
    for _ in 0..10 {
        assert_eq!(proxy.get(WEB).await.unwrap(), (200, "v2".to_owned()));
    }
    // It comes back, and is followed again.
    controller.up().await;
    controller.write("rule.yaml", &only("v1"));
    proxy
        .until("the rule of the controller that came back", |t| {
            t.service("web.default.svc.cluster.local")
                .is_some_and(|s| format!("{:?}", s.virtual_hosts[0].http[0].action).contains("\"v1\""))
        })
        .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_a_controller_is_ready_from_the_snapshot() {
    let (_, mut controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted.clone()).await;
    proxy.ready(SOON).await;
    let peer_id = proxy.running.tunnel.peer_id();
    controller.down().await;
    proxy.stop().await;

    wanted.join_token = String::new().into();
    let start = Instant::now();
    let proxy = Proxy::start(wanted).await;
    proxy.ready(Duration::from_secs(2)).await;
    println!("ready without a controller after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(proxy.get(WEB).await.unwrap().0, 200);
    assert_eq!(proxy.running.tunnel.peer_id(), peer_id, "the same node");

    // Its certificate is still good for the controller that comes back.
    controller.up().await;
    controller.write("rule.yaml", &only("v2"));
    proxy
        .until("a rule", |t| !t.service("web.default.svc.cluster.local").unwrap().virtual_hosts.is_empty())
        .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_keeps_a_node_out_and_says_why() {
    let (_, controller) = world().await;
    let other = Controller::start(&[]).await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    // A token of another mesh: this controller's CA is not the one that it names.
    wanted.join_token = other.token("edge-a").into();
    wanted.controller = controller.address().to_string();
    let proxy = Proxy::start(wanted).await;
    let failed = async {
        while proxy.metric("selvage_certificate_failures_total").await < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, failed).await.expect("a failed attempt is counted");
    assert!(!proxy.readiness.is_ready());
    assert_eq!(proxy.readiness.pending(), ["configuration"]);
    assert!(!state.path().join("identity.pem").exists());
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_before_it_ends() {
    let controller = Controller::start_with(&[("w.yaml", service("web", "10.96.0.1", 80))], |c| {
        c.node_certificate_ttl = 9;
    })
    .await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    proxy.ready(SOON).await;
    let first = std::fs::read(state.path().join("identity.pem")).unwrap();
    let renewed = async {
        while std::fs::read(state.path().join("identity.pem")).unwrap() == first {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), renewed).await.expect("renewed");
    controller.write("w.yaml", &service("web", "10.96.0.2", 80));
    proxy.until("a change", |t| t.by_vip("10.96.0.2".parse().unwrap(), 80).is_some()).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_has_ended_joins_again_with_a_new_token() {
    let (_, controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted.clone()).await;
    proxy.ready(SOON).await;
    proxy.stop().await;
    // As after a long time in a drawer.
    let ended = controller.certificate("edge-a", -7 * 86_400);
    std::fs::write(state.path().join("identity.pem"), &ended).unwrap();
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    let joined = async {
        while std::fs::read_to_string(state.path().join("identity.pem")).unwrap() == ended {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, joined).await.expect("joined again");
    controller.write("rule.yaml", &only("v2"));
    proxy
        .until("a rule", |t| !t.service("web.default.svc.cluster.local").unwrap().virtual_hosts.is_empty())
        .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_follows_another_while_nodes_go_on() {
    let files = [("w.yaml", service("web", "10.96.0.1", 80))];
    let mut first = String::new();
    let controller = Controller::start_with(&files, |c| {
        // Long enough for a busy machine; it is also for how long a next CA is trusted before it signs.
        c.node_certificate_ttl = 12;
        first = support::ca_that_is_due(c);
    })
    .await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    proxy.ready(SOON).await;
    let held = || std::fs::read_to_string(state.path().join("identity.pem")).unwrap();
    let cas = || support::certificates(&held()).split_off(1);
    let first = support::certificates(&first).remove(0);
    // A second node joins by a token that names the first CA, when the next one signs already.
    let token = controller.token("edge-b");
    let mut seen = Vec::new();
    let mut round = 0;
    let gone = async {
        while cas().contains(&first) {
            let now = (cas().len(), cas()[0] == first);
            if seen.last() != Some(&now) {
                seen.push(now);
                // What the controller says reaches the node at each stage.
                round += 1;
                let vip = format!("10.96.1.{round}");
                controller.write("w.yaml", &service("web", &vip, 80));
                proxy.until("a change", |t| t.by_vip(vip.parse().unwrap(), 80).is_some()).await;
                if now == (2, false) {
                    let other = tempfile::tempdir().unwrap();
                    let mut wanted = config("edge-b", other.path());
                    wanted.join_token = token.clone().into();
                    let late = Proxy::start(wanted).await;
                    late.ready(SOON).await;
                    late.stop().await;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON * 12, gone).await.expect("the first CA is forgotten");
    assert_eq!(cas().len(), 1);
    // Both are trusted while the first one signs, and while the second one does.
    assert!(seen.ends_with(&[(2, true), (2, false)]), "{seen:?}");
    controller.write("w.yaml", &service("web", "10.96.2.1", 80));
    proxy.until("a change", |t| t.by_vip("10.96.2.1".parse().unwrap(), 80).is_some()).await;
    assert_eq!(proxy.metric("selvage_certificate_failures_total").await, 0.0);
    proxy.stop().await;
}

/// A node that was away while one CA followed another, or whose mesh was set up anew: it says so, and a token helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_certificate_of_a_former_ca_joins_again() {
    let (_, mut controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("token");
    let mut wanted = config("edge-a", &state.path().join("state"));
    std::fs::write(&file, controller.token("edge-a")).unwrap();
    wanted.join_token = format!("@{}", file.display()).into();
    let proxy = Proxy::start(wanted.clone()).await;
    proxy.ready(SOON).await;
    controller.down().await;
    controller.forget_ca();
    controller.up().await;
    let failed = async {
        while proxy.metric("selvage_certificate_failures_total").await < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, failed).await.expect("it tries in vain, and says so");
    // It goes on with what it has, and needs no restart for the new token.
    assert!(proxy.readiness.is_ready());
    std::fs::write(&file, controller.token("edge-a")).unwrap();
    controller.write("rule.yaml", &only("v2"));
    proxy
        .until("a rule", |t| !t.service("web.default.svc.cluster.local").unwrap().virtual_hosts.is_empty())
        .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_ready_in_a_mesh_that_never_rests() {
    let (_, controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    let unrest = async {
        for i in 0u32.. {
            controller.write("unrest.yaml", &service("unrest", "10.96.9.9", 1000 + (i % 1000) as u16));
            let address = format!("10.9.{}.{}", i / 250 % 250, i % 250 + 1);
            controller.write("pod.yaml", &pod("unrest", "v1", &address, "edge-b"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = proxy.ready(SOON) => {}
        () = unrest => {}
    }
    proxy.stop().await;
}

/// Calls without end, on connections of their own, that must all be answered.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(entrance: std::net::SocketAddr, callers: usize) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let one = |_| {
            let (stop, served) = (stop.clone(), served.clone());
            #[allow(clippy::disallowed_methods, reason = "joined in end()")]
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let (status, body) =
                        get_by(entrance, WEB).await.expect("no connection is refused or cut");
                    assert_eq!(status, 200, "{body}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let callers = (0..callers).map(one).collect();
        Self { stop, served, callers }
    }

    /// Waits for `n` more calls: whatever has happened, calls go on.
    async fn goes_on(&self, n: usize, what: &str) {
        let from = self.served.load(Ordering::Relaxed);
        let more = async {
            while self.served.load(Ordering::Relaxed) < from + n {
                assert!(
                    !self.callers.iter().any(tokio::task::JoinHandle::is_finished),
                    "a call failed: {what}"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(SOON, more).await.is_ok(), "calls stopped: {what}");
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for c in self.callers {
            c.await.unwrap();
        }
        self.served.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_fails_whatever_happens_to_the_controller() {
    let (text, mut controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let proxy = Proxy::start(wanted).await;
    proxy.ready(SOON).await;
    let load = Load::start(proxy.running.addresses.proxy.unwrap(), 2);
    load.goes_on(20, "at first").await;

    controller.write("world.yaml", "kind: [ broken\n\u{1}");
    controller.write("rule.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec: 7\n");
    load.goes_on(100, "broken files").await;

    controller.down().await;
    load.goes_on(100, "the controller is down").await;

    // Something else answers at its address, first with noise, then not at all.
    let noise = tokio::net::TcpListener::bind(controller.address()).await.unwrap();
    let heard = async {
        for _ in 0..2 {
            let (mut stream, _) = noise.accept().await.unwrap();
            let junk: Vec<u8> = (0..4096u32).map(|i| (i * 31 % 251) as u8).collect();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &junk).await.ok();
        }
        noise.accept().await.unwrap()
    };
    let silent = tokio::time::timeout(SOON, heard).await.expect("the proxy tries again and again");
    load.goes_on(100, "garbage instead of a controller").await;
    drop((silent, noise));

    controller.write("world.yaml", &text);
    controller.write("rule.yaml", &only("v1"));
    controller.up().await;
    proxy
        .until("the rule of the controller that came back", |t| {
            !t.service("web.default.svc.cluster.local").unwrap().virtual_hosts.is_empty()
        })
        .await;
    load.goes_on(100, "the controller is back").await;
    println!("{} calls, none failed", load.end().await);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_process_takes_over_without_a_refused_connection() {
    let (_, controller) = world().await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let entrance = free_port();
    wanted.listen.proxy = Some(entrance);
    wanted.listen.tunnel = free_port();
    let mut running = Proxy::start(wanted.clone()).await;
    running.ready(SOON).await;
    let load = Load::start(entrance, 4);
    for round in 0..2 {
        load.goes_on(20, "before").await;
        let next = Proxy::start(wanted.clone()).await;
        next.ready(Duration::from_secs(2)).await;
        // The one before drains because it was told so, not because we ask.
        let reason = running.running.until_drained(&running.tasks, &running.readiness).await;
        assert!(reason.to_string().contains("hot restart"), "round {round}: {reason}");
        load.goes_on(20, "after").await;
        running = next;
    }
    println!("{} calls over two hot restarts, none failed", load.end().await);
    running.stop().await;
}
