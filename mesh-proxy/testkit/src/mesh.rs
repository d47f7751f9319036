//! A whole mesh in a world: controller, a proxy on each node, applications in pods. The demo and the world
//! tests build on it.

pub mod manifest;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    bins,
    echo::load::Report,
    lab::{Kind, LabError, Place, Proc, Spec, World, process::Output, world::Options},
};

/// An application in a pod.
#[derive(Clone, Debug)]
pub struct App {
    /// The pod.
    pub pod: String,
    /// Its `app` label.
    pub app: String,
    /// Its `version` label.
    pub version: String,
    /// What `echo serve` is told beyond its identity.
    pub args: Vec<String>,
    /// Whether the pod says that it is ready.
    pub ready: bool,
}

impl App {
    /// An application of that label and version in a pod of the world.
    #[must_use]
    pub fn new(pod: &str, app: &str, version: &str, args: &[&str]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self { pod: pod.to_owned(), app: app.to_owned(), version: version.to_owned(), args, ready: true }
    }
}

/// What a mesh is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The network.
    pub world: Spec,
    /// Where the controller runs.
    pub controller: String,
    /// Applications.
    pub apps: Vec<App>,
    /// Manifests: a Service without an address gets one, as an API server would give it.
    pub manifests: Vec<String>,
    /// Settings for every proxy, `KEY=VALUE`.
    pub proxy_settings: Vec<String>,
    /// More settings for the proxies of some nodes.
    pub node_settings: BTreeMap<String, Vec<String>>,
    /// Nodes on the public segment whose proxies are relays for the others.
    pub relays: Vec<String>,
    /// Outlive the process that made it.
    pub detached: bool,
    /// A user namespace even for root.
    pub unprivileged: bool,
}

/// A running mesh; gone when dropped.
#[derive(Debug)]
pub struct Mesh {
    /// Applications and proxies, by pod and node.
    pub procs: BTreeMap<String, Proc>,
    /// The controller, while it runs.
    pub controller: Option<Proc>,
    /// The network. Dropped after what runs in it.
    pub world: World,
    source: PathBuf,
    controller_node: String,
    settings: Vec<String>,
    node_settings: BTreeMap<String, Vec<String>>,
    relays: Vec<String>,
}

/// What makes a proxy a relay.
const RELAY: &str = "tunnel.relay.enabled=true";

/// A proxy that is not ready by then has failed.
const READY: Duration = Duration::from_secs(20);

impl Mesh {
    /// Brings all of it up and waits until every proxy is ready.
    ///
    /// # Errors
    /// When a part does not come up; its last words are in the error.
    pub fn up(plan: &Plan) -> Result<Self, LabError> {
        let mut mesh = Self::network(plan)?;
        mesh.start_controller()?;
        for app in &plan.apps {
            mesh.start_app(app)?;
        }
        for node in mesh.nodes() {
            let token = mesh.token(&node)?;
            mesh.start_proxy(&node, Some(&token))?;
        }
        for node in mesh.nodes() {
            mesh.wait_ready(&node, READY)?;
        }
        Ok(mesh)
    }

    /// The network and the manifests only.
    ///
    /// # Errors
    /// When the world does not come up.
    pub fn network(plan: &Plan) -> Result<Self, LabError> {
        let options = Options { detached: plan.detached, unprivileged: plan.unprivileged };
        let world = World::up_with(&plan.world, options)?;
        let source = world.folder("source")?;
        let mesh = Self {
            source,
            controller_node: plan.controller.clone(),
            settings: plan.proxy_settings.clone(),
            node_settings: plan.node_settings.clone(),
            relays: plan.relays.clone(),
            world,
            controller: None,
            procs: BTreeMap::new(),
        };
        for (i, text) in plan.manifests.iter().enumerate() {
            mesh.apply(&format!("manifest-{i}.yaml"), &manifest::with_addresses(text)?)?;
        }
        mesh.apply("nodes.yaml", &manifest::nodes(&mesh.world))?;
        mesh.apply("pods.yaml", &manifest::pods(&mesh.world, &plan.apps))?;
        Ok(mesh)
    }

    /// Names of the nodes that have a proxy: relays first, then those that have pods.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.world.places().values().filter(|p| p.kind == Kind::Node && p.pods.is_some());
        let others = nodes.map(|p| p.name.clone()).filter(|n| !self.relays.contains(n));
        self.relays.iter().cloned().chain(others).collect()
    }

    /// The folder that the controller watches.
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Writes a file of the folder that the controller watches, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<(), LabError> {
        let (path, new) = (self.source.join(file), self.source.join(format!(".{file}.new")));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(LabError::file("write", &path))
    }

    /// Removes such a file.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, file: &str) -> Result<(), LabError> {
        let path = self.source.join(file);
        fs::remove_file(&path).map_err(LabError::file("remove", &path))
    }

    /// Starts the controller, again if need be, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_controller(&mut self) -> Result<(), LabError> {
        let mut command = Command::new(bins::find("mesh-controller").map_err(LabError::Up)?);
        command
            .arg("--source")
            .arg(format!("dir:{}", self.source.display()))
            .arg("--state-dir")
            .arg(self.world.folder("controller")?);
        let place = self.world.node(&self.controller_node)?;
        if place.address6().is_some() {
            command.args(["--listen", "[::]:15012"]);
        }
        let process = place.spawn("mesh-controller", &command)?;
        self.controller = Some(process);
        let deadline = Instant::now() + READY;
        while !self.http_ok(place, "http://127.0.0.1:15014/healthz/ready") {
            let process = self.controller.as_mut();
            let (running, tail) = process.map_or((false, String::new()), |p| (p.running(), p.tail()));
            if !running || Instant::now() > deadline {
                return Err(LabError::Process(format!("the controller is not ready:\n{tail}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A join token for a node.
    ///
    /// # Errors
    /// What `meshctl` says.
    pub fn token(&self, node: &str) -> Result<String, LabError> {
        let mut command = Command::new(bins::find("meshctl").map_err(LabError::Up)?);
        command.args(["token", "create", "--node", node, "--ttl", "1h", "--controller"]);
        command.arg(self.controller_address()?).arg("--state-dir").arg(self.world.folder("controller")?);
        let output = command.output().map_err(LabError::file("run", Path::new("meshctl")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let token = text.split_whitespace().find(|w| w.starts_with("selvage1."));
        token.map(str::to_owned).ok_or_else(|| {
            LabError::Process(format!(
                "meshctl token create: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            ))
        })
    }

    fn controller_address(&self) -> Result<String, LabError> {
        Ok(SocketAddr::new(self.world.node(&self.controller_node)?.address(), 15012).to_string())
    }

    /// Where a node finds the controller: by IPv6 if that is all it has.
    fn controller_for(&self, place: Place<'_>) -> Result<String, LabError> {
        let controller = self.world.node(&self.controller_node)?;
        match controller.address6() {
            Some(address) if place.address().is_ipv6() => Ok(SocketAddr::new(address, 15012).to_string()),
            _ => self.controller_address(),
        }
    }

    /// Whether the router in front of a node leads to it without having been asked.
    fn has_forwarded_port(&self, place: Place<'_>) -> bool {
        let site = place.info().site.as_ref().and_then(|s| self.world.spec().sites.get(s));
        site.is_some_and(|s| s.forward.iter().any(|f| f.to == place.info().name))
    }

    /// Starts a node's proxy.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_proxy(&mut self, node: &str, token: Option<&str>) -> Result<(), LabError> {
        let place = self.world.node(node)?;
        let command = self.proxy_command(place, token)?;
        let process = place.spawn("mesh-proxy", &command)?;
        self.procs.insert(node.to_owned(), process);
        Ok(())
    }

    /// The command line of a node's proxy.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn proxy_command(&self, place: Place<'_>, token: Option<&str>) -> Result<Command, LabError> {
        let name = &place.info().name;
        let mut command = Command::new(bins::find("mesh-proxy").map_err(LabError::Up)?);
        command.args(["--node", name, "--controller", &self.controller_for(place)?, "--state-dir"]);
        command.arg(self.world.folder(&format!("proxy-{name}"))?);
        // The lab's machines have no `/usr/sbin` in an unprivileged user's PATH.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        if self.has_forwarded_port(place) {
            command.args(["--set", &format!("advertise=[{}]", place.public_address())]);
        }
        let relay = self.relays.contains(name).then(|| RELAY.to_owned());
        let own = self.node_settings.get(name).into_iter().flatten();
        for setting in self.settings.iter().chain(own).chain(&relay) {
            command.args(["--set", setting]);
        }
        if let Some(token) = token {
            let file = self.world.folder("tokens")?.join(name);
            fs::write(&file, token).map_err(LabError::file("write", &file))?;
            command.arg("--join-token").arg(format!("@{}", file.display()));
        }
        Ok(command)
    }

    /// Starts an application in its pod.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn start_app(&mut self, app: &App) -> Result<(), LabError> {
        let place = self.world.pod(&app.pod)?;
        let node = place.info().node.clone().unwrap_or_default();
        let mut command = Command::new(bins::find("echo").map_err(LabError::Up)?);
        command
            .args(["serve", "--name", &app.pod, "--version", &app.version, "--node", &node])
            .args(&app.args);
        let mut process = place.spawn("echo", &command)?;
        process.wait_for_log("echo ready", READY)?;
        self.procs.insert(app.pod.clone(), process);
        Ok(())
    }

    /// Waits until a node's proxy says that it is ready; how long that took.
    ///
    /// # Errors
    /// When it does not, with its last words.
    pub fn wait_ready(&mut self, node: &str, limit: Duration) -> Result<Duration, LabError> {
        let start = Instant::now();
        loop {
            if self.http_ok(self.world.node(node)?, "http://127.0.0.1:15021/healthz/ready") {
                return Ok(start.elapsed());
            }
            let process = self.procs.get_mut(node);
            let (running, tail) = process.map_or((false, String::new()), |p| (p.running(), p.tail()));
            if !running || start.elapsed() > limit {
                let what = if running { "is not ready" } else { "ended" };
                return Err(LabError::Process(format!("the proxy of {node} {what}:\n{tail}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a node's proxy says that it is ready, for callers that share the mesh.
    ///
    /// # Errors
    /// When it does not.
    pub fn until_ready(&self, node: &str, limit: Duration) -> Result<(), LabError> {
        let start = Instant::now();
        while !self.http_ok(self.world.node(node)?, "http://127.0.0.1:15021/healthz/ready") {
            if start.elapsed() > limit {
                return Err(LabError::Process(format!("the proxy of {node} is not ready")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn http_ok(&self, place: Place<'_>, url: &str) -> bool {
        self.call_at(place, url, &["--timeout", "1"]).is_ok_and(|r| r.by_status.contains_key(&200))
    }

    /// Runs `echo call` at a node or pod to its end.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn call(&self, at: &str, url: &str, args: &[&str]) -> Result<Report, LabError> {
        self.call_at(self.world.place(at)?, url, args)
    }

    fn call_at(&self, place: Place<'_>, url: &str, args: &[&str]) -> Result<Report, LabError> {
        let echo = bins::find("echo").map_err(LabError::Up)?;
        let mut argv = vec![echo.to_string_lossy().into_owned(), "call".to_owned(), url.to_owned()];
        argv.extend(["-o", "json"].iter().chain(args).map(|a| (*a).to_owned()));
        report(&place.exec(&argv)?)
    }

    /// Starts a load at a node or pod; [`Load::finish`] says what became of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load(&self, at: &str, url: &str, args: &[&str]) -> Result<Load, LabError> {
        let mut command = Command::new(bins::find("echo").map_err(LabError::Up)?);
        command.args(["call", url, "-o", "json", "--duration", "900"]).args(args);
        Ok(Load(self.world.place(at)?.spawn("load", &command)?))
    }

    /// A TCP connection from inside a node or pod: what is written to the child's standard input arrives at
    /// `to`, what comes back is its standard output.
    ///
    /// # Errors
    /// When the program is missing or there is no such place.
    pub fn pipe(&self, at: &str, to: &str) -> Result<Command, LabError> {
        let mut command = Command::new(bins::find("echo").map_err(LabError::Up)?);
        command.args(["pipe", to]);
        let mut wrapped = self.world.place(at)?.wrap(&command, None);
        wrapped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(wrapped)
    }

    /// The text of a node's metrics.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub fn metrics(&self, node: &str) -> Result<String, LabError> {
        let report = self.call(node, "http://127.0.0.1:15020/metrics", &[])?;
        if report.by_status.contains_key(&200) {
            return Ok(report.last_body);
        }
        Err(LabError::Process(format!("no metrics from {node}: {:?}", report.errors)))
    }

    /// Lets everything live on after this handle: for a world that was started detached.
    pub fn leave(self) -> World {
        for process in self.procs.into_values().chain(self.controller) {
            process.detach();
        }
        self.world
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct Load(Proc);

impl Load {
    /// Stops it and says what became of the calls.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn finish(mut self) -> Result<Report, LabError> {
        let status = self.0.stop(Duration::from_secs(15));
        if status.is_none() {
            return Err(LabError::Process("the load did not stop".to_owned()));
        }
        parse(&self.0.log())
    }
}

fn report(output: &Output) -> Result<Report, LabError> {
    parse(&output.stdout)
        .map_err(|_| LabError::Process(format!("echo call: {}{}", output.stdout, output.stderr)))
}

fn parse(text: &str) -> Result<Report, LabError> {
    serde_json::from_str(text).map_err(|e| LabError::Process(format!("echo call: {e} in {text}")))
}

/// The sum of a metric's values over all series whose labels hold every given text.
#[must_use]
pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let lines = text.lines().filter(|l| {
        let rest = l.strip_prefix(name);
        rest.is_some_and(|r| r.starts_with(['{', ' '])) && labels.iter().all(|label| l.contains(label))
    });
    lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).fold(0.0, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_matching_series() {
        let text =
            "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"2\"} 5\nab{x=\"1\"} 100\n";
        assert_eq!(metric(text, "a", &["x=\"1\""]), 7.0);
        assert_eq!(metric(text, "a", &[]), 12.0);
        assert_eq!(metric(text, "a", &["x=\"9\""]), 0.0);
    }
}
