//! A bill of materials (CycloneDX 1.5) beside an image: the crates that a program is built of, as cargo resolved
//! them for its target, and what else lies in the image.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// What cargo's answer lacks.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// No such package in the workspace.
    #[error("cargo metadata knows no package {0:?}")]
    NoPackage(String),
    /// The answer is not what it is documented to be.
    #[error("cargo metadata has no {0}")]
    Missing(&'static str),
}

/// The bill of `package`, from what `cargo metadata --format-version 1 --filter-platform TARGET` prints.
///
/// `others` are package URLs of what the image holds beside it.
///
/// # Errors
/// Metadata without the package.
pub(super) fn sbom(
    metadata: &Value,
    package: &str,
    others: &[String],
    created: &str,
) -> Result<Value, SbomError> {
    let packages = metadata["packages"].as_array().ok_or(SbomError::Missing("packages"))?;
    let nodes = metadata["resolve"]["nodes"].as_array().ok_or(SbomError::Missing("resolve.nodes"))?;
    let by_id: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|p| p["id"].as_str().map(|id| (id, p))).collect();
    let root = packages
        .iter()
        .find(|p| p["name"] == package && p["source"].is_null())
        .and_then(|p| p["id"].as_str())
        .ok_or_else(|| SbomError::NoPackage(package.to_owned()))?;
    let edges: BTreeMap<&str, Vec<&str>> =
        nodes.iter().filter_map(|n| Some((n["id"].as_str()?, linked(n)))).collect();
    // What is linked in, and what those link.
    let mut reached = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    let purl = |id: &str| by_id.get(id).map(|p| crate_url(p));
    let mut components: Vec<Value> = reached
        .iter()
        .filter(|id| **id != root)
        .filter_map(|id| by_id.get(id).map(|p| component(p)))
        .collect();
    components.extend(others.iter().map(|url| debian(url)));
    let dependencies: Vec<Value> = reached
        .iter()
        .filter_map(|id| {
            let on: Vec<String> = edges.get(id)?.iter().filter_map(|d| purl(d)).collect();
            Some(json!({"ref": purl(id)?, "dependsOn": on}))
        })
        .collect();
    let this = by_id.get(root).map(|p| component(p)).ok_or(SbomError::Missing("the package"))?;
    let mut metadata = json!({"timestamp": created, "component": this});
    metadata["component"]["type"] = "application".into();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    }))
}

/// Dependencies that end up in the program: not those of its build and its tests.
fn linked(node: &Value) -> Vec<&str> {
    let kinds =
        |d: &Value| d["dep_kinds"].as_array().is_none_or(|kinds| kinds.iter().any(|k| k["kind"].is_null()));
    let deps = node["deps"].as_array().into_iter().flatten();
    deps.filter(|d| kinds(d)).filter_map(|d| d["pkg"].as_str()).collect()
}

fn crate_url(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value) -> Value {
    let url = crate_url(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": url,
        "name": package["name"],
        "version": package["version"],
        "purl": url,
    });
    if let Some(license) = package["license"].as_str() {
        component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    component
}

/// `pkg:deb/debian/nftables@1.0.6-2?arch=amd64` as a component.
fn debian(url: &str) -> Value {
    let bare = url.split('?').next().unwrap_or(url);
    let (path, version) = bare.rsplit_once('@').unwrap_or((bare, ""));
    let name = path.rsplit('/').next().unwrap_or(path);
    json!({"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url})
}
