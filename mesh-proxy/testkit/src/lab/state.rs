//! Where worlds are recorded on this machine, and which of them still live.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{LabError, PlaceInfo, Spec};

/// The folder of this user's worlds.
#[must_use]
pub fn root() -> PathBuf {
    let uid = nix::unistd::getuid();
    std::env::temp_dir().join(format!("selvage-lab-{uid}"))
}

/// Files of one world.
#[derive(Clone, Debug)]
pub struct Files {
    /// The world's folder.
    pub dir: PathBuf,
}

/// The keeper as the machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeeperId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks: tells a reused pid apart.
    pub started: u64,
}

impl Files {
    /// Files of the world in that folder.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.dir.join("spec.json")
    }
    pub(crate) fn places(&self) -> PathBuf {
        self.dir.join("places.json")
    }
    pub(crate) fn keeper(&self) -> PathBuf {
        self.dir.join("keeper")
    }
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.dir.join("ns")
    }
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }
    pub(crate) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    pub(crate) fn resolv(&self, place: &str) -> PathBuf {
        self.dir.join("etc").join(format!("{place}.resolv.conf"))
    }
    pub(crate) fn faults(&self) -> PathBuf {
        self.dir.join("faults.json")
    }

    /// Makes the folders of a new world.
    pub(crate) fn create(&self, spec: &Spec) -> Result<(), LabError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let base = root();
        if let Err(e) = fs::DirBuilder::new().mode(0o700).create(&base)
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(LabError::file("create", &base)(e));
        }
        fs::create_dir(&self.dir).map_err(LabError::file("create", &self.dir))?;
        for dir in [self.namespaces(), self.logs(), self.run(), self.dir.join("etc")] {
            fs::create_dir(&dir).map_err(LabError::file("create", &dir))?;
        }
        write_json(&self.spec(), spec)
    }

    /// Reads the description.
    pub(crate) fn read_spec(&self) -> Result<Spec, LabError> {
        read_json(&self.spec())
    }

    /// Reads what the keeper made.
    pub(crate) fn read_places(&self) -> Result<BTreeMap<String, PlaceInfo>, LabError> {
        read_json(&self.places())
    }

    /// Reads which process keeps the world.
    pub(crate) fn read_keeper(&self) -> Result<KeeperId, LabError> {
        let path = self.keeper();
        let text = fs::read_to_string(&path).map_err(LabError::file("read", &path))?;
        let mut parts = text.split_whitespace();
        let id = (|| {
            let pid = parts.next()?.parse().ok()?;
            Some(KeeperId { pid, started: parts.next()?.parse().ok()? })
        })();
        id.ok_or_else(|| LabError::NoSuchWorld(format!("{} is damaged", path.display())))
    }

    /// Whether the world's keeper lives.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.read_keeper().is_ok_and(|k| k.alive())
    }

    /// Removes the folder of a world that is gone.
    pub(crate) fn remove(&self) {
        // A leftover folder is removed by the next janitor run.
        let _next_time = fs::remove_dir_all(&self.dir);
    }
}

impl KeeperId {
    /// Identifies a live process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: start_time(pid)? })
    }

    /// Whether that very process lives; a zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Start time of a process that is not a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // The state was field 3; the start time is field 22.
    fields.nth(18)?.parse().ok()
}

/// All recorded worlds, dead ones included.
#[must_use]
pub fn all() -> Vec<(String, Files)> {
    let Ok(entries) = fs::read_dir(root()) else { return Vec::new() };
    let mut found: Vec<_> = (entries.flatten())
        .filter(|e| e.path().is_dir())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), Files::at(&e.path())))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Removes what dead worlds left; a world that is just starting has no keeper file yet and is left alone for
/// a minute.
pub fn janitor() {
    for (_, files) in all() {
        let is_dead = match files.read_keeper() {
            Ok(keeper) => !keeper.alive(),
            Err(_) => {
                let made = fs::metadata(&files.dir).and_then(|m| m.modified()).ok();
                made.and_then(|t| t.elapsed().ok()).is_some_and(|age| age.as_secs() > 60)
            }
        };
        if is_dead {
            files.remove();
        }
    }
}

pub(crate) fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    let text = serde_json::to_vec_pretty(value).map_err(std::io::Error::other);
    text.and_then(|t| {
        let new = path.with_extension("new");
        fs::write(&new, t)?;
        fs::rename(&new, path)
    })
    .map_err(LabError::file("write", path))
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LabError> {
    let text = fs::read(path).map_err(LabError::file("read", path))?;
    serde_json::from_slice(&text).map_err(std::io::Error::other).map_err(LabError::file("read", path))
}
