//! Says what becomes of the mesh's pods while Helm waits, when it changes.

use std::time::Duration;

use kube::Client;
use tokio::runtime::Runtime;

use crate::{
    args,
    reach::{PodFacts, cluster, word},
};

const PAUSE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Progress {
    kube: args::Kube,
    runtime: Option<(Runtime, Client)>,
    said: String,
    troubles: Vec<String>,
}

impl Progress {
    pub(super) fn new(kube: &args::Kube) -> Self {
        Self { kube: kube.clone(), runtime: None, said: String::new(), troubles: Vec::new() }
    }

    /// Looks once, and waits a moment. What cannot be seen is no matter: Helm says how it ends.
    pub(super) fn step(&mut self) {
        std::thread::sleep(PAUSE);
        let Some(pods) = self.look() else { return };
        let said = summary(&pods);
        if said != self.said && !said.is_empty() {
            eprintln!("  {said}");
            self.said = said;
        }
        for (_, pod) in pods {
            let passing = ["ContainerCreating", "PodInitializing"].iter().any(|p| pod.trouble.starts_with(p));
            let trouble = format!("{}: {}", pod.name, pod.trouble);
            if !pod.trouble.is_empty() && !passing && !self.troubles.contains(&trouble) {
                eprintln!("  {trouble}");
                self.troubles.push(trouble);
            }
        }
    }

    fn look(&mut self) -> Option<Vec<(args::Program, PodFacts)>> {
        if self.runtime.is_none() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            let client = runtime.block_on(cluster::client(&self.kube)).ok()?;
            self.runtime = Some((runtime, client));
        }
        let (runtime, client) = self.runtime.as_ref()?;
        let pods = cluster::pods(client, &self.kube.namespace);
        runtime.block_on(async { tokio::time::timeout(LIMIT, pods).await }).ok()?.ok()
    }
}

/// `controller 1 of 2 ready, proxy 2 of 3 ready`
fn summary(pods: &[(args::Program, PodFacts)]) -> String {
    use args::Program::{Controller, Gateway, Proxy, Relay};
    let part = |kind| {
        let of = pods.iter().filter(|(k, _)| *k == kind);
        let (all, ready) = (of.clone().count(), of.filter(|(_, p)| p.ready).count());
        (all > 0).then(|| format!("{} {ready} of {all} ready", word(kind)))
    };
    [Controller, Proxy, Relay, Gateway].into_iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_counted_by_kind() {
        let pod = |ready| PodFacts { ready, ..PodFacts::default() };
        let pods = [
            (args::Program::Proxy, pod(true)),
            (args::Program::Controller, pod(false)),
            (args::Program::Proxy, pod(false)),
        ];
        assert_eq!(summary(&pods), "controller 0 of 1 ready, proxy 1 of 2 ready");
        assert_eq!(summary(&[]), "");
    }
}
