//! Admission and status against a real API server: what is refused names field and reason in kubectl's output, what has
//! no effect is warned of, and what came in while nobody judged is told in its status.

use std::{process::Command, time::Duration};

use mesh_testkit::{bins, kube::eventually};
use serde_json::{Value, json};

use crate::{mesh::Mesh, scenarios};

/// A condition is waited for this long; it takes a fraction of a second where nothing else runs.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(150);
const METRICS: &str = "http://127.0.0.1:15014/metrics";
/// What is wrong with the bad rule.
const FIELD: &str = "spec.http[0].match[0].uri";

/// The webhook is installed and judges; what comes in while nobody judges is told in its status.
pub(crate) fn judges_and_tells(mesh: &mut Mesh) {
    the_webhook_is_installed_and_given_its_ca(mesh);
    a_bad_rule_is_refused_and_an_ignored_field_warned_of(mesh);
    what_came_in_meanwhile_is_said_in_its_status(mesh);
    a_live_cluster_is_analysed(mesh);
    mesh.cluster.kubectl(&["delete", "virtualservice", "try"]).unwrap();
}

/// A rule for a host that nobody has, with that match.
fn rule(uri: &Value) -> Value {
    let to = json!([{ "destination": { "host": "nowhere" } }]);
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "try", "namespace": "default" },
        "spec": { "hosts": ["nowhere"], "http": [{ "match": [{ "uri": uri }], "route": to }] },
    })
}

fn good() -> Value {
    rule(&json!({ "prefix": "/" }))
}

/// The schema lets it pass.
fn bad() -> Value {
    rule(&json!({ "regex": "(" }))
}

/// Waits; a failure shows the controller's log.
fn until(mesh: &Mesh, what: &str, check: impl FnMut() -> Result<(), String>) {
    if let Err((waited, reason)) = eventually(LIMIT, PAUSE, check) {
        let log = mesh.controller.as_ref().unwrap().tail();
        panic!("{what}: not after {waited:?}: {reason}\n{log}");
    }
}

fn metrics(mesh: &Mesh) -> String {
    mesh.get("cloud", METRICS)
}

/// What kubectl says to an apply, standard output and error.
fn apply(mesh: &Mesh, object: &Value, dry: bool) -> (String, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), object.to_string()).unwrap();
    let mut args = vec!["apply", "--validate=ignore", "-f", file.path().to_str().unwrap()];
    if dry {
        args.push("--dry-run=server");
    }
    mesh.cluster.kubectl_output(&args).unwrap()
}

fn the_webhook_is_installed_and_given_its_ca(mesh: &Mesh) {
    let url = format!("https://{}:15017/validate", mesh.world.node("cloud").unwrap().address());
    let state = mesh.state_dir();
    let mut command = Command::new(bins::find("meshctl").unwrap());
    command.args(["webhook", "--url", &url, "-o", "json", "--state-dir"]).arg(state);
    let output = command.output().unwrap();
    assert!(output.status.success(), "meshctl webhook: {}", String::from_utf8_lossy(&output.stderr));
    let mut manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    let client = &mut manifest["webhooks"][0]["clientConfig"];
    let ca = client.as_object_mut().unwrap().remove("caBundle").unwrap();
    mesh.cluster.apply(&manifest.to_string()).unwrap();
    // Installed without a CA, it gets that of the controller.
    until(mesh, "the CA is in the configuration", || {
        let args = ["get", "validatingwebhookconfiguration", "selvage-validator", "-o", "json"];
        let text = mesh.cluster.kubectl(&args).map_err(|e| e.to_string())?;
        let found: Value = serde_json::from_str(&text).unwrap();
        let found = &found["webhooks"][0]["clientConfig"]["caBundle"];
        if *found == ca { Ok(()) } else { Err(found.to_string()) }
    });
}

fn a_bad_rule_is_refused_and_an_ignored_field_warned_of(mesh: &Mesh) {
    // The API server takes a moment to know the webhook.
    until(mesh, "the refusal", || {
        let (out, err) = apply(mesh, &bad(), true);
        let named = err.contains("denied the request: VirtualService default/") && err.contains(FIELD);
        if named { Ok(()) } else { Err(format!("{out}{err}")) }
    });
    let (_, refused) = apply(mesh, &bad(), false);
    println!("kubectl says: {}", refused.trim());
    assert!(refused.contains("validation.selvage.dev") && refused.contains(FIELD), "{refused}");
    assert!(mesh.cluster.kubectl(&["get", "virtualservice", "-A"]).unwrap().is_empty(), "nothing is stored");

    let mut partly = good();
    partly["spec"]["http"][0]["headers"] = json!({ "request": { "set": { "x": "%NOT_A_COMMAND%" } } });
    let (out, warned) = apply(mesh, &partly, false);
    println!("kubectl says: {}", warned.trim());
    assert!(out.contains("created"), "{out}{warned}");
    assert!(warned.contains("Warning: spec.http[0].headers.request.set"), "{warned}");

    condition_is(mesh, "Honoured", "False", "spec.http[0].headers.request.set");
    let metric = "selvage_ignored_fields{field=\"spec.http[].headers.request.set";
    until(mesh, "the metric", || {
        let text = metrics(mesh);
        if text.contains(metric) { Ok(()) } else { Err(text) }
    });
    let counted = metrics(mesh);
    for result in ["denied", "warned"] {
        let line = format!("selvage_webhook_requests_total{{kind=\"VirtualService\",result=\"{result}\"}}");
        assert!(counted.contains(&line), "{line} in {counted}");
    }
    until(mesh, "what only a cluster moves", || {
        let still = scenarios::still("mesh-controller/tests/kube/admission.rs", &metrics(mesh));
        if still.is_empty() { Ok(()) } else { Err(format!("{still:?} did not move")) }
    });
    // Without the field the condition goes, and so does the series.
    apply(mesh, &good(), false);
    condition_is(mesh, "Honoured", "True", "every field");
    until(mesh, "the metric goes", || {
        let text = metrics(mesh);
        if text.contains(metric) { Err(text) } else { Ok(()) }
    });
    mesh.cluster.kubectl(&["delete", "virtualservice", "try"]).unwrap();
}

/// Waits for a condition of the rule.
fn condition_is(mesh: &Mesh, of_type: &str, status: &str, says: &str) {
    until(mesh, &format!("{of_type} is {status}"), || {
        let text = mesh.cluster.kubectl(&["get", "virtualservice", "try", "-o", "json"]);
        let found: Value = serde_json::from_str(&text.map_err(|e| e.to_string())?).unwrap();
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

/// Rules can be changed while no controller answers; it finds the bad ones when it is back, and its lease is taken over.
fn what_came_in_meanwhile_is_said_in_its_status(mesh: &mut Mesh) {
    mesh.controller.take().unwrap().kill();
    let (out, err) = apply(mesh, &bad(), false);
    assert!(out.contains("created"), "without a webhook it gets in: {out}{err}");
    mesh.start_controller();
    condition_is(mesh, "Reconciled", "False", FIELD);
    let errors = "selvage_resource_errors{kind=\"VirtualService\",name=\"try\",namespace=\"default\"} 1";
    until(mesh, "the metric of errors", || {
        let text = metrics(mesh);
        if text.contains(errors) { Ok(()) } else { Err(text) }
    });
    apply(mesh, &good(), false);
    condition_is(mesh, "Reconciled", "True", "");
    let lease = ["get", "lease", "selvage-status-writer", "-n", "selvage-system"];
    let holder = mesh.cluster.kubectl(&[&lease[..], &["-o", "jsonpath={.spec.leaseTransitions}"]].concat());
    assert_eq!(holder.unwrap(), "1", "taken over once, from the controller before");
}

fn a_live_cluster_is_analysed(mesh: &Mesh) {
    let meshctl = bins::find("meshctl").unwrap().display().to_string();
    let kubeconfig = mesh.cluster.admin_kubeconfig().display().to_string();
    let args = [&meshctl, "analyze", "--kubeconfig", &kubeconfig, "-o", "json"];
    let output = mesh.world.node("cloud").unwrap().exec(&args).unwrap();
    let said: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    let ours = |m: &&Value| m["code"] == "IST0101" && m["resource"] == "VirtualService default/try";
    let found = said.as_array().unwrap().iter().find(ours);
    let found = found.unwrap_or_else(|| panic!("the service of the rule does not exist: {said:#}"));
    assert_eq!(found["path"], "spec.http[0].route[0].destination.host");
}
