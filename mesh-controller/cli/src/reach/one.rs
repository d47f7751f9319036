//! One proxy, asked page by page: of this machine, or of a node of a cluster.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{Mesh, Program, Via, span};
use crate::args::{self, Program as Kind};

/// A proxy, and what its answers are waited for with.
pub(crate) struct One {
    program: Program,
    runtime: Runtime,
    limit: Duration,
}

impl One {
    /// The proxy that is meant. One of this machine is not asked yet.
    pub(crate) fn find(admin: &args::Admin) -> Result<Self> {
        node_rt::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
        let program = match &admin.node {
            Some(node) => {
                let reach = admin.reach();
                let found = async {
                    let mut found = Mesh::find(&reach).await?.proxies(std::slice::from_ref(node))?;
                    // A relay may run on the node, too.
                    found.sort_by_key(|program| program.kind != Kind::Proxy);
                    found.into_iter().next().context("there is none")
                };
                bounded(&runtime, admin.timeout, &format!("find the proxy of {node}"), found)?
            }
            None if admin.kube.kubeconfig.is_some() || admin.kube.context.is_some() => {
                bail!("--node NODE says whose proxy is asked through the API server");
            }
            None => Program {
                kind: Kind::Proxy,
                name: admin.url.clone(),
                pod: None,
                via: Via::Url(admin.url.clone()),
            },
        };
        Ok(Self { program, runtime, limit: admin.timeout })
    }

    /// A page as text.
    pub(crate) fn text(&self, page: &str) -> Result<String> {
        self.ask("GET", page)
    }

    /// A page of JSON.
    pub(crate) fn get(&self, page: &str) -> Result<Value> {
        self.json("GET", page)
    }

    /// A change to the proxy; what it answers is the page after it.
    pub(crate) fn post(&self, page: &str) -> Result<Value> {
        self.json("POST", page)
    }

    fn json(&self, method: &str, page: &str) -> Result<Value> {
        let text = self.ask(method, page)?;
        serde_json::from_str(&text).with_context(|| format!("{page} of {} is not JSON", self.program.name))
    }

    fn ask(&self, method: &str, page: &str) -> Result<String> {
        let what = format!("ask {}", self.program.title());
        bounded(&self.runtime, self.limit, &what, self.program.ask(method, page))
    }
}

fn bounded<T>(
    runtime: &Runtime,
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // The timer is made where it runs.
    match runtime.block_on(async { tokio::time::timeout(limit, work).await }) {
        Ok(result) => result,
        Err(_) => bail!("{what}: no answer within {} (--timeout TIME gives it longer)", span(limit)),
    }
}
