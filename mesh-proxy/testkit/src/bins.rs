//! Finds this project's programs, building them when they are not there.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

/// Package of each program.
const PACKAGES: [(&str, &str); 9] = [
    ("lab", "mesh-testkit"),
    ("cluster", "mesh-testkit"),
    ("echo", "mesh-testkit"),
    ("demo", "mesh-testkit"),
    ("nat-matrix", "mesh-testkit"),
    ("oci-image", "mesh-testkit"),
    ("mesh-proxy", "mesh-proxy"),
    ("mesh-controller", "mesh-controller"),
    ("meshctl", "meshctl"),
];

/// One build at a time in this process; what was built is not asked for again.
static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Programs whose place a caller knows better.
static KNOWN: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());

/// Says where a program is: cargo tells a test of the programs of its own package, freshly built.
pub fn know(name: &str, path: &str) {
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.push((name.to_owned(), path.into()));
}

/// The path of a program.
///
/// `SELVAGE_BIN_DIR` names a folder that is used as it is. Otherwise the program is taken from the target
/// folder that this process runs from; for a test, cargo builds it first when any source is newer, so that it
/// never runs yesterday's program.
///
/// # Errors
/// Why there is none.
pub fn find(name: &str) -> Result<PathBuf, String> {
    if let Some(dir) = std::env::var_os("SELVAGE_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        return if path.exists() { Ok(path) } else { Err(format!("{} does not exist", path.display())) };
    }
    let known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, path)) = known.iter().find(|(n, _)| n == name) {
        return Ok(path.clone());
    }
    drop(known);
    let me = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    if me.file_name().is_some_and(|n| n == name) {
        return Ok(me);
    }
    let folder = me.parent().ok_or("this program is in no folder")?;
    let is_test = folder.file_name().is_some_and(|n| n == "deps");
    let folder = if is_test { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(name);
    if path.exists() && !(is_test && is_old(&path)) {
        return Ok(path);
    }
    build(name, folder)?;
    if path.exists() { Ok(path) } else { Err(format!("{} was not built", path.display())) }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."))
}

/// Whether any source of the workspace was written after the program.
fn is_old(program: &Path) -> bool {
    let written = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    let Some(built) = written(program) else { return true };
    let mut folders = vec![workspace().to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                // Tests and examples are in no program.
                if !name.starts_with('.') && !["target", "tests", "docs", "examples"].contains(&&*name) {
                    folders.push(path);
                }
            } else if [".rs", ".proto", ".toml", ".lock"].iter().any(|e| name.ends_with(e))
                && written(&path).is_some_and(|w| w > built)
            {
                return true;
            }
        }
    }
    false
}

fn build(name: &str, folder: &Path) -> Result<(), String> {
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.iter().any(|b| b == name) {
        return Ok(());
    }
    let package = PACKAGES.iter().find(|(n, _)| *n == name).map(|(_, p)| *p);
    let package = package.ok_or_else(|| format!("{name} is no program of this project"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(["build", "--quiet", "-p", package, "--bin", name]);
    let profile = folder.file_name().and_then(|n| n.to_str()).unwrap_or("debug");
    if profile != "debug" {
        command.args(["--profile", profile]);
    }
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let output = command.output().map_err(|e| format!("running cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("building {name}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    built.push(name.to_owned());
    Ok(())
}
