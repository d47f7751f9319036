//! The programs of the mesh, and asking them: through the API server of a cluster, or at addresses of this machine.
//!
//! - [`cluster`]: a client of the API server; the mesh's pods.
//! - [`http`]: one request over any stream. - [`one`]: one proxy, asked page by page.

pub(crate) mod cluster;
pub(crate) mod http;
mod one;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::args::{self, Program as Kind};
pub(crate) use one::One;

/// Programs that are asked at a time.
const AT_ONCE: usize = 16;
/// What is left of the whole time when programs are given up, to print what others said.
const MARGIN: Duration = Duration::from_millis(300);

/// Runs the work of a command, bounded in time.
pub(crate) fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    node_rt::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let done = runtime.block_on(async { tokio::time::timeout(limit, work).await });
    runtime.shutdown_background();
    match done {
        Ok(result) => result,
        Err(_) => bail!("{what}: no answer within {} (--timeout TIME gives it longer)", span(limit)),
    }
}

/// A time for people.
pub(crate) fn span(time: Duration) -> String {
    istio_compat::duration::format_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// A program of the mesh.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    /// Its node, as the mesh calls it; the address for one of this machine.
    pub(crate) name: String,
    /// Where it runs in a cluster.
    pub(crate) pod: Option<PodFacts>,
    via: Via,
}

/// What the API server says of a pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodFacts {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    pub(crate) leaving: bool,
    pub(crate) restarts: i32,
    /// Why it does not run, in Kubernetes' words.
    pub(crate) trouble: String,
    pub(crate) image: String,
    /// Seconds since 1970.
    pub(crate) created: i64,
}

#[derive(Clone)]
enum Via {
    Url(String),
    Pod { pods: Box<Api<Pod>>, name: String, port: u16 },
}

impl Program {
    /// A page as text.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        self.ask("GET", path).await
    }

    async fn ask(&self, method: &str, path: &str) -> Result<String> {
        match &self.via {
            Via::Url(url) => {
                let authority = authority(url)?;
                let mut stream = TcpStream::connect(authority).await.with_context(|| {
                    format!("connect to {authority} (does the program run on this machine?)")
                })?;
                let answer = http::ask(&mut stream, method, authority, path).await;
                answer.with_context(|| format!("ask {url}{path}"))
            }
            Via::Pod { pods, name, port } => {
                let ask = async {
                    let mut forward = pods.portforward(name, &[*port]).await?;
                    let errors = forward.take_error(*port);
                    let mut stream = forward.take_stream(*port).context("no stream")?;
                    let answer = http::ask(&mut stream, method, "localhost", path).await;
                    let answer = match (answer, errors) {
                        (Err(error), Some(said)) => {
                            // Why the kubelet could not connect comes beside the stream, a moment later.
                            let said = tokio::time::timeout(MARGIN, said).await.ok().flatten();
                            Err(said.map_or(error, |text| anyhow::anyhow!("{}", text.trim())))
                        }
                        (answer, _) => answer,
                    };
                    forward.abort();
                    answer
                };
                ask.await.with_context(|| format!("ask port {port} of pod {name} for {path}"))
            }
        }
    }

    /// A page of JSON.
    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).with_context(|| format!("{path} of {} is not JSON", self.name))
    }

    /// `controller mesh-controller-abc`, `proxy edge-a`
    pub(crate) fn title(&self) -> String {
        format!("{} {}", word(self.kind), self.name)
    }
}

/// How the kind is called.
pub(crate) const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Controller => "controller",
        Kind::Proxy => "proxy",
        Kind::Relay => "relay",
        Kind::Gateway => "gateway",
    }
}

fn authority(url: &str) -> Result<&str> {
    match url.strip_prefix("http://").map(|u| u.trim_end_matches('/')) {
        Some(authority) if !authority.is_empty() && !authority.contains('/') => Ok(authority),
        _ => bail!("--admin: {url:?} is not of the form http://HOST:PORT"),
    }
}

/// The mesh as this command reaches it.
pub(crate) struct Mesh {
    /// None for programs of this machine.
    pub(crate) client: Option<Client>,
    pub(crate) namespace: String,
    pub(crate) programs: Vec<Program>,
    /// All pods of the mesh, also those beside the one that serves a node.
    pub(crate) pods: Vec<PodFacts>,
    each: Duration,
    deadline: Instant,
}

/// Whether addresses of this machine are meant, not a cluster.
pub(crate) fn is_local(reach: &args::Reach) -> bool {
    !reach.admin.is_empty() && reach.kube.kubeconfig.is_none() && reach.kube.context.is_none()
}

impl Mesh {
    /// Finds the programs. An empty list is no error: who asks says what that means.
    pub(crate) async fn find(reach: &args::Reach) -> Result<Self> {
        let deadline = Instant::now() + reach.timeout.saturating_sub(MARGIN);
        let mut mesh = Self {
            client: None,
            namespace: reach.kube.namespace.clone(),
            programs: Vec::new(),
            pods: Vec::new(),
            each: reach.timeout / 3,
            deadline,
        };
        if is_local(reach) {
            mesh.programs = local(reach, mesh.each).await?;
            return Ok(mesh);
        }
        let client = cluster::client(&reach.kube).await?;
        let pods = cluster::all_pods(&client, &mesh.namespace).await?;
        mesh.pods = pods.iter().map(|(_, facts)| facts.clone()).collect();
        let pods = cluster::choose(pods);
        let api: Api<Pod> = Api::namespaced(client.clone(), &mesh.namespace);
        for (kind, facts) in pods {
            let port = if kind == Kind::Controller { reach.controller_port } else { reach.proxy_port };
            // A proxy is known by its node, the others by their pod.
            let name = if kind == Kind::Proxy { &facts.node } else { &facts.name };
            let via = Via::Pod { pods: Box::new(api.clone()), name: facts.name.clone(), port };
            mesh.programs.push(Program { kind, name: name.clone(), pod: Some(facts), via });
        }
        mesh.client = Some(client);
        Ok(mesh)
    }

    /// The same for a command that asks many things one after the other: they share this time.
    pub(crate) fn until(mut self, limit: Duration) -> Self {
        self.deadline = Instant::now() + limit;
        self
    }

    /// Programs of that kind.
    pub(crate) fn of(&self, kind: Kind) -> Vec<Program> {
        self.programs.iter().filter(|p| p.kind == kind).cloned().collect()
    }

    /// Everything but controllers: of these nodes or pods, or all. A name that nobody has is an error.
    pub(crate) fn proxies(&self, names: &[String]) -> Result<Vec<Program>> {
        let all: Vec<&Program> = self.programs.iter().filter(|p| p.kind != Kind::Controller).collect();
        let is = |p: &Program, name: &str| {
            p.name == name || p.pod.as_ref().is_some_and(|pod| pod.name == name || pod.node == name)
        };
        for name in names {
            if !all.iter().any(|p| is(p, name)) {
                let known: Vec<&str> = all.iter().take(8).map(|p| p.name.as_str()).collect();
                bail!("no proxy of the mesh is called {name}; there is {}", list(&known));
            }
        }
        let wanted = |p: &&&Program| names.is_empty() || names.iter().any(|n| is(p, n));
        Ok(all.iter().filter(wanted).map(|p| (*p).clone()).collect())
    }

    /// Says where nothing was found.
    pub(crate) fn nothing(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "no program of the mesh runs in namespace {0}: name another with -n, install it with `meshctl install -n {0}`, \
             or name the admin page of a program on this machine with --admin http://127.0.0.1:15000",
            self.namespace
        )
    }

    /// Asks many at once; what each says, or why it does not, in their order.
    pub(crate) async fn ask<T, F>(
        &self,
        programs: Vec<Program>,
        question: impl Fn(Program) -> F,
    ) -> Vec<(Program, Result<T>)>
    where
        F: Future<Output = Result<T>>,
    {
        let answers = stream::iter(programs.into_iter().map(|program| {
            let answer = question(program.clone());
            async move {
                let left = self.deadline.saturating_duration_since(Instant::now()).min(self.each);
                let answer = match tokio::time::timeout(left, answer).await {
                    Ok(answer) => answer,
                    Err(_) => Err(anyhow::anyhow!("no answer within {}", span(left))),
                };
                (program, answer)
            }
        }));
        answers.buffered(AT_ONCE).collect().await
    }

    /// Asks many for a page of JSON.
    pub(crate) async fn ask_json(&self, programs: Vec<Program>, path: &str) -> Vec<(Program, Result<Value>)> {
        self.ask(programs, |p| {
            let path = path.to_owned();
            async move { p.json(&path).await }
        })
        .await
    }
}

/// What is behind the addresses: a controller has another page than a proxy.
async fn local(reach: &args::Reach, each: Duration) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for url in &reach.admin {
        authority(url)?;
        let mut program =
            Program { kind: Kind::Proxy, name: url.clone(), pod: None, via: Via::Url(url.clone()) };
        let asked = tokio::time::timeout(each, program.text("/")).await;
        let help = match asked {
            Ok(Ok(help)) => help,
            // It answers, and has no such page.
            Ok(Err(error)) if http::is_status(&error) => String::new(),
            Ok(Err(error)) => return Err(error),
            Err(_) => bail!("{url}: no answer within {}", span(each)),
        };
        if !help.contains("/config_dump") {
            program.kind = Kind::Controller;
        }
        programs.push(program);
    }
    Ok(programs)
}

/// Names in a sentence.
pub(crate) fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
