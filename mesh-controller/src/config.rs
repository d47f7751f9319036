//! What can be configured, from file, environment and flags, in that order of precedence.

mod cli;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::model::mesh_config::OutboundMode;
use mesh_ca::{Lives, TrustDomain};
use node_rt::{ConfigProblem, LogFormat, Validate};
use serde::{Deserialize, Serialize};

pub use cli::{Cli, Invocation, run_cli};

use crate::{enrol::Accounts, source::SourceKind};

/// Prefix of environment variables: `MESH_CONTROLLER_STATE_DIR`.
pub const ENV_PREFIX: &str = "MESH_CONTROLLER_";

const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-controller";
/// What a pod knows of where it runs.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where objects come from: `kube` or `dir:PATH`.
    pub source: SourceKind,
    /// For source `kube`: a kubeconfig; without it the pod's service account, else `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Where CA, join tokens and node registry are kept: `dir`, `kube`, or `auto`: `kube` in a pod with source `kube` and
    /// no state directory, else `dir`.
    pub state_store: StateStore,
    /// For store `dir`; empty = `/var/lib/mesh-controller`.
    pub state_dir: PathBuf,
    /// For store `kube`: the namespace of the state; empty = that of the pod, else `leaseNamespace`.
    pub namespace: String,
    /// For store `kube`: a ConfigMap of that namespace that owns the state, which is collected with it; empty = the state
    /// stays until somebody deletes it.
    pub state_owner: String,
    /// For source `kube`: audience of the service-account tokens with which proxies join.
    pub enrol_audience: String,
    /// For source `kube`: service accounts (`namespace/name`) whose pods join as the node that they run on; empty =
    /// `mesh-proxy` in the namespace of the state.
    pub enrol_service_accounts: Vec<String>,
    /// For source `kube`: service accounts whose pods join under their own names: gateways and relays.
    pub enrol_pod_service_accounts: Vec<String>,
    /// Where proxies connect.
    pub listen: SocketAddr,
    /// Metrics and health.
    pub metrics_listen: SocketAddr,
    /// State for operators; loopback only, because it has no authentication.
    pub admin_listen: SocketAddr,
    /// For source `kube`: where the API server asks for admission.
    pub webhook_listen: SocketAddr,
    /// For source `kube`: the ValidatingWebhookConfiguration that is given the CA; nothing happens while it is not there.
    pub webhook_configuration: String,
    /// The Service by which the API server reaches the webhook: `namespace/name`. Its names are in the certificate.
    pub webhook_service: String,
    /// For source `kube`: whether conditions are written into the status of rules.
    pub write_status: bool,
    /// For source `kube`: whether the objects of Gateway API are read, and with them all ConfigMaps, if it is installed.
    pub gateway_api: bool,
    /// The `controllerName` of the GatewayClasses that this mesh serves.
    pub gateway_controller: String,
    /// Namespace of the Lease by which one of several controllers writes status.
    pub lease_namespace: String,
    /// DNS names and addresses in the controller's certificate. Proxies check its identity, not these.
    pub names: Vec<String>,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Namespace whose Istio rules apply to the whole mesh.
    pub root_namespace: String,
    /// Traffic for unknown destinations: `allow-any` or `registry-only`.
    pub outbound: Outbound,
    /// How long the CA holds, in seconds. When two thirds of it are over there is a next one, which signs when all nodes have
    /// had the time of a node certificate to learn of it.
    pub ca_certificate_ttl: u64,
    /// How long node certificates hold, in seconds.
    pub node_certificate_ttl: u64,
    /// How long the controller's own certificate holds, in seconds; renewed after a third of it, without a restart.
    pub controller_certificate_ttl: u64,
    /// Connections of proxies at a time.
    pub max_connections: usize,
    /// Time after SIGTERM in which nodes are told, one after the other, to go on with another controller, in seconds.
    pub handover_seconds: u64,
    /// How long what is still open may then take to end, in seconds.
    pub drain_seconds: u64,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// For example `info` or `info,mesh_controller=debug`.
    pub log_level: String,
}

/// Where a controller's state is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateStore {
    /// As the place suggests.
    #[default]
    Auto,
    /// In a directory.
    Dir,
    /// In Secrets, a ConfigMap and MeshNodes of the cluster.
    Kube,
}

/// What proxies do with traffic for unknown destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outbound {
    /// Forward it to where it was going.
    AllowAny,
    /// Refuse it.
    RegistryOnly,
}

impl From<Outbound> for OutboundMode {
    fn from(outbound: Outbound) -> Self {
        match outbound {
            Outbound::AllowAny => Self::AllowAny,
            Outbound::RegistryOnly => Self::RegistryOnly,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            source: SourceKind::Kube,
            kubeconfig: None,
            state_store: StateStore::Auto,
            state_dir: PathBuf::new(),
            namespace: String::new(),
            state_owner: String::new(),
            enrol_audience: "mesh-controller.selvage.dev".to_owned(),
            enrol_service_accounts: Vec::new(),
            enrol_pod_service_accounts: Vec::new(),
            listen: any(15012),
            metrics_listen: any(15014),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 15016)),
            webhook_listen: any(15017),
            webhook_configuration: "selvage-validator".to_owned(),
            webhook_service: "selvage-system/mesh-controller".to_owned(),
            write_status: true,
            gateway_api: true,
            gateway_controller: "istio.io/gateway-controller".to_owned(),
            lease_namespace: "selvage-system".to_owned(),
            names: Vec::new(),
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound: Outbound::AllowAny,
            ca_certificate_ttl: Lives::default().ca.as_secs(),
            node_certificate_ttl: mesh_ca::NODE_CERT_TTL.as_secs(),
            controller_certificate_ttl: 7 * 86_400,
            max_connections: 20_000,
            handover_seconds: 3,
            drain_seconds: 10,
            log_format: LogFormat::default(),
            log_level: "info".to_owned(),
        }
    }
}

impl Config {
    /// Names in the controller's certificate: those that were given, and those of the webhook's Service.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = self.names.clone();
        if let Some((namespace, name)) = self.webhook_service.split_once('/') {
            names.push(format!("{name}.{namespace}.svc"));
            names.push(format!("{name}.{namespace}.svc.{}", self.cluster_domain));
        }
        names
    }

    /// The directory of store `dir`.
    pub fn state_path(&self) -> &Path {
        if self.state_dir.as_os_str().is_empty() { Path::new(DEFAULT_STATE_DIR) } else { &self.state_dir }
    }

    /// Whether the state is in the cluster.
    pub fn state_in_cluster(&self) -> bool {
        match self.state_store {
            StateStore::Dir => false,
            StateStore::Kube => true,
            StateStore::Auto => {
                self.source == SourceKind::Kube
                    && self.state_dir.as_os_str().is_empty()
                    && self.kubeconfig.is_none()
                    && Path::new(POD_NAMESPACE).exists()
            }
        }
    }

    /// The namespace of the state and of the default service account of proxies.
    pub fn own_namespace(&self) -> String {
        if !self.namespace.is_empty() {
            return self.namespace.clone();
        }
        let of_pod = std::fs::read_to_string(POD_NAMESPACE).ok().filter(|_| self.kubeconfig.is_none());
        let of_pod = of_pod.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        of_pod.unwrap_or_else(|| self.lease_namespace.clone())
    }

    /// Which service accounts let a node join.
    pub(crate) fn accounts(&self) -> Accounts {
        let mut of_nodes = self.enrol_service_accounts.clone();
        if of_nodes.is_empty() {
            of_nodes.push(format!("{}/mesh-proxy", self.own_namespace()));
        }
        let (audience, of_pods) = (self.enrol_audience.clone(), self.enrol_pod_service_accounts.clone());
        Accounts { audience, of_nodes, of_pods }
    }

    /// Namespaces of pods that may join under their own names.
    pub(crate) fn pod_namespaces(&self) -> Vec<String> {
        let accounts = self.enrol_pod_service_accounts.iter();
        accounts.filter_map(|a| a.split_once('/')).map(|(namespace, _)| namespace.to_owned()).collect()
    }

    /// How long the controller's own certificate holds.
    pub fn controller_ttl(&self) -> Duration {
        Duration::from_secs(self.controller_certificate_ttl)
    }

    /// Time in which nodes are told that this controller stops.
    pub fn handover(&self) -> Duration {
        Duration::from_secs(self.handover_seconds)
    }

    /// How long node certificates hold.
    pub fn node_ttl(&self) -> Duration {
        Duration::from_secs(self.node_certificate_ttl)
    }

    /// By which the CA is renewed.
    pub fn lives(&self) -> Lives {
        Lives::new(Duration::from_secs(self.ca_certificate_ttl), self.node_ttl())
    }
}

impl Validate for Config {
    fn validate(&self) -> Vec<ConfigProblem> {
        let mut out = Vec::new();
        for (key, value) in [("trustDomain", &self.trust_domain), ("clusterDomain", &self.cluster_domain)] {
            if TrustDomain::new(value).is_err() {
                out.push(ConfigProblem::new(key, value, "is not a lower-case DNS name"));
            }
        }
        let is_controller = |n: &str| {
            n.split_once('/')
                .is_some_and(|(domain, path)| TrustDomain::new(domain).is_ok() && !path.is_empty())
        };
        if !is_controller(&self.gateway_controller) {
            out.push(ConfigProblem::new(
                "gatewayController",
                &self.gateway_controller,
                "must be `domain/path`",
            ));
        }
        if !self.admin_listen.ip().is_loopback() {
            out.push(ConfigProblem::new("adminListen", self.admin_listen, "must be a loopback address"));
        }
        if !(60..=30 * 86_400).contains(&self.node_certificate_ttl) {
            let reason = "must be between 60 and 2592000 seconds";
            out.push(ConfigProblem::new("nodeCertificateTtl", self.node_certificate_ttl, reason));
        }
        // A third of it holds the overlap, the last leaves of the former one, and some rest.
        let least = self.node_certificate_ttl.saturating_mul(9);
        if !(least..=50 * 365 * 86_400).contains(&self.ca_certificate_ttl) {
            let reason = "must be at least nine times nodeCertificateTtl, and at most 50 years";
            out.push(ConfigProblem::new("caCertificateTtl", self.ca_certificate_ttl, reason));
        }
        if !(5..=365 * 86_400).contains(&self.controller_certificate_ttl) {
            let reason = "must be between 5 and 31536000 seconds";
            out.push(ConfigProblem::new("controllerCertificateTtl", self.controller_certificate_ttl, reason));
        }
        if self.handover_seconds > 60 {
            out.push(ConfigProblem::new("handoverSeconds", self.handover_seconds, "is more than a minute"));
        }
        if self.state_store == StateStore::Kube && self.source != SourceKind::Kube {
            out.push(ConfigProblem::new("stateStore", "kube", "needs source `kube`"));
        }
        let is_name = |t: &str| TrustDomain::new(t).is_ok();
        let is_pair = |t: &str| t.split_once('/').is_some_and(|(ns, name)| is_name(ns) && is_name(name));
        for (key, accounts) in [
            ("enrolServiceAccounts", &self.enrol_service_accounts),
            ("enrolPodServiceAccounts", &self.enrol_pod_service_accounts),
        ] {
            for account in accounts.iter().filter(|a| !is_pair(a)) {
                out.push(ConfigProblem::new(key, account, "must be `namespace/name`"));
            }
        }
        for (key, name) in [("namespace", &self.namespace), ("stateOwner", &self.state_owner)] {
            if !name.is_empty() && !is_name(name) {
                out.push(ConfigProblem::new(key, name, "is not a lower-case DNS name"));
            }
        }
        if !is_pair(&self.webhook_service) {
            out.push(ConfigProblem::new("webhookService", &self.webhook_service, "must be `namespace/name`"));
        }
        if self.max_connections == 0 {
            out.push(ConfigProblem::new("maxConnections", 0, "must be at least 1"));
        }
        if let SourceKind::Dir(path) = &self.source
            && !path.is_dir()
        {
            out.push(ConfigProblem::new("source", path.display(), "is not a directory"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use node_rt::{Layers, load_from};

    use super::*;

    #[test]
    fn every_mistake_is_listed_at_once() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let layers = Layers {
            file: Some(("c.yaml".into(), "trustDomain: Not_DNS\nunknown: 1\n".to_owned())),
            env_prefix: ENV_PREFIX.to_owned(),
            env: vec![pair("MESH_CONTROLLER_LISTEN", "nowhere")],
            env_ignore: Vec::new(),
            flags: vec![pair("adminListen", "0.0.0.0:1"), pair("source", "ftp:x")],
        };
        let text = load_from::<Config>(layers).unwrap_err().to_string();
        for part in ["trustDomain", "unknown", "listen", "adminListen", "source"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let dir = tempfile::tempdir().unwrap();
        let source = format!("dir:{}", dir.path().display());
        let layers = |flags: Vec<(String, String)>| Layers {
            file: Some(("c.yaml".into(), "rootNamespace: file\n".to_owned())),
            env_prefix: ENV_PREFIX.to_owned(),
            env: vec![("MESH_CONTROLLER_ROOT_NAMESPACE".to_owned(), "env".to_owned())],
            env_ignore: Vec::new(),
            flags,
        };
        let one = vec![("source".to_owned(), source.clone())];
        assert_eq!(load_from::<Config>(layers(one)).unwrap().root_namespace, "env");
        let two = vec![("source".to_owned(), source), ("rootNamespace".to_owned(), "flag".to_owned())];
        let config = load_from::<Config>(layers(two)).unwrap();
        assert_eq!(config.root_namespace, "flag");
        assert_eq!(config.source, SourceKind::Dir(dir.path().to_owned()));
    }
}
