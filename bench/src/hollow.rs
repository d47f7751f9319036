//! Many nodes in one process, each a whole proxy without capture and DNS, against one relay and one controller: what a
//! node costs each of them, and how long it takes until all are reached again after the relay was restarted.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use mesh_testkit::{bins, kube::Daemon};
use node_rt::{Drain, Readiness, Tasks};
use serde_json::{Value, json};

use crate::{
    process::{cpu_seconds, rss_mib},
    report::{NODE_CPU, NODE_RSS, REACHED, Report},
    subject,
    world::NODES,
};

/// Nodes of a whole run, and of a look.
const COUNT: [usize; 2] = [500, 50];
const LIMIT: Duration = Duration::from_secs(180);
/// How long idle nodes are looked at.
const IDLE: Duration = Duration::from_secs(20);
/// Nodes that start at the same time: as after a power cut, but with the join's key exchange done by two cores.
const AT_ONCE: usize = 16;
const XDS: u16 = 18_012;
const METRICS: u16 = 18_014;
const ADMIN: u16 = 18_016;
/// Base of the relay's ports.
const RELAY: u16 = 19_000;
const RELAY_METRICS: u16 = RELAY + 20;
const HELD: &str = "selvage_relay_reservations";

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Runs the suite.
pub(crate) fn measure(dir: &Path, quick: bool, report: &mut Report) -> Result<()> {
    let count = COUNT[usize::from(quick)];
    let dir = dir.join("hollow");
    let objects = dir.join("objects");
    fs::create_dir_all(&objects)?;
    let names = (0..count).map(node_name).chain(["relay".to_owned()]);
    let nodes: Vec<Value> = names
        .map(|name| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }))
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": nodes });
    fs::write(objects.join("nodes.json"), list.to_string())?;
    let state = dir.join("state");
    let controller = controller(&dir, &objects, &state)?;
    let relay = relay(&dir, &state)?;
    let before = [cpu_seconds(&[controller.pid()]), rss_mib(&[controller.pid()]), rss_mib(&[relay.pid()])];

    // The operator's part, not the nodes'.
    let tokens = dir.join("tokens");
    fs::create_dir_all(&tokens)?;
    make_tokens(count, &tokens, &state)?;

    eprintln!("bench: {count} nodes in one process");
    let scenario = format!("{count}-nodes");
    let start = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("hollow").args(["--nodes", &count.to_string()]).arg("--dir").arg(&dir);
    let ready = local(ADMIN + 1);
    command.args(["--ready", &ready.to_string()]);
    let hollow = subject::start_within("hollow", &dir, command, ready, LIMIT)?;
    reached(count).with_context(|| format!("logs are in {}", dir.display()))?;
    report.add(["hollow", &scenario, "all-joined"], REACHED, 0, start.elapsed().as_secs_f64(), None);

    let each = |mib: f64| mib * 1024.0 / count as f64;
    report.add(["hollow", &scenario, "mesh-proxy"], NODE_RSS, 0, each(rss_mib(&[hollow.pid()])), None);
    let growth = rss_mib(&[controller.pid()]) - before[1];
    report.add(["hollow", &scenario, "mesh-controller"], NODE_RSS, 0, each(growth), None);
    report.add(["hollow", &scenario, "relay"], NODE_RSS, 0, each(rss_mib(&[relay.pid()]) - before[2]), None);
    let joined = cpu_seconds(&[controller.pid()]) - before[0];
    report.add(["hollow", "join", "mesh-controller"], NODE_CPU, 0, joined * 1000.0 / count as f64, None);
    idle(&scenario, [("mesh-proxy", &hollow), ("mesh-controller", &controller), ("relay", &relay)], report);

    drop(relay);
    let start = Instant::now();
    let _relay = self::relay(&dir, &state)?;
    reached(count).context("after the relay's restart")?;
    let back = start.elapsed().as_secs_f64();
    report.add(["hollow", &scenario, "relay-restarted"], REACHED, 0, back, None);
    Ok(())
}

/// CPU that each program spends on a node in a minute while nothing happens.
fn idle(scenario: &str, programs: [(&str, &Daemon); 3], report: &mut Report) {
    let now = || programs.map(|(_, p)| cpu_seconds(&[p.pid()]));
    let before = now();
    std::thread::sleep(IDLE);
    let count = scenario.split('-').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(1.0);
    for (i, after) in now().into_iter().enumerate() {
        let millis = (after - before[i]) * 1000.0 * 60.0 / IDLE.as_secs_f64() / count;
        report.add(["hollow", &format!("{scenario}-idle-minute"), programs[i].0], NODE_CPU, 0, millis, None);
    }
}

/// Waits until the relay holds a reservation of every node.
fn reached(count: usize) -> Result<()> {
    let start = Instant::now();
    loop {
        let held = gauge().unwrap_or_default();
        if held >= count as f64 {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("{held} of {count} nodes have a reservation after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn gauge() -> Option<f64> {
    let mut stream = TcpStream::connect_timeout(&local(RELAY_METRICS), Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().find_map(|l| l.strip_prefix(HELD)?.trim().parse().ok())
}

fn node_name(i: usize) -> String {
    format!("edge-{i}")
}

fn find(program: &str) -> Result<PathBuf> {
    bins::find(program).map_err(|e| anyhow!("{program}: {e}"))
}

fn controller(dir: &Path, objects: &Path, state: &Path) -> Result<Daemon> {
    let mut command = Command::new(find("mesh-controller")?);
    command
        .arg("--source")
        .arg(format!("dir:{}", objects.display()))
        .arg("--state-dir")
        .arg(state)
        .args(["--listen", &local(XDS).to_string(), "--metrics-listen", &local(METRICS).to_string()])
        .args(["--admin-listen", &local(ADMIN).to_string(), "--log-level", "warn"]);
    subject::start("hollow-controller", dir, command, local(XDS))
}

fn token(state: &Path, node: &str) -> Result<String> {
    let mut command = Command::new(find("meshctl")?);
    command.args(["token", "create", "--node", node, "--controller", &local(XDS).to_string(), "--state-dir"]);
    let token = command.arg(state).output().context("run meshctl")?;
    if !token.status.success() {
        bail!("meshctl token create: {}", String::from_utf8_lossy(&token.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&token.stdout).trim().to_owned())
}

/// A token for each node, in a file of its name.
fn make_tokens(count: usize, to: &Path, state: &Path) -> Result<()> {
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..4)
            .map(|maker| {
                scope.spawn(move || -> Result<()> {
                    for i in (maker..count).step_by(4) {
                        let name = node_name(i);
                        fs::write(to.join(&name), token(state, &name)?)?;
                    }
                    Ok(())
                })
            })
            .collect();
        makers.into_iter().try_for_each(|m| m.join().map_err(|_| anyhow!("making tokens"))?)
    })
}

fn relay(dir: &Path, state: &Path) -> Result<Daemon> {
    let at = |port: u16| local(RELAY + port).to_string();
    let config = json!({
        "node": "relay",
        "state_dir": dir.join("relay"),
        "controller": local(XDS).to_string(),
        "join_token": token(state, "relay")?,
        "workers": 2,
        "listen": {
            "outbound": at(1), "tunnel": format!("0.0.0.0:{}", RELAY + 8), "admin": at(0), "metrics": at(20),
            "health": at(21), "proxy": at(80),
        },
        "dns": { "enabled": false },
        "capture": { "enabled": false },
        "advertise": [NODES],
        "tunnel": { "relay": { "enabled": true }, "nat": { "mdns": false, "upnp": false } },
        "log_level": "warn",
    });
    let file = dir.join("relay.yaml");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(find("mesh-proxy")?);
    command.arg("--config").arg(file);
    subject::start("hollow-relay", dir, command, local(RELAY + 21))
}

/// The process of the nodes: starts them, then listens at `ready` until it is ended.
pub(crate) fn run(nodes: usize, dir: &Path, ready: SocketAddr) -> Result<()> {
    node_rt::install_crypto_provider();
    node_rt::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut running = Vec::with_capacity(nodes);
        for first in (0..nodes).step_by(AT_ONCE) {
            let some = (first..nodes.min(first + AT_ONCE)).map(|i| node(dir, i));
            for started in futures::future::join_all(some).await {
                running.push(started?);
            }
        }
        let _ready = tokio::net::TcpListener::bind(ready).await?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

async fn node(dir: &Path, i: usize) -> Result<(mesh_proxy::app::Running, Tasks, Readiness)> {
    let name = node_name(i);
    let token = fs::read_to_string(dir.join("tokens").join(&name))?;
    let any = local(0);
    let mut config = mesh_proxy::Config {
        node: name.clone(),
        state_dir: dir.join("nodes").join(&name),
        controller: local(XDS).to_string(),
        join_token: token.into(),
        workers: 1,
        ..mesh_proxy::Config::default()
    };
    config.capture.enabled = false;
    config.dns.enabled = false;
    // So many nodes are on no one LAN.
    config.tunnel.nat.mdns = false;
    config.tunnel.nat.upnp = false;
    let listen = &mut config.listen;
    [listen.outbound, listen.tunnel, listen.admin, listen.metrics, listen.health] = [any; 5];
    listen.proxy = Some(any);
    let (tasks, readiness) = (Tasks::new(Drain::new()), Readiness::new());
    let running = mesh_proxy::app::start(Arc::new(config), &tasks, &readiness, None)
        .await
        .with_context(|| format!("start {name}"))?;
    Ok((running, tasks, readiness))
}
