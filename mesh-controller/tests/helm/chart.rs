//! Renders charts/mesh with the real helm.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Mutex,
};

use serde_json::{Map, Value};

/// The namespace of every rendering.
pub(crate) const NAMESPACE: &str = "selvage-system";

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn chart() -> PathBuf {
    root().join("charts/mesh")
}

/// Helm, which the test cluster's script builds once.
pub(crate) fn helm() -> PathBuf {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap();
    if let Some(program) = &*found {
        return program.clone();
    }
    let script = root().join("mesh-proxy/testkit/kube/build.sh");
    let built = Command::new(script).arg("helm").stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "helm is not built");
    let folder = String::from_utf8(built.stdout).unwrap();
    let program = Path::new(folder.lines().last().unwrap()).join("helm");
    *found = Some(program.clone());
    program
}

/// Runs helm with values on standard input, where arguments name `-f -`.
pub(crate) fn run(args: &[&str], values: &Value) -> Output {
    let mut command = Command::new(helm());
    // Nothing of the machine's own Helm or cluster.
    let home = std::env::temp_dir();
    for key in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(key, home.join("selvage-helm"));
    }
    command.env_remove("KUBECONFIG").env("HOME", &home).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // An early end is seen in the output.
    let _early = child.stdin.take().unwrap().write_all(values.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

/// What the chart becomes: the text of the manifests, or what helm said.
pub(crate) fn template(values: &Value, further: &[&str]) -> Result<String, String> {
    let chart = chart();
    let mut args =
        vec!["template", "mesh", chart.to_str().unwrap(), "--namespace", NAMESPACE, "--values", "-"];
    args.extend(further);
    let out = run(&args, values);
    if out.status.success() {
        return Ok(String::from_utf8(out.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned())
}

/// The objects of a rendering. The definitions are left out unless values ask for them: they are large and always the same.
pub(crate) fn objects(values: &Value) -> Result<Vec<Value>, String> {
    let text = template(values, &["--set", "crds.install=false"])?;
    Ok(parse(&text))
}

pub(crate) fn parse(text: &str) -> Vec<Value> {
    let all = istio_compat::yaml::documents(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    all.into_iter().filter(Value::is_object).collect()
}

/// `Kind/name`.
pub(crate) fn name(object: &Value) -> String {
    let text = |p: &str| object.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}

/// Values that set the key at `path` (`a.b.c`).
pub(crate) fn nested(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |inner, key| Value::Object(Map::from_iter([(key.to_owned(), inner)])))
}

/// `over` on top of `base`, maps key by key, as Helm does.
pub(crate) fn merged(base: &Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(a), Value::Object(b)) => {
            let mut all = a.clone();
            for (key, value) in b {
                let value = all.get(key).map_or_else(|| value.clone(), |old| merged(old, value));
                all.insert(key.clone(), value);
            }
            Value::Object(all)
        }
        _ => over.clone(),
    }
}

/// The chart's schema of values.
pub(crate) fn schema() -> Value {
    let text = std::fs::read_to_string(chart().join("values.schema.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The chart's own values.
pub(crate) fn defaults() -> Value {
    let text = std::fs::read_to_string(chart().join("values.yaml")).unwrap();
    parse(&text).remove(0)
}

/// Every value that can be set, as `a.b.c`, with its part of the schema.
pub(crate) fn leaves(schema: &Value) -> Vec<(String, Value)> {
    fn walk(path: &str, schema: &Value, out: &mut Vec<(String, Value)>) {
        match schema["properties"].as_object() {
            Some(properties) if schema["type"] == "object" => {
                for (key, part) in properties {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, part, out);
                }
            }
            _ => out.push((path.to_owned(), schema.clone())),
        }
    }
    let mut out = Vec::new();
    walk("", schema, &mut out);
    out
}

/// The value at `a.b.c`.
pub(crate) fn at<'a>(values: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(values, |v, key| v.get(key))
}
