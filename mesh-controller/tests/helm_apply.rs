//! charts/mesh on a real API server: it takes every object that the chart can make, and Helm and preflight refuse what
//! must not be installed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "helm/chart.rs"]
mod chart;

use std::{
    path::Path,
    process::{Command, Output},
};

use chart::{NAMESPACE, helm, merged, parse, template};
use mesh_testkit::kube::KubeCluster;
use serde_json::{Value, json};

/// All that can be switched on.
fn everything() -> Value {
    json!({
        "image": { "registry": "registry.example.com", "pullSecrets": ["regcred"] },
        "commonLabels": { "team": "net" },
        "controller": {
            "externalAddresses": ["mesh.example.com:31512"],
            "service": { "type": "LoadBalancer", "annotations": { "a/b": "c" }, "nodePort": 31512,
                "loadBalancerSourceRanges": ["192.0.2.0/24"] },
            "antiAffinity": "required", "webhook": { "failurePolicy": "Fail" },
            "nodeSelector": { "pool": "a" }, "tolerations": [{ "operator": "Exists" }],
            "podDisruptionBudget": { "maxUnavailable": "50%" },
            "podAnnotations": { "x": "y" }, "podLabels": { "x": "y" },
        },
        "proxy": { "config": { "accessLog": { "format": "json" } }, "dns": { "upstreams": ["192.0.2.53:53"] },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }] } } } },
        "relay": { "enabled": true, "addresses": ["/dns4/relay.example.com/tcp/15008"], "priorityClassName": "vip" },
        "gateway": { "enabled": true, "service": { "externalTrafficPolicy": "Local" } },
        "networkPolicy": { "apiServerCidrs": ["10.0.0.1/32"], "metricsFrom": [{ "namespaceSelector": {} }] },
        "monitoring": { "podMonitor": { "enabled": true, "labels": { "release": "prom" } },
            "serviceMonitor": { "enabled": true }, "rules": { "kind": "PrometheusRule" } },
        "preflight": { "ignore": ["kernel"] },
    })
}

/// All that can be switched off.
fn nothing() -> Value {
    let off = || json!({ "enabled": false });
    json!({
        "crds": { "install": false }, "gatewayApi": off(), "preflight": off(),
        "controller": { "replicas": 0, "writeStatus": false, "webhook": off(), "podDisruptionBudget": off(),
            "antiAffinity": "none", "priorityClassName": "", "resources": { "requests": null, "limits": null } },
        "proxy": { "drainSeconds": 0, "tolerations": [], "edge": off(), "capture": off(), "dns": off(),
            "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } },
        "networkPolicy": off(),
        "monitoring": { "annotations": false, "dashboards": off(), "rules": off() },
    })
}

#[test]
fn the_api_server_takes_the_chart_and_refusals_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = KubeCluster::start(dir.path()).unwrap();
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    operator_crds(&cluster);
    every_object_is_taken(&cluster);
    preflight_sees_what_is_in_the_way(&cluster);
    one_release_in_a_cluster(&cluster);
}

/// Those of the Prometheus operator, for its monitors and rules.
fn operator_crds(cluster: &KubeCluster) {
    let script = chart::root().join("mesh-proxy/testkit/prometheus-operator/crds.sh");
    let out = Command::new(script).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let folder = String::from_utf8(out.stdout).unwrap();
    for kind in ["podmonitors", "servicemonitors", "prometheusrules"] {
        let file = Path::new(folder.trim()).join(format!("monitoring.coreos.com_{kind}.yaml"));
        cluster.kubectl(&["create", "-f", file.to_str().unwrap()]).unwrap();
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).unwrap();
}

/// By a dry run on the server, in which a field that the API does not know is an error.
fn every_object_is_taken(cluster: &KubeCluster) {
    let no_crds = json!({ "crds": { "install": false } });
    let no_proxy = json!({ "crds": { "install": false }, "proxy": { "enabled": false } });
    let sets = [
        ("the defaults", json!({})),
        ("everything", merged(&everything(), &no_crds)),
        ("nothing", nothing()),
        ("no proxies", no_proxy),
    ];
    for (what, values) in sets {
        let text = template(&values, &[]).unwrap();
        let wanted = parse(&text).len();
        let args = ["create", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-"];
        let taken = cluster
            .kubectl_as(&cluster.admin_kubeconfig(), &args, &text)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(taken.lines().count(), wanted, "{what}: {taken}");
        println!("{what}: {wanted} objects");
    }
}

fn preflight(kubeconfig: &Path, release: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
    command
        .args(["preflight", "--namespace", NAMESPACE, "--release", release, "--kubeconfig"])
        .arg(kubeconfig);
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

/// With exactly the rights that the chart gives the Job.
fn preflight_sees_what_is_in_the_way(cluster: &KubeCluster) {
    let none = cluster.kubectl(&["create", "serviceaccount", "nobody", "-n", NAMESPACE]);
    none.unwrap();
    let nobody = cluster.service_account_kubeconfig(NAMESPACE, "nobody").unwrap();
    let (fine, text) = preflight(&nobody, "mesh");
    assert!(!fine && text.contains("missing rights") && text.contains("list nodes"), "{text}");

    let own = |o: &&Value| {
        o.pointer("/metadata/name").and_then(Value::as_str).is_some_and(|n| n.contains("preflight"))
            && o["kind"] != "Job"
    };
    let rendered = parse(&template(&json!({ "crds": { "install": false } }), &[]).unwrap());
    for object in rendered.iter().filter(own) {
        cluster.apply(&object.to_string()).unwrap();
    }
    let account = cluster.service_account_kubeconfig(NAMESPACE, "mesh-preflight").unwrap();
    let (fine, text) = preflight(&account, "mesh");
    assert!(fine && !text.contains("REFUSE"), "{text}");

    let agent = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "edgemesh-agent", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
            "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "a", "image": "a" }] } } } });
    cluster.apply(&agent.to_string()).unwrap();
    let (fine, text) = preflight(&account, "mesh");
    assert!(!fine && text.contains("EdgeMesh runs here (DaemonSet default/edgemesh-agent)"), "{text}");
    cluster.kubectl(&["delete", "daemonset", "edgemesh-agent", "-n", "default"]).unwrap();
    let label = "pod-security.kubernetes.io/enforce=baseline";
    cluster.kubectl(&["label", "namespace", NAMESPACE, label]).unwrap();
    let (fine, text) = preflight(&account, "mesh");
    assert!(!fine && text.contains("enforces pod security level baseline"), "{text}");
    cluster.kubectl(&["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce-"]).unwrap();
    for kind in ["serviceaccount/nobody", "serviceaccount/mesh-preflight"] {
        cluster.kubectl(&["delete", kind, "-n", NAMESPACE]).unwrap();
    }
}

/// Helm's own installation, without nodes: nothing is waited for, and hooks, which need a pod, are left out.
fn one_release_in_a_cluster(cluster: &KubeCluster) {
    let chart = chart::chart();
    let chart = chart.to_str().unwrap();
    let helm = |args: &[&str]| -> Output {
        let mut command = Command::new(helm());
        command
            .args(args)
            .arg("--kubeconfig")
            .arg(cluster.admin_kubeconfig())
            .env("HOME", std::env::temp_dir());
        command.output().unwrap()
    };
    let said = |out: &Output| String::from_utf8_lossy(&out.stderr).into_owned();
    let first = helm(&["install", "mesh", chart, "-n", NAMESPACE, "--no-hooks"]);
    assert!(first.status.success(), "{}", said(&first));
    let notes = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(
        notes.contains("rollout status daemonset/mesh-proxy")
            && notes.contains("set controller.externalAddresses"),
        "{notes}"
    );

    let second = helm(&["install", "other", chart, "-n", "other", "--create-namespace", "--no-hooks"]);
    let text = said(&second);
    assert!(!second.status.success(), "a second mesh is installed");
    assert!(
        text.contains("this cluster has a mesh already: release \"mesh\" in namespace \"selvage-system\""),
        "{text}"
    );
    let (fine, text) = preflight(&cluster.admin_kubeconfig(), "other");
    assert!(!fine && text.contains("this cluster has a mesh already: release \"mesh\""), "{text}");
    let (fine, text) = preflight(&cluster.admin_kubeconfig(), "mesh");
    assert!(fine, "an upgrade is not a second mesh: {text}");

    // An upgrade reaches the definitions, and keeps the CA that the controller has put into the webhook.
    let hook = ["validatingwebhookconfiguration", "selvage-validator"];
    let patch = r#"[{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Cg=="}]"#;
    cluster.kubectl(&["patch", hook[0], hook[1], "--type=json", "-p", patch]).unwrap();
    let crd = ["crd", "sidecars.networking.istio.io"];
    let upgrade =
        helm(&["upgrade", "mesh", chart, "-n", NAMESPACE, "--no-hooks", "--set", "commonLabels.round=two"]);
    assert!(upgrade.status.success(), "{}", said(&upgrade));
    let get = |kind: &str, name: &str, path: &str| {
        cluster.kubectl(&["get", kind, name, "-o", &format!("jsonpath={path}")]).unwrap()
    };
    assert_eq!(get(hook[0], hook[1], "{.webhooks[0].clientConfig.caBundle}"), "Cg==");
    assert_eq!(get(crd[0], crd[1], "{.metadata.labels.round}"), "two");

    let gone = helm(&["uninstall", "mesh", "-n", NAMESPACE, "--no-hooks"]);
    assert!(gone.status.success(), "{}", said(&gone));
    let kinds = "all,configmaps,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,networkpolicies,\
                 clusterroles,clusterrolebindings,validatingwebhookconfigurations,podmonitors,servicemonitors";
    let left = cluster
        .kubectl(&[
            "get",
            kinds,
            "-A",
            "-l",
            "app.kubernetes.io/part-of=selvage,app.kubernetes.io/name!=mesh-preflight",
            "-o",
            "name",
        ])
        .unwrap();
    assert_eq!(left.trim(), "", "objects are left");
    assert_eq!(get(crd[0], crd[1], "{.metadata.name}"), crd[1], "definitions stay, and rules with them");

    // They are taken up again, here by an installation with the settings of an EdgeMesh; those of another owner are left
    // alone.
    let migrate = Command::new(mesh_testkit::bins::find("meshctl").unwrap())
        .args(["migrate", "edgemesh-values", "-f"])
        .arg(chart::root().join("mesh-controller/tests/helm/edgemesh.yaml"))
        .output()
        .unwrap();
    assert!(migrate.status.success(), "{}", said(&migrate));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &migrate.stdout).unwrap();
    let values = file.path().to_str().unwrap();
    let foreign = "virtualservices.networking.istio.io";
    cluster
        .kubectl(&["annotate", "crd", foreign, "meta.helm.sh/release-name=istio-base", "--overwrite"])
        .unwrap();
    let round = ["--no-hooks", "--set", "commonLabels.round=three"];
    let again = helm(&[&["install", "mesh", chart, "-n", NAMESPACE, "-f", values][..], &round].concat());
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(get("crd", crd[1], "{.metadata.labels.round}"), "three");
    assert_eq!(get("crd", foreign, "{.metadata.labels.round}"), "two");
    let port = cluster.kubectl(&[
        "get",
        "service",
        "mesh-controller",
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.spec.ports[0].nodePort}",
    ]);
    assert_eq!(port.unwrap(), "31512", "what EdgeMesh's relays become");
}
