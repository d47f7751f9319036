//! What containerd, kubelet, kube-proxy and the pod network of a node are told.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    ClusterError,
    images::PAUSE,
    node::{Plan, SOCKET},
};

const CNI_FOLDER: &str = "/var/lib/cni/net.d";

pub(super) fn containerd_file(plan: &Plan) -> PathBuf {
    plan.dir.join("etc/containerd.toml")
}

pub(super) fn kubelet_file(plan: &Plan) -> PathBuf {
    plan.dir.join("etc/kubelet.json")
}

pub(super) fn proxy_file(plan: &Plan) -> PathBuf {
    plan.dir.join("etc/kube-proxy.json")
}

/// Writes all of it, as the node sees its folders.
pub(super) fn write(plan: &Plan) -> Result<(), ClusterError> {
    for folder in [plan.dir.join("etc"), CNI_FOLDER.into(), "/var/lib/kubelet".into()] {
        fs::create_dir_all(&folder).map_err(ClusterError::io("create", &folder))?;
    }
    let file = |path: &Path, text: String| fs::write(path, text).map_err(ClusterError::io("write", path));
    file(&containerd_file(plan), containerd())?;
    file(&kubelet_file(plan), kubelet(plan).to_string())?;
    file(&proxy_file(plan), kube_proxy(plan).to_string())?;
    file(&Path::new(CNI_FOLDER).join("10-pods.conflist"), network(plan).to_string())
}

fn containerd() -> String {
    let snapshotter = if overlay_works() { "overlayfs" } else { "native" };
    // Other snapshotters would only complain that they cannot.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{PAUSE}"
  # A container of a test outlives nothing of the machine, and lowering the score takes a right that root may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{CNI_FOLDER}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    )
}

/// Whether layers can be laid over each other here: not where the node's folder is itself such a layering.
fn overlay_works() -> bool {
    let base = Path::new("/var/lib/overlay-probe");
    let dirs = ["lower", "upper", "work", "merged"].map(|d| base.join(d));
    if dirs.iter().any(|d| fs::create_dir_all(d).is_err()) {
        return false;
    }
    let [lower, upper, work, merged] = &dirs;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let works = nix::mount::mount(
        Some("overlay"),
        merged,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .is_ok();
    if works {
        let _gone = nix::mount::umount(merged);
    }
    let _empty_anyway = fs::remove_dir_all(base);
    works
}

fn kubelet(plan: &Plan) -> serde_json::Value {
    // A test machine's disk may be nearly full: that is no reason to evict.
    let never = json!({ "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" });
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true },
            "x509": { "clientCAFile": plan.ca } },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false, "failSwapOn": false,
        "clusterDNS": [plan.dns], "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "evictionHard": never, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "nodeStatusUpdateFrequency": "5s", "nodeLeaseDurationSeconds": 20,
        "syncFrequency": "10s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "podCIDR": plan.pods.to_string(),
        "resolvConf": "/etc/resolv.conf",
        "rotateCertificates": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 60,
    })
}

fn kube_proxy(plan: &Plan) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": plan.proxy_mode,
        "clientConnection": { "kubeconfig": plan.proxy_kubeconfig },
        "clusterCIDR": plan.all_pods.to_string(),
        "hostnameOverride": plan.name,
        "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
        // Limits of the machine, which a node of a test leaves alone.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}

/// A bridge without a way out of the cluster: nothing is masqueraded.
fn network(plan: &Plan) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
              "ipam": { "type": "host-local", "dataDir": "/run/cni", "ranges": [[{ "subnet": plan.pods.to_string() }]],
                        "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
