//! The chart of this version: its files are in the program; the definitions of Istio's kinds are made, as they are for
//! charts/crds.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// Writes the chart into `mesh` of a folder that goes when it is dropped.
pub(super) fn unpack() -> Result<TempDir> {
    let dir =
        tempfile::Builder::new().prefix("meshctl-chart-").tempdir().context("make a folder for the chart")?;
    let root = dir.path().join("mesh");
    for (name, content) in CHART {
        write(&root.join(name), content.as_bytes())?;
    }
    for crd in istio_compat::crd::all() {
        let file = root.join("files/crds").join(istio_compat::crd::file_name(&crd));
        write(&file, istio_compat::crd::yaml(&crd).as_bytes())?;
    }
    Ok(dir)
}

/// All definitions of the chart, as objects.
pub(crate) fn definitions() -> Vec<Value> {
    let own = own_definitions().filter_map(|(_, text)| istio_compat::yaml::documents(text).ok()).flatten();
    istio_compat::crd::all().into_iter().chain(own).collect()
}

/// File name and text of those that are of no kind of Istio's.
pub(crate) fn own_definitions() -> impl Iterator<Item = (&'static str, &'static str)> {
    CHART.iter().filter_map(|(name, text)| Some((name.strip_prefix("files/crds/")?, *text)))
}

fn write(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(file, content).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;

    fn files(root: &Path, at: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(root, &path, all);
            } else {
                all.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }

    #[test]
    fn it_is_the_chart_of_the_source_byte_by_byte() {
        let dir = unpack().unwrap();
        let (root, source) =
            (dir.path().join("mesh"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/mesh"));
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        files(&root, &root, &mut ours);
        files(&source, &source, &mut theirs);
        assert!(ours.len() > 30, "{}", ours.len());
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, content) in &theirs {
            assert!(ours[name] == *content, "{} is another one", name.display());
        }
    }
}
