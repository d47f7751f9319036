//! A node's own tree of control groups: what the machine shows at its root, the node sees at its own. The tree is removed
//! when the node's processes are gone; trees of worlds that ended without a word are removed at the next start.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::ClusterError;
use crate::lab::state;

const ROOT: &str = "/sys/fs/cgroup";
/// What the groups of all clusters begin with.
const PREFIX: &str = "selvage-";

/// The name of a node's group.
pub(super) fn name(world: &Path, node: &str) -> String {
    let world = world.file_name().unwrap_or_default().to_string_lossy();
    format!("{PREFIX}{world}.{node}")
}

/// The controllers of each hierarchy of version 1 that this machine uses; empty where there is only version 2.
fn hierarchies() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let lines = text.lines().filter_map(|l| l.split(':').nth(1)).filter(|c| !c.is_empty());
    let all: Vec<String> = lines.map(str::to_owned).collect();
    // Beside version 2 there may be a named hierarchy without controllers.
    if all.iter().any(|c| c.split(',').any(|c| c == "memory")) { all } else { Vec::new() }
}

fn folder(controllers: &str) -> &str {
    controllers.strip_prefix("name=").unwrap_or(controllers)
}

/// Mounts every hierarchy at its usual place, as the calling process's group namespace sees it.
fn mount_all(hierarchies: &[String]) -> Result<(), ClusterError> {
    // Not mounted yet in a fresh /sys.
    let _none = umount2(ROOT, MntFlags::MNT_DETACH);
    let none: Option<&str> = None;
    let at = |path: &Path, kind: &str, options: Option<&str>| {
        mount(Some("cgroup"), path, Some(kind), MsFlags::empty(), options)
            .map_err(ClusterError::system(format!("mounting {}", path.display())))
    };
    if hierarchies.is_empty() {
        return at(Path::new(ROOT), "cgroup2", none);
    }
    at(Path::new(ROOT), "tmpfs", Some("mode=0755,size=1m"))?;
    for controllers in hierarchies {
        let path = Path::new(ROOT).join(folder(controllers));
        make(&path)?;
        let named = format!("none,{controllers}");
        let options = if controllers.starts_with("name=") { &named } else { controllers };
        at(&path, "cgroup", Some(options))?;
        for one in controllers.split(',').filter(|_| controllers.contains(',')) {
            let link = Path::new(ROOT).join(one);
            symlink(folder(controllers), &link).map_err(ClusterError::io("link", &link))?;
        }
    }
    Ok(())
}

fn make(path: &Path) -> Result<(), ClusterError> {
    fs::create_dir_all(path).map_err(ClusterError::io("create", path))
}

fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    fs::write(path, text).map_err(ClusterError::io("write", path))
}

/// Moves the calling process into a new group of that name, which becomes the root of what it and its children see.
///
/// # Errors
/// When the kernel refuses: without root, or in a container that may not mount.
pub(super) fn enter(name: &str) -> Result<(), ClusterError> {
    let hierarchies = hierarchies();
    mount_all(&hierarchies)?;
    let me = std::process::id().to_string();
    let root = Path::new(ROOT);
    if hierarchies.is_empty() {
        make(&root.join(name))?;
        delegate(root)?;
        write(&root.join(name).join("cgroup.procs"), &me)?;
    }
    for controllers in &hierarchies {
        let base = root.join(folder(controllers));
        let path = base.join(name);
        make(&path)?;
        if controllers.split(',').any(|c| c == "cpuset") {
            // Empty sets take no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let all = base.join(file);
                let text = fs::read_to_string(&all).map_err(ClusterError::io("read", &all))?;
                write(&path.join(file), text.trim())?;
            }
            write(&path.join("cgroup.clone_children"), "1")?;
        }
        if controllers.split(',').any(|c| c == "memory") {
            // Newer kernels know nothing else, and some have no such file.
            let _always = fs::write(path.join("memory.use_hierarchy"), "1");
        }
        write(&path.join("cgroup.procs"), &me)?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(ClusterError::system("making a group namespace"))?;
    mount_all(&hierarchies)?;
    if hierarchies.is_empty() {
        // A group that hands controllers on has no processes of its own.
        let init = root.join("init");
        make(&init)?;
        write(&init.join("cgroup.procs"), &me)?;
        delegate(root)?;
    }
    Ok(())
}

/// Version 2: children of this group get all of its controllers.
fn delegate(group: &Path) -> Result<(), ClusterError> {
    let have = group.join("cgroup.controllers");
    let text = fs::read_to_string(&have).map_err(ClusterError::io("read", &have))?;
    let all: Vec<String> = text.split_whitespace().map(|c| format!("+{c}")).collect();
    write(&group.join("cgroup.subtree_control"), &all.join(" "))
}

/// The group of that name in each hierarchy, as the machine shows it.
fn places(name: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = vec![ROOT.into()];
    roots.extend(hierarchies().iter().map(|c| Path::new(ROOT).join(folder(c))));
    roots.into_iter().map(|r| r.join(name)).filter(|p| p.is_dir()).collect()
}

fn tree(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            tree(&entry.path(), found);
        }
    }
    found.push(path.to_owned());
}

/// Ends every process of a node at once, as a power cut would, and waits until they are gone.
///
/// # Errors
/// When some are still there after ten seconds.
pub(super) fn power_off(name: &str) -> Result<(), ClusterError> {
    for _ in 0..500 {
        let mut groups = Vec::new();
        places(name).iter().for_each(|p| tree(p, &mut groups));
        let lists = groups.iter().filter_map(|g| fs::read_to_string(g.join("cgroup.procs")).ok());
        let pids: Vec<i32> =
            lists.flat_map(|l| l.lines().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
        // 0 is a process of another pid namespace.
        let pids: Vec<i32> = pids.into_iter().filter(|p| *p > 1).collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Err(ClusterError::Node { node: name.to_owned(), reason: "its processes do not end".to_owned() })
}

/// Removes a node's empty groups. Says whether all are gone.
pub(super) fn remove(name: &str) -> bool {
    let mut groups = Vec::new();
    places(name).iter().for_each(|p| tree(p, &mut groups));
    groups.iter().all(|g| fs::remove_dir(g).is_ok())
}

/// Removes what worlds left that ended without a word.
pub(super) fn janitor() {
    let mut roots: Vec<PathBuf> = vec![ROOT.into()];
    roots.extend(hierarchies().iter().map(|c| Path::new(ROOT).join(folder(c))));
    for entry in roots.iter().flat_map(|r| fs::read_dir(r).into_iter().flatten().flatten()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let world = name.strip_prefix(PREFIX).and_then(|n| n.rsplit_once('.')).map(|(world, _)| world);
        // A world's folder is there before its groups are, and as long as it lives.
        if world.is_some_and(|w| !state::root().join(w).exists()) {
            remove(&name);
        }
    }
}
