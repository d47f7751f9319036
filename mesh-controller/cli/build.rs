//! Puts the chart into the program: a list of the files of charts/mesh, but for the definitions of
//! Istio's kinds, which are made at run time.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// From this package.
const CHART: &str = "../../charts/mesh";

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("no manifest"))?);
    let chart = here.join(CHART);
    let mut files = Vec::new();
    collect(&chart, &mut files)?;
    files.sort();
    let mut text = String::from("/// Name and content of each file.\nconst CHART: &[(&str, &str)] = &[\n");
    for file in files {
        let name = file.strip_prefix(&chart).map_err(io::Error::other)?.display().to_string();
        // Where this package lies is the compiler's to know: what is built here may be used for a copy of it elsewhere.
        let inside = format!("/{CHART}/{name}");
        text.push_str(&format!(
            "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {inside:?}))),\n"
        ));
    }
    text.push_str("];\n");
    fs::write(out.join("chart.rs"), text)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let inside = folder.strip_prefix(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).unwrap_or(folder);
    println!("cargo::rerun-if-changed={}", inside.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // Those of Istio's kinds are made; our own is a file.
        let is_made = folder.ends_with("files/crds") && !name.ends_with(".selvage.dev.yaml");
        if path.is_dir() {
            collect(&path, files)?;
        } else if !is_made {
            files.push(path);
        }
    }
    Ok(())
}
