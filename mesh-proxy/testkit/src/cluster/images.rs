//! Images of the cluster's pods, made from programs of this machine: debug builds with the libraries that they link to, and
//! a pause program. Archives are kept beside the programs and made again when a program is newer.

use std::{
    fs,
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use serde_json::json;

use super::ClusterError;
use crate::{
    bins,
    image::{Arch, Image, NONROOT, Source},
};

/// The image of a pod's first process.
pub(super) const PAUSE: &str = "selvage/pause:test";
/// The image of the cluster's name server.
pub(super) const COREDNS: &str = "selvage/coredns:test";
/// The images' tag, unless the caller makes others.
pub const TAG: &str = "test";

const PAUSE_SOURCE: &str = r"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void on(int signal) {
  if (signal != SIGCHLD) _exit(0);
  while (waitpid(-1, 0, WNOHANG) > 0) {}
}
int main(void) {
  signal(SIGCHLD, on); signal(SIGTERM, on); signal(SIGINT, on);
  for (;;) pause();
}
";

/// The archive of the pause image.
pub(super) fn pause() -> Result<PathBuf, ClusterError> {
    let folder = folder()?;
    let program = folder.join("pause");
    if !program.exists() {
        let work = tempfile::tempdir_in(&folder).map_err(ClusterError::io("create", &folder))?;
        let (source, new) = (work.path().join("pause.c"), work.path().join("pause"));
        fs::write(&source, PAUSE_SOURCE).map_err(ClusterError::io("write", &source))?;
        run(Command::new("gcc").args(["-static", "-O2", "-s", "-o"]).arg(&new).arg(&source))?;
        fs::rename(&new, &program).map_err(ClusterError::io("write", &program))?;
    }
    let mut image = Image::new(PAUSE, Arch::here()).map_err(ClusterError::Image)?;
    image.entrypoint = vec!["/pause".to_owned()];
    image.layers[1].insert("pause".to_owned(), (Source::Host(program.clone()), 0o755));
    archive(&[image], &program)
}

/// The archive of the name server's image.
pub(super) fn coredns(programs: &Path) -> Result<PathBuf, ClusterError> {
    let program = programs.join("coredns");
    let mut image = Image::new(COREDNS, Arch::here()).map_err(ClusterError::Image)?;
    image.program(&program).map_err(ClusterError::Image)?;
    archive(&[image], &program)
}

/// One archive with images under the names of others', which a closed world cannot fetch: each is this program of ours with
/// arguments of its own.
///
/// # Errors
/// When the program cannot be built or packed.
pub fn stand_ins(program: &str, images: &[(&str, &[&str])]) -> Result<PathBuf, ClusterError> {
    let binary = bins::find(program).map_err(ClusterError::Programs)?;
    let image = |(name, args): &(&str, &[&str])| {
        let mut image = Image::new(name, Arch::here()).map_err(ClusterError::Image)?;
        image.program(&binary).map_err(ClusterError::Image)?;
        image.entrypoint.extend(args.iter().map(|arg| (*arg).to_owned()));
        image.user = NONROOT.to_owned();
        Ok(image)
    };
    archive(&images.iter().map(image).collect::<Result<Vec<_>, ClusterError>>()?, &binary)
}

/// The archive of one of this project's programs as `selvage/NAME:TAG`.
///
/// # Errors
/// When the program cannot be built or packed.
pub fn program(name: &str, tag: &str) -> Result<PathBuf, ClusterError> {
    program_at(&bins::find(name).map_err(ClusterError::Programs)?, name, tag)
}

/// The same of a program that lies elsewhere: one of another time.
///
/// # Errors
/// When the program cannot be packed.
pub fn program_at(binary: &Path, name: &str, tag: &str) -> Result<PathBuf, ClusterError> {
    let mut image =
        Image::new(&format!("selvage/{name}:{tag}"), Arch::here()).map_err(ClusterError::Image)?;
    image.program(binary).map_err(ClusterError::Image)?;
    if name == "mesh-proxy" {
        for tool in ["nft", "ip"] {
            image.tool(tool, Path::new("/")).map_err(ClusterError::Image)?;
        }
    } else {
        image.user = NONROOT.to_owned();
    }
    archive(&[image], binary)
}

/// The folder of archives, beside the programs.
fn folder() -> Result<PathBuf, ClusterError> {
    let lab = bins::find("lab").map_err(ClusterError::Programs)?;
    let folder = lab.parent().unwrap_or(Path::new("target")).join("cluster-images");
    fs::create_dir_all(&folder).map_err(ClusterError::io("create", &folder))?;
    Ok(folder)
}

/// Writes images of the same content for `ctr images import`, without compression and by system tools: a debug build of this
/// crate takes half a minute to compress what they copy in a second.
fn archive(images: &[Image], program: &Path) -> Result<PathBuf, ClusterError> {
    let Some(image) = images.first() else {
        return Err(ClusterError::Programs(format!("no image of {}", program.display())));
    };
    let folder = folder()?;
    let meta = fs::metadata(program).map_err(ClusterError::io("read", program))?;
    let written = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let name: String = image.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    // What else the image holds decides too.
    let mut recipe = std::hash::DefaultHasher::new();
    format!("{images:?}").hash(&mut recipe);
    let out = folder.join(format!("{name}.{}.{:x}.tar", written.as_nanos(), recipe.finish() ^ meta.len()));
    if out.exists() {
        return Ok(out);
    }
    let work = tempfile::tempdir_in(&folder).map_err(ClusterError::io("create", &folder))?;
    let (root, layer) = (work.path().join("root"), work.path().join("layer.tar"));
    for (inside, (source, mode)) in image.layers.iter().flatten() {
        place(&root.join(inside), source, *mode)?;
    }
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&layer)
        .arg("."))?;
    let digest = run(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split_whitespace().next().unwrap_or_default();
    let mut files = vec!["manifest.json".to_owned(), "layer.tar".to_owned()];
    let write = |file: &str, json: serde_json::Value| {
        let path = work.path().join(file);
        fs::write(&path, json.to_string()).map_err(ClusterError::io("write", &path))
    };
    let mut manifest = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let file = format!("config-{i}.json");
        let config = json!({
            "architecture": image.arch.name(), "os": "linux",
            "config": { "Entrypoint": image.entrypoint, "User": image.user, "Labels": image.labels,
                "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{}],
        });
        write(&file, config)?;
        manifest.push(json!({ "Config": file, "RepoTags": [image.name], "Layers": ["layer.tar"] }));
        files.push(file);
    }
    write("manifest.json", manifest.into())?;
    let new = work.path().join("image.tar");
    run(Command::new("tar").arg("-C").arg(work.path()).arg("-cf").arg(&new).args(&files))?;
    forget_older(&folder, &name);
    fs::rename(&new, &out).map_err(ClusterError::io("write", &out))?;
    Ok(out)
}

fn place(path: &Path, source: &Source, mode: u32) -> Result<(), ClusterError> {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(ClusterError::io("create", parent))?;
    let mode = match source {
        Source::Directory(mode) => {
            fs::create_dir_all(path).map_err(ClusterError::io("create", path))?;
            *mode
        }
        Source::Text(text) => {
            fs::write(path, text).map_err(ClusterError::io("write", path))?;
            mode
        }
        // Half of a debug build is symbols. Whatever is no program is copied as it is.
        Source::Host(from) => {
            let stripped = run(Command::new("objcopy").arg("--strip-all").arg(from).arg(path));
            if stripped.is_err() {
                fs::copy(from, path).map_err(ClusterError::io("copy", from))?;
            }
            mode
        }
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(ClusterError::io("change", path))
}

/// Archives of programs that were built before. One that is in use elsewhere lives on until it is closed.
fn forget_older(folder: &Path, name: &str) {
    let prefix = format!("{name}.");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        let old = old.is_some_and(|age| age.as_secs() > 600);
        if old && entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _next_time = fs::remove_file(entry.path());
        }
    }
}

fn run(command: &mut Command) -> Result<String, ClusterError> {
    let name = command.get_program().to_os_string();
    let output = command.output().map_err(ClusterError::io("run", Path::new(&name)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ClusterError::Tool { tool: name.to_string_lossy().into_owned(), reason })
}
