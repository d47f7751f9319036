//! Small documents by name, each replaced only by who has seen what it replaces. What controllers share is kept so: in a
//! directory, or in objects of a cluster. Several processes use one shelf at a time; of two that change the same
//! document, one is told that it has to look again.

use std::{
    error::Error,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::files::{At, DirLock, FileError, private_dir, read_optional, write_private};

/// A document and what tells this state of it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What is in it.
    pub content: Vec<u8>,
    /// Changes with every write.
    pub version: String,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// Written; the new version.
    Done(String),
    /// The document is not as it was seen: nothing is written.
    Conflict,
}

/// A shelf that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {name}")]
pub struct StoreError {
    /// What was attempted.
    pub operation: &'static str,
    /// On which document.
    pub name: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// An operation that failed on a document.
    pub fn new(
        operation: &'static str,
        name: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { operation, name: name.into(), source: source.into() }
    }
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        let FileError { operation, path, source } = error;
        Self { operation, name: path.display().to_string(), source: source.into() }
    }
}

/// Where documents are kept. Calls block.
pub trait Shelf: Send + Sync + fmt::Debug {
    /// A document; `None` when there is none of that name.
    fn get(&self, name: &str) -> Result<Option<Document>, StoreError>;
    /// Writes a document that is in version `seen`; `None` = that is not there.
    fn put(&self, name: &str, content: &[u8], seen: Option<&str>) -> Result<Put, StoreError>;
    /// Removes a document, if it is in version `seen` where one is given; `false` when nothing was removed.
    fn remove(&self, name: &str, seen: Option<&str>) -> Result<bool, StoreError>;
    /// Names and versions of all documents.
    fn versions(&self) -> Result<Vec<(String, String)>, StoreError>;
    /// All documents. One that goes away meanwhile is left out.
    fn list(&self) -> Result<Vec<(String, Document)>, StoreError> {
        let mut out = Vec::new();
        for (name, _) in self.versions()? {
            if let Some(document) = self.get(&name)? {
                out.push((name, document));
            }
        }
        Ok(out)
    }
}

/// Documents as files `NAME.json` of a directory, each only for its owner to read.
#[derive(Debug, Clone)]
pub struct DirShelf {
    dir: PathBuf,
}

impl DirShelf {
    /// Opens the shelf, creating the directory.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        private_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The file of a name; names that could leave the directory have none.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        (!name.is_empty() && !name.starts_with('.') && name.bytes().all(plain))
            .then(|| self.dir.join(format!("{name}.json")))
    }

    fn wrong_name(name: &str) -> StoreError {
        StoreError::new("name", name, io::Error::from(io::ErrorKind::InvalidInput))
    }
}

impl Shelf for DirShelf {
    fn get(&self, name: &str) -> Result<Option<Document>, StoreError> {
        let Some(path) = self.path(name) else { return Ok(None) };
        loop {
            let Some(version) = stamp(&path)? else { return Ok(None) };
            let Some(content) = read_optional(&path)? else { return Ok(None) };
            // Replaced between the two: what was read may be either.
            if stamp(&path)?.as_ref() == Some(&version) {
                return Ok(Some(Document { content, version }));
            }
        }
    }

    fn put(&self, name: &str, content: &[u8], seen: Option<&str>) -> Result<Put, StoreError> {
        let path = self.path(name).ok_or_else(|| Self::wrong_name(name))?;
        let _lock = DirLock::acquire(&self.dir)?;
        if stamp(&path)?.as_deref() != seen {
            return Ok(Put::Conflict);
        }
        write_private(&path, content)?;
        Ok(Put::Done(stamp(&path)?.unwrap_or_default()))
    }

    fn remove(&self, name: &str, seen: Option<&str>) -> Result<bool, StoreError> {
        let Some(path) = self.path(name) else { return Ok(false) };
        let _lock = DirLock::acquire(&self.dir)?;
        let now = stamp(&path)?;
        if now.is_none() || (seen.is_some() && now.as_deref() != seen) {
            return Ok(false);
        }
        fs::remove_file(&path).at("remove", &path)?;
        Ok(true)
    }

    fn versions(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.dir).at("list", &self.dir)? {
            let name = entry.at("list", &self.dir)?.file_name();
            let Some(name) = name.to_str().and_then(|n| n.strip_suffix(".json")) else { continue };
            let Some(path) = self.path(name) else { continue };
            // One that goes away between the two is gone.
            if let Some(version) = stamp(&path)? {
                out.push((name.to_owned(), version));
            }
        }
        Ok(out)
    }
}

/// What identifies a state of a file without reading it; `None` when it does not exist.
fn stamp(path: &Path) -> Result<Option<String>, FileError> {
    match fs::metadata(path) {
        Ok(m) => Ok(Some(format!("{}.{:09}-{}-{}", m.mtime(), m.mtime_nsec(), m.len(), m.ino()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("look at", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_replaced_only_by_who_has_seen_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = DirShelf::open(&dir.path().join("s")).unwrap();
        assert_eq!(shelf.get("a").unwrap(), None);
        assert_eq!(shelf.put("a", b"1", Some("x")).unwrap(), Put::Conflict);
        let Put::Done(one) = shelf.put("a", b"1", None).unwrap() else { panic!("not written") };
        assert_eq!(shelf.put("a", b"2", None).unwrap(), Put::Conflict);
        let Put::Done(two) = shelf.put("a", b"2", Some(&one)).unwrap() else { panic!("not written") };
        assert_ne!(one, two);
        assert_eq!(shelf.list().unwrap().len(), 1);
        assert_eq!(shelf.get("a").unwrap().unwrap(), Document { content: b"2".to_vec(), version: two });
        assert!(!shelf.remove("a", Some(&one)).unwrap());
        assert!(shelf.remove("a", None).unwrap() && !shelf.remove("a", None).unwrap());
        for name in ["../a", ".lock", "", "a/b", "A"] {
            assert!(shelf.put(name, b"1", None).is_err(), "{name}");
            assert_eq!(shelf.get(name).unwrap(), None);
        }
    }
}
