//! A log file that others may rotate: renamed or removed, it is opened anew; truncated, it goes on at its start.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often the name is looked up: a line may go to a renamed file for that long.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is appended to.
pub struct LogFile {
    path: PathBuf,
    file: File,
    looked: Instant,
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl LogFile {
    /// Opens the file, or makes it.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self { path, file, looked: Instant::now() })
    }

    /// Opens the file anew if its name leads elsewhere. While that does not work, the old one is written to.
    fn follow(&mut self) {
        self.looked = Instant::now();
        let place = |m: std::fs::Metadata| (m.dev(), m.ino());
        let named = std::fs::metadata(&self.path).map(place).ok();
        if named.is_some() && named == self.file.metadata().map(place).ok() {
            return;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "access log cannot be opened anew")
            }
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.looked.elapsed() >= LOOK {
            self.follow();
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let mut log = LogFile::open(path.clone()).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.write_all(b"two\n").unwrap();
        log.looked = Instant::now().checked_sub(LOOK).unwrap();
        log.write_all(b"three\n").unwrap();
        // Cut by others, it goes on at the start: nothing but what is written from then on.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        log.write_all(b"four\n").unwrap();
        assert_eq!(std::fs::read_to_string(old).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "four\n");
    }
}
