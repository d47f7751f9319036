//! What a test does with a running cluster: kubectl, Helm, images, the power switch of a node, and what a node keeps in its
//! kernel and on its disk.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{Cluster, ClusterError, Node, node};
use crate::{
    bins,
    kube::{KubeCluster, eventually},
    lab::{Place, World},
};

/// How long a node may take until it is ready. Two idle cores take some seconds.
const READY: Duration = Duration::from_secs(180);

impl Cluster {
    /// The control plane.
    #[must_use]
    pub fn kube(&self) -> &KubeCluster {
        &self.kube
    }

    /// The control plane, to be stopped and started.
    #[must_use]
    pub fn kube_mut(&mut self) -> &mut KubeCluster {
        &mut self.kube
    }

    /// The closed world that all of it is in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A node's network, to run programs in.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn place(&self, node: &str) -> Result<Place<'_>, ClusterError> {
        self.world.node(node).map_err(ClusterError::World)
    }

    /// kubectl as administrator.
    ///
    /// # Errors
    /// What it complained about.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, ClusterError> {
        self.kube.kubectl(args).map_err(ClusterError::Kube)
    }

    /// `kubectl apply` of a manifest as text.
    ///
    /// # Errors
    /// What it complained about.
    pub fn apply(&self, manifest: &str) -> Result<String, ClusterError> {
        self.kube.apply(manifest).map_err(ClusterError::Kube)
    }

    /// The command line of Helm, to be run with whatever streams the caller sets.
    ///
    /// # Errors
    /// When the world is gone.
    pub fn helm_command(&self, args: &[&str]) -> Result<Command, ClusterError> {
        let home = self.world.folder("helm").map_err(ClusterError::World)?;
        let mut command = Command::new(self.kube.programs().join("helm"));
        command.args(args).env("KUBECONFIG", self.kube.admin_kubeconfig()).env("HOME", &home);
        for (key, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(key, home.join(folder));
        }
        let first = self.first()?;
        Ok(first.wrap(&command, None))
    }

    /// Helm as administrator.
    ///
    /// # Errors
    /// What it complained about.
    pub fn helm(&self, args: &[&str]) -> Result<String, ClusterError> {
        let mut command = self.helm_command(args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().map_err(ClusterError::io("run", Path::new("helm")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ClusterError::Helm { args: args.join(" "), stderr })
    }

    /// A shell script with kubectl and Helm as administrator, and with this project's programs, on the first node; it starts in
    /// `folder`. The first command that fails ends it.
    ///
    /// # Errors
    /// What it said, when it fails.
    pub fn script(&self, folder: &Path, script: &str) -> Result<String, ClusterError> {
        let own = bins::find("meshctl").map_err(ClusterError::Programs)?;
        let folders = [own.parent().unwrap_or(Path::new("/")), self.kube.programs()];
        let before = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            folders.iter().map(|f| f.to_path_buf()).chain(std::env::split_paths(&before)),
        );
        let inner = format!("export PATH=\"$OWN_PATH\"; cd \"$OWN_FOLDER\"\n{script}");
        let home = self.world.folder("helm").map_err(ClusterError::World)?;
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &inner]);
        shell.env("KUBECONFIG", self.kube.admin_kubeconfig()).env("HOME", home);
        shell.env("OWN_FOLDER", folder).env("OWN_PATH", path.unwrap_or(before));
        let mut command = self.first()?.wrap(&shell, None);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().map_err(ClusterError::io("run", Path::new("bash")))?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(format!("{out}{err}"));
        }
        Err(ClusterError::Tool { tool: script.to_owned(), reason: format!("{out}{err}") })
    }

    /// The node that the control plane runs on.
    fn first(&self) -> Result<Place<'_>, ClusterError> {
        let name = self.nodes.first().map(|n| n.name.as_str()).unwrap_or_default();
        self.place(name)
    }

    fn node(&self, name: &str) -> Result<&Node, ClusterError> {
        self.nodes.iter().find(|n| n.name == name).ok_or_else(|| no_such(name))
    }

    /// Gives an archive's images to every node that runs.
    ///
    /// # Errors
    /// When a node does not take it.
    pub fn import(&self, image: &Path) -> Result<(), ClusterError> {
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let pid = process.pid().map_err(ClusterError::World)?;
            node::import(&format!("/proc/{pid}/root{}", node::SOCKET), image)?;
        }
        Ok(())
    }

    /// Gives an image of every running node another name as well.
    ///
    /// # Errors
    /// When a node has no such image.
    pub fn tag(&self, image: &str, new: &str) -> Result<(), ClusterError> {
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let pid = process.pid().map_err(ClusterError::World)?;
            node::tag(&format!("/proc/{pid}/root{}", node::SOCKET), image, new)?;
        }
        Ok(())
    }

    /// Starts a node that is off.
    ///
    /// # Errors
    /// When its first process cannot be started.
    pub fn boot(&mut self, name: &str) -> Result<(), ClusterError> {
        let program = bins::find("cluster").map_err(ClusterError::Programs)?;
        let Some(at) = self.nodes.iter().position(|n| n.name == name) else { return Err(no_such(name)) };
        let node = &self.nodes[at];
        let mut command = Command::new(program);
        command.arg("__node").arg(&node.plan);
        let place = self.place(name)?;
        let process = place.spawn("node", &command).map_err(ClusterError::World)?;
        self.nodes[at].process = Some(process);
        Ok(())
    }

    /// Waits until a node's kubelet says that it is ready.
    ///
    /// # Errors
    /// When it takes too long or its first process ends: with what its programs said.
    pub fn wait_ready(&mut self, name: &str) -> Result<(), ClusterError> {
        let Some(at) = self.nodes.iter().position(|n| n.name == name) else { return Err(no_such(name)) };
        let ready = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
        let mut process = self.nodes[at].process.take();
        let mut ended = None;
        let came = eventually(READY, Duration::from_millis(200), || {
            // A node that is off does not get ready: no reason to wait.
            ended = process.as_mut().and_then(|p| if p.running() { None } else { Some(p.tail()) });
            if ended.is_some() {
                return Ok(());
            }
            let path = format!("jsonpath={ready}");
            match self.kubectl(&["get", "node", name, "-o", &path]) {
                Ok(status) if status == "True" => Ok(()),
                Ok(status) => Err(format!("ready: {status:?}")),
                Err(e) => Err(e.to_string()),
            }
        });
        self.nodes[at].process = process;
        let reason = match (came, ended) {
            (_, Some(tail)) => format!("it ended:\n{tail}"),
            (Ok(_), None) => return Ok(()),
            (Err((waited, reason)), None) => format!("not ready after {waited:?}: {reason}"),
        };
        let logs = self.nodes[at].logs(30);
        Err(ClusterError::Node { node: name.to_owned(), reason: format!("{reason}\n{logs}") })
    }

    /// Ends everything on a node at once, as a power cut would. Its disk stays.
    ///
    /// # Errors
    /// When processes do not end.
    pub fn power_off(&mut self, name: &str) -> Result<(), ClusterError> {
        let Some(at) = self.nodes.iter().position(|n| n.name == name) else { return Err(no_such(name)) };
        super::cgroup::power_off(&self.nodes[at].group)?;
        if let Some(mut process) = self.nodes[at].process.take() {
            process.kill();
        }
        // What is in memory only: the folder /run, rules, and the bridge.
        let run = self.nodes[at].dir.join("run");
        fs::remove_dir_all(&run).map_err(ClusterError::io("remove", &run))?;
        let tool = |tool, args: &[&str]| self.world.run_in(name, tool, args, "");
        tool("nft", &["flush", "ruleset"]).map_err(ClusterError::World)?;
        // There is none when the node had no pod with an address of its own.
        let _none = tool("ip", &["link", "del", "cni0"]);
        super::cgroup::remove(&self.nodes[at].group);
        Ok(())
    }

    /// Stops `containerd`, `kubelet` or `kube-proxy` of a node, or lets it run again.
    ///
    /// # Errors
    /// When the node's folder cannot be written.
    pub fn hold(&self, name: &str, program: &str, down: bool) -> Result<(), ClusterError> {
        let path = self.node(name)?.dir.join(format!("{program}.stop"));
        let result = if down { fs::write(&path, "") } else { fs::remove_file(&path) };
        result.map_err(ClusterError::io("change", &path))
    }

    /// A folder of a node's disk as this machine sees it: `/var/lib/…`, `/run/…` and `/var/log/…`.
    ///
    /// # Errors
    /// When there is no such node, or the folder is not the node's own.
    pub fn disk(&self, name: &str, path: &str) -> Result<std::path::PathBuf, ClusterError> {
        let dir = &self.node(name)?.dir;
        for (folder, at) in node::FOLDERS {
            if let Some(rest) = path.strip_prefix(at) {
                return Ok(dir.join(folder).join(rest.trim_start_matches('/')));
            }
        }
        Err(ClusterError::Node { node: name.to_owned(), reason: format!("{path} is the machine's") })
    }

    /// What a node keeps in its kernel: tables of rules, interfaces, addresses, policy rules and routes, a line each. What
    /// comes and goes with pods is left out.
    ///
    /// # Errors
    /// When a tool complains.
    pub fn kernel_state(&self, name: &str) -> Result<BTreeSet<String>, ClusterError> {
        let mut found = BTreeSet::new();
        let tool =
            |tool: &str, args: &[&str]| self.world.run_in(name, tool, args, "").map_err(ClusterError::World);
        let mut add = |what: &str, text: String| {
            let lines = text
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty() && !l.contains("veth") && !l.contains("cni0"));
            found.extend(lines.map(|l| format!("{what}: {l}")));
        };
        add("nft", tool("nft", &["list", "tables"])?);
        let links = tool("ip", &["-o", "link", "show"])?;
        add("link", links.lines().filter_map(|l| l.split(": ").nth(1)).map(|n| format!("{n}\n")).collect());
        let addresses = tool("ip", &["-o", "addr", "show"])?;
        let short = |l: &str| l.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ");
        add("address", addresses.lines().map(|l| short(l) + "\n").collect());
        for family in ["-4", "-6"] {
            add("rule", tool("ip", &[family, "rule", "show"])?);
            add("route", tool("ip", &[family, "route", "show", "table", "all"])?);
        }
        Ok(found)
    }

    /// What the cluster says of itself, for the log of a failed test.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        for args in [
            &["get", "nodes,pods,daemonsets,deployments,jobs", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ] {
            let said = self.kubectl(args).unwrap_or_else(|e| e.to_string());
            let lines: Vec<&str> = said.lines().collect();
            text += &format!("--- kubectl {}\n", args.join(" "));
            text += &lines[lines.len().saturating_sub(60)..].join("\n");
            text += "\n";
        }
        let pods = "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
        let pods = self.kubectl(&["get", "pods", "-A", "-o", pods]).unwrap_or_default();
        for (namespace, pod) in pods.lines().filter_map(|l| l.split_once(' ')).take(20) {
            let args = ["logs", "-n", namespace, pod, "--all-containers", "--tail=40", "--prefix"];
            text += &format!("--- logs of {namespace}/{pod}\n");
            text += &self.kubectl(&args).unwrap_or_else(|e| e.to_string());
        }
        for node in &self.nodes {
            text += &node.logs(10);
        }
        let log = fs::read(self.kube.log("kube-controller-manager")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        text += "--- kube-controller-manager\n";
        text += &lines[lines.len().saturating_sub(80)..].join("\n");
        text
    }
}

impl Node {
    /// The end of what its programs said.
    fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        for program in ["containerd", "kubelet", "kube-proxy"] {
            let log = fs::read(node::log(&self.dir, program)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let all: Vec<&str> = log.lines().collect();
            text += &format!("--- {program} of {}\n", self.name);
            text += &all[all.len().saturating_sub(lines)..].join("\n");
            text += "\n";
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

fn no_such(node: &str) -> ClusterError {
    ClusterError::Node { node: node.to_owned(), reason: "there is none of that name".to_owned() }
}
