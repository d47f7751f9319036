//! The archive: every text is redacted on its way in, and the sum of all is bounded.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use super::redact;

/// Most bytes of one file; what is longer keeps its end, where the news is.
const MOST_OF_ONE: usize = 16 << 20;
const FOLDER: &str = "selvage-report";

pub(super) struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    left: usize,
    time: u64,
    files: usize,
    missing: Vec<String>,
    failed: Option<io::Error>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, limit: usize, time: u64) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        Self { tar, left: limit, time, files: 0, missing: Vec::new(), failed: None }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.put(name, redact::text(text));
    }

    /// JSON: also values are redacted whose keys say what they are.
    pub(super) fn json(&mut self, name: &str, value: &Value) {
        let mut value = value.clone();
        redact::json(&mut value);
        let text = serde_json::to_string_pretty(&value).unwrap_or_else(|e| e.to_string());
        self.put(name, redact::text(&text));
    }

    /// Text of a page that may be JSON or YAML.
    pub(super) fn page(&mut self, name: &str, text: &str) {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => self.json(name, &value),
            Err(_) => self.text(name, text),
        }
    }

    /// Something that is not in it.
    pub(super) fn miss(&mut self, what: &str, why: &str) {
        self.missing.push(redact::text(&format!("{what}: {why}")));
    }

    fn put(&mut self, name: &str, text: String) {
        let mut text = text.as_str();
        if text.len() > MOST_OF_ONE {
            let mut from = text.len() - MOST_OF_ONE;
            while !text.is_char_boundary(from) {
                from += 1;
            }
            self.missing.push(format!("{name}: its first {from} bytes"));
            text = &text[from..];
        }
        if text.len() > self.left {
            self.missing.push(format!("{name}: {} bytes did not fit; --max-mib allows more", text.len()));
            return;
        }
        self.left -= text.len();
        self.append(name, text.as_bytes());
    }

    fn append(&mut self, name: &str, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_./".contains(c) { c } else { '_' };
        let path = format!("{FOLDER}/{}", name.chars().map(safe).collect::<String>().replace("..", "_"));
        match self.tar.append_data(&mut header, path, bytes) {
            Ok(()) => self.files += 1,
            Err(error) => self.failed = Some(error),
        }
    }

    /// Writes the list of what is missing, and ends the archive. Gives the number of files and that list.
    pub(super) fn finish(mut self) -> io::Result<(usize, Vec<String>)> {
        let mut list = format!("{} files. Not in it:\n", self.files);
        for missing in &self.missing {
            list.push_str(&format!("  {missing}\n"));
        }
        self.append("MANIFEST.txt", list.as_bytes());
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.tar.into_inner()?.finish()?.flush()?;
        Ok((self.files, self.missing))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, io::Read};

    use serde_json::json;

    use super::*;

    /// Name and content of all files.
    pub(crate) fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let mut all = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
            entry.read_to_string(&mut text).unwrap();
            all.insert(path, text);
        }
        all
    }

    #[test]
    fn files_are_redacted_named_safely_and_bounded() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes, 300, 0);
        archive.json("values.json", &json!({ "adminPassword": "hunter2hunter2", "replicas": 2 }));
        archive.text("../../etc/passwd", "x");
        archive.text("big", &"y".repeat(400));
        archive.miss("logs", "Authorization: Bearer abcdef0123456789");
        let (files, missing) = archive.finish().unwrap();
        let all = unpack(&bytes);
        assert_eq!((files, all.len(), missing.len()), (3, 3, 2), "{all:?}");
        assert!(all.keys().all(|k| k.starts_with("selvage-report/") && !k.contains("..")), "{all:?}");
        let everything = format!("{all:?}");
        assert!(!everything.contains("hunter2") && !everything.contains("abcdef01"), "{everything}");
        assert!(all["selvage-report/MANIFEST.txt"].contains("big: 400 bytes did not fit"));
    }
}
