//! Reading objects: files, directories in sorted order, standard input.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

/// Most bytes of one file.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// One object and where it comes from.
#[derive(Debug, Clone)]
pub struct Object {
    /// File name, for messages.
    pub file: String,
    /// The object.
    pub value: Value,
}

impl Object {
    /// A text field of the object itself or of its metadata.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// All objects of all paths, in order.
pub(crate) fn objects(paths: &[PathBuf]) -> Result<Vec<Object>> {
    let mut out = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files)?;
            files.sort();
            for file in files {
                read_file(&file, &mut out)?;
            }
        } else {
            read_file(path, &mut out)?;
        }
    }
    Ok(out)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry.with_context(|| format!("read {}", dir.display()))?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_dir() {
            collect(&path, files)?;
        } else if matches!(extension, "yaml" | "yml" | "json") {
            files.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path, out: &mut Vec<Object>) -> Result<()> {
    let file = path.display().to_string();
    let text = text(path)?;
    let values = istio_compat::yaml::documents(&text).with_context(|| format!("read {file}"))?;
    for value in values {
        if value.is_object() {
            out.push(Object { file: file.clone(), value });
        } else {
            eprintln!("meshctl: {file}: a document that is not an object is ignored");
        }
    }
    Ok(())
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn text(path: &Path) -> Result<String> {
    let mut out = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE_BYTES).read_to_string(&mut out)
    } else {
        fs::File::open(path).and_then(|f| f.take(MAX_FILE_BYTES).read_to_string(&mut out))
    };
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(out)
}
