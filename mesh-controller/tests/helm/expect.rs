//! What can be true of a rendering of the chart.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde_json::{Value, json};

use super::chart::{self, merged, name, nested, parse};

/// What is true of a rendering.
pub(crate) enum Expect {
    /// The object has that at the pointer.
    Is(&'static str, String, Value),
    /// The object has nothing there.
    Lacks(&'static str, String),
    /// The list at the pointer has that element.
    Has(&'static str, String, Value),
    /// The configuration in the ConfigMap has that.
    Config(&'static str, &'static str, Value),
    /// The object is there.
    There(&'static str),
    /// The object is not there.
    Gone(&'static str),
}

use Expect::{Config, Gone, Has, Is, Lacks, There};

pub(crate) fn pod(pointer: &str) -> String {
    format!("/spec/template/spec{pointer}")
}

pub(crate) fn container(pointer: &str) -> String {
    pod(&format!("/containers/0{pointer}"))
}

/// A rendering by `Kind/name`.
pub(crate) type Rendered = BTreeMap<String, Value>;

pub(crate) fn render(values: &Value) -> Rendered {
    let chart = with_samples();
    let args =
        ["template", "mesh", chart.to_str().unwrap(), "--namespace", chart::NAMESPACE, "--values", "-"];
    let values = merged(values, &nested("crds.install", json!(false)));
    let out = chart::run(&args, &values);
    assert!(out.status.success(), "{values}: {}", String::from_utf8_lossy(&out.stderr));
    parse(std::str::from_utf8(&out.stdout).unwrap()).into_iter().map(|o| (name(&o), o)).collect()
}

/// The chart with a dashboard and a rule, whatever it has of them.
fn with_samples() -> &'static Path {
    static COPY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &COPY
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("mesh");
            for folder in ["templates", "files/dashboards", "files/rules"] {
                std::fs::create_dir_all(copy.join(folder)).unwrap();
            }
            for file in ["Chart.yaml", "values.yaml", "values.schema.json"] {
                std::fs::copy(chart::chart().join(file), copy.join(file)).unwrap();
            }
            for file in std::fs::read_dir(chart::chart().join("templates")).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), copy.join("templates").join(file.file_name())).unwrap();
            }
            std::fs::write(copy.join("files/dashboards/sample_board.json"), "{\"title\": \"{{ braces }}\"}")
                .unwrap();
            let rule = "groups:\n- name: sample\n  rules:\n  - record: a\n    expr: b\n";
            std::fs::write(copy.join("files/rules/sample.yaml"), rule).unwrap();
            (dir, copy)
        })
        .1
}

impl Expect {
    /// Whether it holds; the reason when not.
    pub(crate) fn holds(&self, all: &Rendered) -> Result<(), String> {
        let found = |object: &str| all.get(object).ok_or_else(|| format!("{object} is not there"));
        match self {
            There(object) => found(object).map(drop),
            Gone(object) => found(object).map_or(Ok(()), |_| Err(format!("{object} is there"))),
            Is(object, pointer, wanted) => {
                let have = found(object)?.pointer(pointer);
                (have == Some(wanted)).then_some(()).ok_or_else(|| format!("{object}{pointer} is {have:?}"))
            }
            Lacks(object, pointer) => {
                let have = found(object)?.pointer(pointer);
                have.is_none().then_some(()).ok_or_else(|| format!("{object}{pointer} is {have:?}"))
            }
            Has(object, pointer, wanted) => {
                let have = found(object)?.pointer(pointer);
                let has = have.and_then(Value::as_array).is_some_and(|list| list.contains(wanted));
                has.then_some(()).ok_or_else(|| format!("{object}{pointer} is {have:?}"))
            }
            Config(map, pointer, wanted) => {
                let map = found(&format!("ConfigMap/{map}"))?;
                let text = map.pointer("/data/config.yaml").and_then(Value::as_str).unwrap_or_default();
                let config = parse(text).remove(0);
                let have = config.pointer(pointer);
                (have == Some(wanted)).then_some(()).ok_or_else(|| format!("{pointer} is {have:?} in {text}"))
            }
        }
    }
}
