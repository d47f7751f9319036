//! The programs that everyone knows, each in its plainest fast set-up: two workers, kept-alive connections to the
//! backend, no access log. A peer that is not installed is named and left out.

mod envoy;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

pub(crate) use envoy::{envoy, envoy_mtls};

use crate::subject::{Backend, Group, Subject};

/// nginx's TCP proxy, a package of its own in Debian.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

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
    if find("nginx", &["/usr/sbin/nginx"]).is_ok()
        && !Path::new(NGINX_STREAM).exists()
        && nix::unistd::geteuid().is_root()
    {
        eprintln!("bench: installing libnginx-mod-stream");
        // Without it nginx-l4 is left out, which is said then.
        let _left_out = Command::new("apt-get").args(["install", "-y", "-q", "libnginx-mod-stream"]).output();
    }
    if let Err(error) = envoy::binary(tools) {
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
    let module = Path::new(NGINX_STREAM);
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
