//! The last good content of each file of the folder, in the state directory: a controller that starts while a file is
//! broken would otherwise know nothing of what it said, and nodes would lose those services. Files are private, because
//! manifests may hold secrets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Bytes of all copies together; files beyond it have none.
const MAX_BYTES: u64 = 256 << 20;
const HASH_CHARACTERS: usize = 64;

/// The copies of one folder.
#[derive(Debug)]
pub(crate) struct Copies {
    dir: PathBuf,
    /// Bytes by name.
    sizes: BTreeMap<String, u64>,
    limit: u64,
    said_full: bool,
}

impl Copies {
    /// Opens the directory, and makes it when it is not there.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == HASH_CHARACTERS {
                sizes.insert(name, entry.metadata()?.len());
            } else {
                // A temporary file of a controller that was killed.
                fs::remove_file(entry.path()).ok();
            }
        }
        Ok(Self { dir, sizes, limit: MAX_BYTES, said_full: false })
    }

    /// Keeps the content of a file that could be read.
    pub(super) fn keep(&mut self, path: &Path, text: &str) {
        let name = name_of(path);
        let size = (HASH_CHARACTERS + 1 + text.len()) as u64;
        let others: u64 = self.sizes.iter().filter(|(n, _)| **n != name).map(|(_, s)| s).sum();
        if others + size > self.limit {
            if !self.said_full {
                tracing::warn!(
                    limit = self.limit,
                    "no room for a copy of {}; others may have none too",
                    path.display()
                );
                self.said_full = true;
            }
            self.forget(&name);
            return;
        }
        if self.sizes.get(&name) == Some(&size) && self.get(path).as_deref() == Some(text) {
            return;
        }
        match self.write(&name, text) {
            Ok(()) => {
                self.sizes.insert(name, size);
            }
            Err(error) => tracing::warn!(%error, "keep a copy of {}", path.display()),
        }
    }

    /// The last good content of a file.
    pub(super) fn get(&self, path: &Path) -> Option<String> {
        let content = fs::read_to_string(self.dir.join(name_of(path))).ok()?;
        let (hash, text) = content.split_once('\n')?;
        // A power cut may leave a part of a file; half a manifest is worse than none.
        (hash == hex(text.as_bytes())).then(|| text.to_owned())
    }

    /// Forgets files that are gone.
    pub(super) fn retain<'a>(&mut self, paths: impl Iterator<Item = &'a PathBuf>) {
        let wanted: BTreeSet<String> = paths.map(|p| name_of(p)).collect();
        let gone: Vec<String> = self.sizes.keys().filter(|n| !wanted.contains(*n)).cloned().collect();
        for name in gone {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        if self.sizes.remove(name).is_some() {
            fs::remove_file(self.dir.join(name)).ok();
        }
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let temporary = self.dir.join(format!("{name}.tmp"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(hex(text.as_bytes()).as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, self.dir.join(name))
    }
}

fn name_of(path: &Path) -> String {
    hex(path.as_os_str().as_encoded_bytes())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_bounded_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut copies = Copies::open(dir.path().join("copies")).unwrap();
        let (a, b) = (PathBuf::from("/x/a.yaml"), PathBuf::from("/x/b.yaml"));
        copies.keep(&a, "one");
        copies.keep(&a, "two\nlines");
        assert_eq!(copies.get(&a).as_deref(), Some("two\nlines"));
        assert_eq!(copies.get(&b), None);
        // A torn file is no copy.
        let file = dir.path().join("copies").join(name_of(&a));
        let content = fs::read(&file).unwrap();
        fs::write(&file, &content[..content.len() - 1]).unwrap();
        assert_eq!(copies.get(&a), None);

        copies.limit = 200;
        copies.keep(&a, "a");
        copies.keep(&b, &"b".repeat(100));
        assert_eq!((copies.get(&a).as_deref(), copies.get(&b)), (Some("a"), None), "no room for b");

        let mut again = Copies::open(dir.path().join("copies")).unwrap();
        assert_eq!(again.get(&a).as_deref(), Some("a"));
        again.retain([b].iter());
        assert_eq!(again.get(&a), None);
        assert_eq!(fs::read_dir(dir.path().join("copies")).unwrap().count(), 0);
    }
}
