//! Admission and status against a real API server: what is refused names field and reason in kubectl's output, what has
//! no effect is warned of, and the status of each kind says what became of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use manifests::install_crds;
use mesh_testkit::{
    bins,
    kube::{Daemon, KubeCluster, Wrap, eventually, programs},
    ports::free_port,
};
use serde_json::{Value, json};

/// A condition is waited for this long; it takes a fraction of a second where nothing else runs.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(150);

/// Where a controller listens.
struct Place {
    dir: PathBuf,
    kubeconfig: PathBuf,
    ports: [u16; 4],
}

impl Place {
    fn new(dir: &Path, kubeconfig: &Path) -> Self {
        let ports = std::array::from_fn(|_| free_port());
        Self { dir: dir.to_owned(), kubeconfig: kubeconfig.to_owned(), ports }
    }

    fn address(&self, i: usize) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[i])).to_string()
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn start(&self) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
        command
            .args(["--source", "kube", "--set", "names=[127.0.0.1]", "--kubeconfig"])
            .arg(&self.kubeconfig);
        command.arg("--state-dir").arg(self.state_dir());
        let flags = ["--listen", "--metrics-listen", "--admin-listen", "--webhook-listen"];
        for (i, flag) in flags.into_iter().enumerate() {
            command.args([flag, &self.address(i)]);
        }
        let log = self.dir.join("mesh-controller.log");
        Daemon::spawn("mesh-controller", &Wrap::none(), command, &log).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("mesh-controller.log")).unwrap_or_default()
    }

    /// Waits; a failure shows the controller's log.
    fn until(&self, what: &str, check: impl FnMut() -> Result<(), String>) {
        if let Err((waited, reason)) = eventually(LIMIT, PAUSE, check) {
            panic!("{what}: not after {waited:?}: {reason}\n{}", self.log());
        }
    }

    fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let get = || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect(self.address(1))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        get().unwrap_or_default()
    }
}

fn meshctl(args: &[&str]) -> String {
    let program = bins::find("meshctl").unwrap();
    let output = Command::new(program).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.code() != Some(2), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What kubectl says to an apply, standard output and error.
fn apply(cluster: &KubeCluster, object: &Value, dry: bool) -> (String, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), object.to_string()).unwrap();
    let mut args = vec!["apply", "--validate=ignore", "-f", file.path().to_str().unwrap()];
    if dry {
        args.push("--dry-run=server");
    }
    cluster.kubectl_output(&args).unwrap()
}

fn object(kind: &str, api_version: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": { "name": "try", "namespace": "default" }, "spec": spec,
    })
}

/// Each kind: a good spec, a bad one that its schema lets pass, and what the refusal names.
fn kinds() -> Vec<(&'static str, &'static str, Value, Value, &'static str)> {
    let networking = "networking.istio.io/v1";
    let security = "security.istio.io/v1";
    let to = json!([{ "destination": { "host": "reviews" } }]);
    let server = |protocol: &str, name: &str| {
        json!({ "selector": { "gw": "edge" }, "servers": [
            { "port": { "number": 80, "name": name, "protocol": protocol }, "hosts": ["*"] }] })
    };
    let entry = |protocol: &str| {
        json!({ "hosts": ["api.example.com"], "resolution": "DNS",
            "ports": [{ "number": 80, "name": "a", "protocol": protocol }] })
    };
    vec![
        (
            "VirtualService",
            networking,
            json!({ "hosts": ["reviews"], "http": [{ "match": [{ "uri": { "prefix": "/" } }], "route": to }] }),
            json!({ "hosts": ["reviews"], "http": [{ "match": [{ "uri": { "regex": "(" } }], "route": to }] }),
            "spec.http[0].match[0].uri",
        ),
        (
            "DestinationRule",
            networking,
            json!({ "host": "reviews", "subsets": [{ "name": "v1", "labels": { "version": "v1" } }] }),
            json!({ "host": "reviews", "subsets": [{ "name": "v1" }, { "name": "v1" }] }),
            "spec.subsets[1]",
        ),
        ("Gateway", networking, server("HTTP", "http"), server("NONSENSE", "http"), "protocol"),
        ("ServiceEntry", networking, entry("HTTP"), entry("NONSENSE"), "protocol"),
        (
            "Sidecar",
            networking,
            json!({ "egress": [{ "hosts": ["./*"] }] }),
            json!({ "egress": [{ "hosts": ["no-slash"] }] }),
            "spec.egress[0].hosts[0]",
        ),
        (
            "AuthorizationPolicy",
            security,
            json!({ "rules": [{ "from": [{ "source": { "namespaces": ["default"] } }] }] }),
            json!({ "rules": [{ "from": [{ "source": { "ipBlocks": ["not an address"] } }] }] }),
            "ipBlocks",
        ),
        (
            "RequestAuthentication",
            security,
            json!({ "jwtRules": [{ "issuer": "me", "jwksUri": "https://example.com/keys" }] }),
            json!({ "jwtRules": [{ "issuer": "me", "jwks": "nonsense" }] }),
            "jwks",
        ),
        (
            "PeerAuthentication",
            security,
            json!({ "selector": { "matchLabels": { "app": "a" } }, "mtls": { "mode": "STRICT" } }),
            json!({ "mtls": { "mode": "STRICT" }, "portLevelMtls": { "80": { "mode": "STRICT" } } }),
            "portLevelMtls",
        ),
    ]
}

#[test]
fn admission_and_status_on_a_real_api_server() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = KubeCluster::start(dir.path()).unwrap();
    let rbac = manifests::root().join("mesh-controller/tests/kube/rbac.yaml");
    cluster.kubectl(&["apply", "-f", rbac.to_str().unwrap()]).unwrap();
    install_crds(&cluster);
    let account = cluster.service_account_kubeconfig("selvage-system", "mesh-controller").unwrap();
    let place = Place::new(dir.path(), &account);
    let controller = place.start();

    the_webhook_is_installed_and_given_its_ca(&cluster, &place);
    a_bad_rule_is_refused_and_an_ignored_field_warned_of(&cluster, &place);
    each_kind_is_applied_told_of_refused_and_deleted(&cluster, &place);
    what_came_in_meanwhile_is_said_in_its_status(&cluster, &place, controller);
    a_live_cluster_is_analysed(&cluster, &place);
}

fn the_webhook_is_installed_and_given_its_ca(cluster: &KubeCluster, place: &Place) {
    place
        .until("a CA", || place.state_dir().join("ca/ca.crt").exists().then_some(()).ok_or_else(String::new));
    let url = format!("https://{}/validate", place.address(3));
    let state = place.state_dir();
    let text = meshctl(&["webhook", "--url", &url, "--state-dir", state.to_str().unwrap(), "-o", "json"]);
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    let client = &mut manifest["webhooks"][0]["clientConfig"];
    let ca = client.as_object_mut().unwrap().remove("caBundle").unwrap();
    cluster.apply(&manifest.to_string()).unwrap();
    // Installed without a CA, it gets that of the controller.
    place.until("the CA is in the configuration", || {
        let text =
            cluster.kubectl(&["get", "validatingwebhookconfiguration", "selvage-validator", "-o", "json"]);
        let found: Value = serde_json::from_str(&text.map_err(|e| e.to_string())?).unwrap();
        let found = &found["webhooks"][0]["clientConfig"]["caBundle"];
        if *found == ca { Ok(()) } else { Err(found.to_string()) }
    });
}

fn a_bad_rule_is_refused_and_an_ignored_field_warned_of(cluster: &KubeCluster, place: &Place) {
    let (kind, api, good, bad, field) = kinds().swap_remove(0);
    let bad = object(kind, api, &bad);
    // The API server takes a moment to know the webhook.
    place.until("the refusal", || {
        let (out, err) = apply(cluster, &bad, true);
        let named = err.contains("denied the request: VirtualService default/") && err.contains(field);
        if named { Ok(()) } else { Err(format!("{out}{err}")) }
    });
    let (_, refused) = apply(cluster, &bad, false);
    println!("kubectl says: {}", refused.trim());
    assert!(refused.contains("validation.selvage.dev") && refused.contains(field), "{refused}");
    assert!(cluster.kubectl(&["get", "virtualservice", "-A"]).unwrap().is_empty(), "nothing is stored");

    let mut partly = object(kind, api, &good);
    partly["spec"]["http"][0]["match"][0]["statPrefix"] = "x".into();
    let (out, warned) = apply(cluster, &partly, false);
    println!("kubectl says: {}", warned.trim());
    assert!(out.contains("created"), "{out}{warned}");
    assert!(warned.contains("Warning: spec.http[0].match[0].statPrefix: has no effect"), "{warned}");

    condition_is(cluster, place, "virtualservice", "Honoured", "False", "spec.http[0].match[0].statPrefix");
    let metric = "selvage_ignored_fields{field=\"spec.http[].match[].statPrefix\",kind=\"VirtualService\"} 1";
    place.until("the metric", || {
        let text = place.metrics();
        if text.contains(metric) { Ok(()) } else { Err(text) }
    });
    let counted = place.metrics();
    for result in ["denied", "warned"] {
        let line = format!("selvage_webhook_requests_total{{kind=\"VirtualService\",result=\"{result}\"}}");
        assert!(counted.contains(&line), "{line} in {counted}");
    }
    // Without the field the condition goes, and so does the series.
    apply(cluster, &object(kind, api, &good), false);
    condition_is(cluster, place, "virtualservice", "Honoured", "True", "every field");
    place.until("the metric goes", || {
        if place.metrics().contains(metric) { Err(place.metrics()) } else { Ok(()) }
    });
    cluster.kubectl(&["delete", "virtualservice", "try"]).unwrap();
}

/// Waits for a condition of the object `try`.
fn condition_is(cluster: &KubeCluster, place: &Place, kind: &str, of_type: &str, status: &str, says: &str) {
    place.until(&format!("{kind}: {of_type} is {status}"), || {
        let text = cluster.kubectl(&["get", kind, "try", "-o", "json"]).map_err(|e| e.to_string())?;
        let found: Value = serde_json::from_str(&text).unwrap();
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_it = |c: &&Value| c["type"] == of_type && c["status"] == status;
        let message = conditions.iter().find(is_it).and_then(|c| c["message"].as_str());
        let current = found["status"]["observedGeneration"] == found["metadata"]["generation"];
        if current && message.is_some_and(|m| m.contains(says)) {
            Ok(())
        } else {
            Err(found["status"].to_string())
        }
    });
}

fn each_kind_is_applied_told_of_refused_and_deleted(cluster: &KubeCluster, place: &Place) {
    for (kind, api, good, bad, field) in kinds() {
        let (out, err) = apply(cluster, &object(kind, api, &good), false);
        assert!(out.contains("created"), "{kind}: {out}{err}");
        let (_, refused) = apply(cluster, &object(kind, api, &bad), true);
        assert!(refused.contains(field), "{kind}: {refused}");
        // Some of what Istio's webhook refuses its schemas refuse before.
        let by = if refused.contains("denied the request") { "the webhook" } else { "the schema" };
        let plural = format!("{}.{}", kind.to_lowercase(), api.split('/').next().unwrap());
        condition_is(cluster, place, &plural, "Reconciled", "True", "");
        cluster.kubectl(&["delete", &plural, "try"]).unwrap();
        println!("{kind}: applied, told of, refused by {by}, deleted");
    }
}

/// Rules can be changed while no controller answers; it finds the bad ones when it is back, and its lease is taken over.
fn what_came_in_meanwhile_is_said_in_its_status(cluster: &KubeCluster, place: &Place, controller: Daemon) {
    drop(controller);
    let (kind, api, good, bad, field) = kinds().swap_remove(0);
    let (out, err) = apply(cluster, &object(kind, api, &bad), false);
    assert!(out.contains("created"), "without a webhook it gets in: {out}{err}");
    let _controller = place.start();
    condition_is(cluster, place, "virtualservice", "Reconciled", "False", field);
    let errors = "selvage_resource_errors{kind=\"VirtualService\",name=\"try\",namespace=\"default\"} 1";
    place.until("the metric of errors", || {
        let text = place.metrics();
        if text.contains(errors) { Ok(()) } else { Err(text) }
    });
    apply(cluster, &object(kind, api, &good), false);
    condition_is(cluster, place, "virtualservice", "Reconciled", "True", "");
    let holder = cluster
        .kubectl(&[
            "get",
            "lease",
            "selvage-status-writer",
            "-n",
            "selvage-system",
            "-o",
            "jsonpath={.spec.leaseTransitions}",
        ])
        .unwrap();
    assert_eq!(holder, "1", "taken over once, from the controller before");
}

fn a_live_cluster_is_analysed(cluster: &KubeCluster, _place: &Place) {
    let kubectl = programs().unwrap().join("kubectl");
    let kubeconfig = cluster.admin_kubeconfig();
    let (kubectl, kubeconfig) = (kubectl.to_str().unwrap(), kubeconfig.to_str().unwrap());
    let text = meshctl(&["analyze", "--kubectl", kubectl, "--kubeconfig", kubeconfig, "-o", "json"]);
    let said: Value = serde_json::from_str(&text).unwrap();
    let found = said.as_array().unwrap().iter().find(|m| m["code"] == "IST0101");
    let found = found.unwrap_or_else(|| panic!("the service of the rule does not exist: {said:#}"));
    assert_eq!(found["resource"], "VirtualService default/try");
    assert_eq!(found["path"], "spec.http[0].route[0].destination.host");
}
