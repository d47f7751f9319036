//! A cluster with the accounts of the mesh, two replicas on it, and what a test asks of them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mesh_controller::{
    config::{Config, StateStore},
    source::SourceKind,
};
use mesh_testkit::{bins, kube::KubeCluster};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use crate::client::{Controller, Node};

pub(crate) const NAMESPACE: &str = "selvage-system";
pub(crate) const AUDIENCE: &str = "mesh-controller.selvage.dev";
/// Generous: the machines that run this are busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// What leaving may take.
pub(crate) const CUT: Duration = Duration::from_secs(5);

/// A cluster with the rights of the controller and the accounts of the proxies.
pub(crate) struct Cluster {
    pub(crate) kube: KubeCluster,
    pub(crate) dir: PathBuf,
    controller: PathBuf,
}

impl Cluster {
    pub(crate) fn start(dir: &Path) -> Self {
        let kube = KubeCluster::start(dir.join("kube")).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        for manifest in ["charts/crds/meshnodes.selvage.dev.yaml", "mesh-controller/tests/kube/rbac.yaml"] {
            kube.kubectl(&["apply", "-f", root.join(manifest).to_str().unwrap()]).unwrap();
        }
        let crd = "crd/meshnodes.selvage.dev";
        kube.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=60s"]).unwrap();
        for account in ["mesh-proxy", "gateway", "other"] {
            kube.kubectl(&["create", "serviceaccount", account, "-n", NAMESPACE]).unwrap();
        }
        let controller = kube.service_account_kubeconfig(NAMESPACE, "mesh-controller").unwrap();
        Self { kube, dir: dir.to_owned(), controller }
    }

    pub(crate) fn config(&self) -> Config {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            source: SourceKind::Kube,
            kubeconfig: Some(self.controller.clone()),
            state_store: StateStore::Kube,
            namespace: NAMESPACE.to_owned(),
            enrol_pod_service_accounts: vec![format!("{NAMESPACE}/gateway")],
            handover_seconds: 1,
            listen: any,
            metrics_listen: any,
            admin_listen: any,
            webhook_listen: any,
            ..Config::default()
        }
    }

    pub(crate) fn node(&self, name: &str) {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        self.kube.apply(&node.to_string()).unwrap();
    }

    /// A pod of an account on a node; gives its uid.
    pub(crate) fn pod(&self, name: &str, account: &str, node: &str) -> String {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "nodeName": node, "serviceAccountName": account,
                "containers": [{ "name": "c", "image": "none" }] } });
        self.kube.apply(&pod.to_string()).unwrap();
        let uid = ["get", "pod", name, "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}"];
        self.kube.kubectl(&uid).unwrap()
    }

    /// What the kubelet projects into a pod.
    pub(crate) fn token(&self, account: &str, pod: Option<(&str, &str)>, audience: &str) -> String {
        let mut args = vec!["create", "token", account, "-n", NAMESPACE, "--audience", audience];
        if let Some((name, uid)) = pod {
            args.extend([
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                name,
                "--bound-object-uid",
                uid,
            ]);
        }
        self.kube.kubectl(&args).unwrap().trim().to_owned()
    }

    /// The CA as pods have it.
    pub(crate) fn ca(&self) -> Option<CertificateDer<'static>> {
        let get = ["get", "configmap", "mesh-ca", "-n", NAMESPACE, "-o", "json"];
        let found: Value = serde_json::from_str(&self.kube.kubectl(&get).ok()?).ok()?;
        CertificateDer::from_pem_slice(found["data"]["ca.crt"].as_str()?.as_bytes()).ok()
    }

    pub(crate) fn meshctl(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(bins::find("meshctl").unwrap())
            .args(args)
            .args(["-n", NAMESPACE, "--kubeconfig"])
            .arg(self.kube.admin_kubeconfig())
            .env("HOME", &self.dir)
            .env_remove("MESH_CONTROLLER_STATE_DIR")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }
}

pub(crate) async fn until<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(started.elapsed() < limit, "{what}: not after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|l| l.rsplit(' ').next()).and_then(|v| v.parse().ok()).unwrap_or(0.0)
}

/// Two replicas, and what a node knows of them.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) a: Controller,
    pub(crate) b: Controller,
    pub(crate) ca: [u8; 32],
}

impl World {
    pub(crate) fn new_node(&self, name: &str) -> Node {
        Node::new(self.a.address(), self.ca, name)
    }

    /// A node that an operator let in.
    pub(crate) async fn outside(&self, name: &str) -> Node {
        let (fine, token) = self.cluster.meshctl(&["token", "create", "--node", name, "--ttl", "10m"]);
        assert!(fine, "{token}");
        self.new_node(name).join_request(name, &token).await.unwrap()
    }

    pub(crate) async fn enrolments(&self, outcome: &str) -> f64 {
        let name = format!(
            "selvage_controller_enrolments_total{{method=\"service_account\",outcome=\"{outcome}\"}}"
        );
        metric(&self.a.metrics().await, &name)
    }
}
