//! The release before this one: its chart as it was, and its programs, built of the commit that they are of.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mesh_testkit::cluster::program_image_at;

use crate::shop::root;

/// The tag of the images.
pub(crate) const TAG: &str = "previous";
/// `0`: today's programs in the older chart, which takes no build.
const SWITCH: &str = "SELVAGE_PREVIOUS";

fn folder() -> PathBuf {
    root().join("mesh-controller/tests/chart/previous")
}

/// The chart.
pub(crate) fn chart() -> PathBuf {
    folder().join("mesh-0.1.0.tgz")
}

/// Images of the programs; or why there are none.
pub(crate) fn images() -> Result<Vec<PathBuf>, String> {
    if std::env::var(SWITCH).is_ok_and(|v| v == "0") {
        return Err(format!("{SWITCH}=0"));
    }
    println!(
        "programs of the release before: built of this tree's history where they are not there yet, some minutes"
    );
    let output = Command::new(folder().join("build.sh"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("build.sh: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => {}
        // This tree, or this machine, has not what it takes.
        Some(3) => return Err(said),
        code => panic!("build.sh: {code:?}: {said}"),
    }
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let built = Path::new(out.lines().last().unwrap_or_default()).to_owned();
    println!("programs of the release before: {}", built.display());
    let image = |name: &str| program_image_at(&built.join(name), name, TAG).unwrap();
    Ok(["mesh-controller", "mesh-proxy"].map(image).to_vec())
}
