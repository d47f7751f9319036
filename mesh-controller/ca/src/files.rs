//! Files that survive a power cut whole or not at all, and that only their owner reads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A file operation that failed, with the path.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FileError {
    /// What was attempted.
    pub operation: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

pub(crate) trait At<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { operation, path: path.to_owned(), source })
    }
}

/// Creates a directory (and its parents) that only the owner can enter.
pub(crate) fn private_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("create directory", path)
}

/// Replaces `path` by `content`, mode 0600: readers see the old file or the new one, also after a power cut.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut tmp_name = path.file_name().unwrap_or_default().to_owned();
    tmp_name.push(format!(".{:08x}.tmp", rand::random::<u32>()));
    let tmp = dir.join(tmp_name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // The rename did not happen; what is left is only a temporary file.
        fs::remove_file(&tmp).ok();
    }
    written.at("write", path)
}

/// Reads a file; `None` when it does not exist.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}

/// Serialises changes to a directory between processes: the lock ends when the value is dropped.
pub(crate) struct DirLock(#[allow(dead_code, reason = "held for its lock")] File);

impl DirLock {
    pub(crate) fn acquire(dir: &Path) -> Result<Self, FileError> {
        let path = dir.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .at("open", &path)?;
        file.lock().at("lock", &path)?;
        Ok(Self(file))
    }
}
