//! A mesh made of objects: compiled as the controller does, decoded as a node does.

use anyhow::{Result, bail};
use mesh_api::{Resource, model::mesh_config::OutboundMode};
use mesh_core::{Change, Client, Tables};
use mesh_index::{Applied, Index, Options};
use serde_json::Value;

use super::{Answer, FixedDice, Request, View, http, l4};

/// Mesh-wide settings.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Namespace whose rules apply to the whole mesh.
    pub root_namespace: String,
    /// Hosts that no registry knows are refused.
    pub registry_only: bool,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            registry_only: false,
        }
    }
}

/// A mesh that can be asked.
pub struct World {
    tables: Tables,
    problems: Vec<String>,
}

impl World {
    /// Compiles objects.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Value>, options: &WorldOptions) -> Self {
        let mut index = Index::new(Options {
            cluster_domain: options.cluster_domain.clone(),
            root_namespace: options.root_namespace.clone(),
            outbound: if options.registry_only { OutboundMode::RegistryOnly } else { OutboundMode::AllowAny },
            derive_endpoints: true,
            ..Options::default()
        });
        let mut problems = Vec::new();
        for object in objects {
            if index.apply(object) == Applied::Ignored {
                let text = |p: &str| object.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
                problems.push(format!("{} {} is ignored", text("/kind"), text("/metadata/name")));
            }
        }
        let mut changes = Vec::new();
        for change in index.compile() {
            let Some(content) = change.content else { continue };
            match Resource::decode(change.kind, &change.name, &content.bytes) {
                Ok(resource) => changes.push(Change::Set(resource)),
                Err(e) => problems.push(e.to_string()),
            }
        }
        let (tables, applied) = Tables::new().apply(changes);
        problems.extend(index.findings().map(ToString::to_string));
        problems
            .extend(applied.rejected.iter().map(|r| format!("{} {}: {}", r.kind.as_str(), r.name, r.reason)));
        Self { tables, problems }
    }

    /// What is wrong with the objects.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The tables that decide.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Where a request goes.
    pub fn simulate(&self, request: &Request) -> Result<Answer> {
        let gateway = Some(request.gateway.as_str()).filter(|g| !g.is_empty() && *g != "mesh");
        let namespace = &request.source.namespace;
        let client = Client {
            namespace: match gateway.and_then(|g| g.split_once('/')) {
                Some((of, _)) if namespace.is_empty() => of,
                _ if namespace.is_empty() => "default",
                _ => namespace,
            },
            labels: &request.source.labels,
            gateway,
            called: request.address,
        };
        let mut dice = FixedDice(&request.dice);
        match request.protocol.as_str() {
            "" | "http" | "grpc" => {
                Ok(http::decide(&self.tables, &client, request, &View::new(request), &mut dice))
            }
            "tcp" | "tls" => Ok(l4::decide(&self.tables, &client, request, &mut dice)),
            other => bail!("protocol {other:?} is none of http, grpc, tcp, tls"),
        }
    }
}
