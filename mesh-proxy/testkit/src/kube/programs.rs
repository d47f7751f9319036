//! Where the programs of the control plane are: built once by `kube/build.sh` into a cache folder.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use super::KubeError;

/// The folder with etcd, kube-apiserver, kube-controller-manager and kubectl. Builds them the first time, which takes
/// minutes and shows its progress on standard error. `SELVAGE_KUBE_BIN` names a folder that has them already.
pub fn programs() -> Result<PathBuf, KubeError> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    find(&FOUND, &[])
}

/// The same folder with kube-scheduler, kubelet, kube-proxy and helm as well.
pub fn all_programs() -> Result<PathBuf, KubeError> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    find(&FOUND, &["all"])
}

fn find(found: &Mutex<Option<PathBuf>>, which: &[&str]) -> Result<PathBuf, KubeError> {
    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(dir) = &*found {
        return Ok(dir.clone());
    }
    let dir = match std::env::var_os("SELVAGE_KUBE_BIN") {
        Some(dir) => dir.into(),
        None => build(which)?,
    };
    *found = Some(dir.clone());
    Ok(dir)
}

fn build(which: &[&str]) -> Result<PathBuf, KubeError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/build.sh");
    let output = Command::new(&script)
        .args(which)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .map_err(KubeError::io(format!("run {}", script.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match (output.status.success(), text.lines().last()) {
        (true, Some(dir)) => Ok(PathBuf::from(dir)),
        _ => Err(KubeError::Build(format!("{} ended with {}", script.display(), output.status))),
    }
}
