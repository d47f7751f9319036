//! Every kind that the mesh reads, one after the other: without the object there is no effect, an invalid one is refused
//! with field and reason, a good one has its effect on calls and says so in its status, and what it did ends with it.

#[path = "kinds/gateway_api.rs"]
mod gateway_api;
#[path = "kinds/istio.rs"]
mod istio;

use std::time::{Duration, Instant};

use mesh_testkit::kube::eventually;
use serde_json::{Value, json};

use crate::{manifests, mesh::Mesh};

/// Generous: the machine that runs this is slow and busy.
const LIMIT: Duration = Duration::from_secs(40);

/// What a call says of whether an object has its effect.
pub(crate) type Check = fn(&Mesh) -> Result<(), String>;

/// One kind.
pub(crate) struct Kind {
    /// As kubectl names it.
    resource: &'static str,
    /// A good object called `try`, YAML.
    good: &'static str,
    /// What of `good` is replaced to make it invalid, and by what.
    bad: (&'static str, &'static str),
    /// What the refusal says: field and reason.
    refusal: &'static [&'static str],
    /// The condition that tells of it: where the list is, type, status, part of the message.
    status: Option<(&'static str, &'static str, &'static str, &'static str)>,
    effect: Effect,
}

/// What an object does.
pub(crate) enum Effect {
    /// Holds with the object, and then without.
    Calls(Check, Check),
    /// Nothing; kubectl shows a warning with these words.
    Warned(&'static str),
}

/// Where the conditions of Istio's kinds are.
const CONDITIONS: &str = "/status/conditions";

/// Puts what tests do not know beforehand in its place.
fn filled(mesh: &Mesh, text: &str) -> String {
    let address = |pod: &str| mesh.world.pod(pod).unwrap().address().to_string();
    text.replace("{reviews-v1}", &address("reviews-v1"))
}

/// Goes through all kinds. Gateway API's CRDs are there.
pub(crate) fn go_through(mesh: &mut Mesh) {
    a_pod_for_the_client(mesh);
    gateway_api::a_server_with_tls(mesh);
    let around = format!("{}\n---\n{}", istio::AROUND, gateway_api::AROUND);
    mesh.cluster.apply(&filled(mesh, &around)).unwrap();
    let kinds: Vec<Kind> = istio::kinds().into_iter().chain(gateway_api::kinds()).collect();
    for kind in &kinds {
        one(mesh, kind);
    }
    println!("{} kinds: applied, in effect, told of, refused, deleted, reverted", kinds.len());
}

/// What tells callers apart needs to know the caller.
fn a_pod_for_the_client(mesh: &Mesh) {
    let address = |place: &str| mesh.world.place(place).unwrap().address();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "client", "labels": { "app": "client" } },
        "spec": { "nodeName": "edge-a", "containers": [{ "name": "client", "image": "selvage/echo" }] },
    });
    manifests::apply_list(&mesh.cluster, vec![pod]);
    mesh.cluster.set_pod_ready("default", "client", address("client"), address("edge-a")).unwrap();
}

fn one(mesh: &Mesh, kind: &Kind) {
    let start = Instant::now();
    let good = filled(mesh, kind.good);
    if let Effect::Calls(_, without) = &kind.effect {
        until(mesh, kind, "before", *without);
    }
    let by = refused(mesh, kind, &good);
    let (out, warned) = apply(mesh, &good, false);
    assert!(out.contains("created"), "{}: {out}{warned}", kind.resource);
    let applied = Instant::now();
    match &kind.effect {
        Effect::Calls(with, _) => until(mesh, kind, "in effect", *with),
        Effect::Warned(words) => {
            let said = warned.contains("Warning: ") && warned.contains(words);
            assert!(said, "{}: no warning of {words:?} in {warned:?}", kind.resource);
        }
    }
    let effect = applied.elapsed();
    status(mesh, kind);
    mesh.cluster.kubectl(&["delete", kind.resource, "try"]).unwrap();
    if let Effect::Calls(_, without) = &kind.effect {
        until(mesh, kind, "after", *without);
    }
    let (effect, all) = (effect.as_secs_f64() * 1000.0, start.elapsed().as_secs_f64());
    let shown = match kind.effect {
        Effect::Calls(..) => format!("in effect after {effect:.0} ms"),
        Effect::Warned(_) => "has no effect, and kubectl says so".to_owned(),
    };
    println!("{}: {shown}, refused by {by}, reverted ({all:.1} s)", kind.resource);
}

/// The invalid one does not get in; returns who refused it.
fn refused(mesh: &Mesh, kind: &Kind, good: &str) -> &'static str {
    let (from, to) = kind.bad;
    assert!(good.contains(from), "{}: {from:?} is not in\n{good}", kind.resource);
    let (out, err) = apply(mesh, &good.replacen(from, to, 1), true);
    for words in kind.refusal {
        assert!(err.contains(words), "{}: no {words:?} in what kubectl says: {out}{err}", kind.resource);
    }
    // Some of what Istio's webhook refuses its schemas refuse before.
    if err.contains("denied the request") { "the webhook" } else { "the schema" }
}

fn apply(mesh: &Mesh, text: &str, dry: bool) -> (String, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut args = vec!["apply", "--validate=ignore", "-f", file.path().to_str().unwrap()];
    if dry {
        args.push("--dry-run=server");
    }
    mesh.cluster.kubectl_output(&args).unwrap()
}

fn until(mesh: &Mesh, kind: &Kind, what: &str, check: Check) {
    if let Err((waited, said)) = eventually(LIMIT, Duration::from_millis(30), || check(mesh)) {
        let log = mesh.controller.as_ref().unwrap().tail();
        panic!("{} {what}: not after {waited:?}: {said}\n{log}", kind.resource);
    }
}

fn status(mesh: &Mesh, kind: &Kind) {
    let Some((list, of_type, status, says)) = kind.status else { return };
    let seen = eventually(LIMIT, Duration::from_millis(150), || {
        let text =
            mesh.cluster.kubectl(&["get", kind.resource, "try", "-o", "json"]).map_err(|e| e.to_string())?;
        let object: Value = serde_json::from_str(&text).unwrap();
        let conditions = object.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let is_it = |c: &Value| {
            c["type"] == of_type
                && c["status"] == status
                && c["observedGeneration"] == object["metadata"]["generation"]
                && c["message"].as_str().is_some_and(|m| m.contains(says))
        };
        if conditions.iter().any(is_it) { Ok(()) } else { Err(object["status"].to_string()) }
    });
    if let Err((waited, said)) = seen {
        panic!("{}: {of_type} is not {status} after {waited:?}: {said}", kind.resource);
    }
}

/// Status and body of a call with curl at a place; status `000` when there is no answer.
fn fetch(mesh: &Mesh, place: &str, url: &str, args: &[&str]) -> (String, String) {
    let mut all = vec!["curl", "-s", "-k", "-m", "2", "-w", "\n%{http_code}"];
    all.extend(args);
    all.push(url);
    let output = mesh.world.place(place).unwrap().exec(&all).unwrap().stdout;
    let (body, status) = output.rsplit_once('\n').unwrap_or(("", &output));
    (status.to_owned(), body.to_owned())
}

/// A call is answered with that status.
fn answers(got: (String, String), status: &str) -> Result<(), String> {
    if got.0 == status { Ok(()) } else { Err(format!("{} {}", got.0, got.1)) }
}

/// A call is answered, or not, otherwise than with 200.
fn fails(got: (String, String)) -> Result<(), String> {
    if got.0 == "200" { Err(format!("{} {}", got.0, got.1)) } else { Ok(()) }
}

/// From the client's pod.
fn inside(mesh: &Mesh, url: &str) -> (String, String) {
    fetch(mesh, "client", url, &[])
}

/// From outside, at the gateway on edge-b.
fn outside(mesh: &Mesh, port: u16, host: &str) -> (String, String) {
    let address = mesh.world.node("edge-b").unwrap().address();
    let header = format!("host: {host}");
    fetch(mesh, "cloud", &format!("http://{address}:{port}/details/0"), &["-H", &header])
}
