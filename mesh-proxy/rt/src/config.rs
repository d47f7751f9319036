//! Configuration: file, then environment, then flags; every error at once, each with its key,
//! value, origin and reason.
//!
//! Keys are paths in camel case such as `tunnel.maxStreams`. An environment variable is the prefix
//! and the path in upper case, with `_` between words and `__` between parts:
//! `MESH_PROXY_TUNNEL__MAX_STREAMS`. Values are YAML, so a list is `[a, b]`; a value that does not
//! fit as YAML is tried as plain text.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::secret::{REDACTED, UNPARSABLE};

/// Errors reported before giving up; a configuration with more than these is not a typo.
const MAX_PROBLEMS: usize = 100;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A command line flag.
    Flag,
    /// Not set anywhere, or the check spans several keys.
    Default,
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Path of the key, for example `tunnel.listen[0]`.
    pub key: String,
    /// The value as given; empty when there is none.
    pub value: String,
    /// What is wrong.
    pub reason: String,
    /// Where it was set.
    pub origin: Origin,
}

impl ConfigProblem {
    /// A problem found by [`Validate`].
    pub fn new(key: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), reason: reason.into(), origin: Origin::Default }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.key.is_empty() { "configuration" } else { &self.key })?;
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        write!(f, ": {}", self.reason)?;
        match &self.origin {
            Origin::File(path) => write!(f, " (file {})", path.display()),
            Origin::Env(name) => write!(f, " (environment {name})"),
            Origin::Flag => write!(f, " (command line)"),
            Origin::Default => Ok(()),
        }
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigProblem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} configuration error{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Checks that serde cannot express. Empty = fine.
pub trait Validate {
    /// Everything that is wrong, with the path of each key.
    fn validate(&self) -> Vec<ConfigProblem> {
        Vec::new()
    }
}

/// The sources of a configuration, later ones winning.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Text of the file and the path to name in errors.
    pub file: Option<(PathBuf, String)>,
    /// Prefix of environment variables, for example `MESH_PROXY_`.
    pub env_prefix: String,
    /// Variables to look at.
    pub env: Vec<(String, String)>,
    /// Flags that belong elsewhere, by variable name (already read by the command line parser).
    pub env_ignore: Vec<String>,
    /// Key path and value of each flag given.
    pub flags: Vec<(String, String)>,
}

/// Reads `file`, the process environment and `flags`.
pub fn load<T: DeserializeOwned + Validate>(
    file: Option<&Path>,
    env_prefix: &str,
    env_ignore: &[&str],
    flags: Vec<(String, String)>,
) -> Result<T, ConfigErrors> {
    let file = match file {
        None => None,
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Some((path.to_owned(), text)),
            Err(error) => {
                let origin = Origin::File(path.to_owned());
                return Err(ConfigErrors(vec![problem("", "", format!("cannot be read: {error}"), origin)]));
            }
        },
    };
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    load_from(Layers {
        file,
        env_prefix: env_prefix.to_owned(),
        env: env.collect(),
        env_ignore: env_ignore.iter().map(|name| (*name).to_owned()).collect(),
        flags,
    })
}

/// Merges and decodes; touches nothing but its argument.
pub fn load_from<T: DeserializeOwned + Validate>(layers: Layers) -> Result<T, ConfigErrors> {
    let mut merged = Merged::default();
    merged.add_file(layers.file);
    let mut env = layers.env;
    env.sort();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(&layers.env_prefix) else { continue };
        if rest.is_empty() || layers.env_ignore.contains(&name) {
            continue;
        }
        let path: Vec<_> = rest.split("__").map(camel_case).collect();
        merged.set(path, value, Origin::Env(name));
    }
    for (key, value) in layers.flags {
        merged.set(key.split('.').map(str::to_owned).collect(), value, Origin::Flag);
    }
    merged.decode()
}

struct Override {
    path: Vec<String>,
    text: String,
    origin: Origin,
    as_text: bool,
}

#[derive(Default)]
struct Merged {
    root: Value,
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    problems: Vec<ConfigProblem>,
}

impl Merged {
    fn add_file(&mut self, file: Option<(PathBuf, String)>) {
        self.root = Value::Object(Map::new());
        let Some((path, text)) = file else { return };
        match serde_saphyr::from_str::<Value>(&text) {
            Ok(Value::Object(map)) => self.root = Value::Object(map),
            Ok(Value::Null) => {}
            Ok(_) => {
                let reason = "must be a mapping of keys to values".to_owned();
                self.problems.push(problem("", "", reason, Origin::File(path.clone())));
            }
            Err(error) => {
                let reason = format!("is not YAML: {error}");
                self.problems.push(problem("", "", reason, Origin::File(path.clone())));
            }
        }
        self.file = Some(path);
    }

    fn set(&mut self, path: Vec<String>, text: String, origin: Origin) {
        let value = serde_saphyr::from_str(&text).unwrap_or_else(|_| Value::String(text.clone()));
        put(&mut self.root, &path, value);
        self.overrides.retain(|known| known.path != path);
        self.overrides.push(Override { path, text, origin, as_text: false });
    }

    fn decode<T: DeserializeOwned + Validate>(mut self) -> Result<T, ConfigErrors> {
        while self.problems.len() < MAX_PROBLEMS {
            match serde_path_to_error::deserialize::<_, T>(self.root.clone()) {
                Ok(decoded) => {
                    for mut found in decoded.validate() {
                        found.origin = self.origin_of(&found.key);
                        self.problems.push(found);
                    }
                    return if self.problems.is_empty() {
                        Ok(decoded)
                    } else {
                        Err(ConfigErrors(self.problems))
                    };
                }
                Err(error) => {
                    let path = error.path().to_string();
                    let reason = error.inner().to_string();
                    if !self.retry_as_text(&path) && !self.report(path, reason) {
                        break;
                    }
                }
            }
        }
        Err(ConfigErrors(self.problems))
    }

    /// Records a problem and takes the value out of the tree, so that the rest can be checked too.
    /// Returns whether there was something to take out.
    fn report(&mut self, path: String, reason: String) -> bool {
        let mut key = if path == "." { String::new() } else { path };
        if let Some(name) = unknown_field(&reason)
            && key.rsplit('.').next() != Some(name)
        {
            key = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        }
        let taken = if key.is_empty() { None } else { take(&mut self.root, &key) };
        let value = match &taken {
            // Nobody knows whether a misspelt key holds a secret; those are long.
            Some(value) if unknown_field(&reason).is_some() && value.to_string().len() > 24 => {
                REDACTED.to_owned()
            }
            Some(_) if reason.contains(UNPARSABLE) => REDACTED.to_owned(),
            Some(value) if !reason.starts_with("missing field") => shorten(value.to_string()),
            _ => String::new(),
        };
        let origin = self.origin_of(&key);
        self.problems.push(ConfigProblem { key, value, reason, origin });
        taken.is_some()
    }

    /// A variable or flag that looked like a number or a boolean may be meant as text.
    fn retry_as_text(&mut self, path: &str) -> bool {
        let matches = |known: &&mut Override| !known.as_text && known.path.join(".") == path;
        let Some(known) = self.overrides.iter_mut().find(matches) else { return false };
        known.as_text = true;
        let (path, text) = (known.path.clone(), known.text.clone());
        if get(&self.root, &path).is_some_and(Value::is_string) {
            return false;
        }
        put(&mut self.root, &path, Value::String(text));
        true
    }

    fn origin_of(&self, key: &str) -> Origin {
        let under = |known: &&Override| {
            let path = known.path.join(".");
            key == path || key.strip_prefix(&path).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        if let Some(known) = self.overrides.iter().find(under) {
            return known.origin.clone();
        }
        match &self.file {
            Some(path) => Origin::File(path.clone()),
            None => Origin::Default,
        }
    }
}

/// `STATE_DIR` as `stateDir`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_').map(str::to_ascii_lowercase);
    let mut joined = words.next().unwrap_or_default();
    for word in words {
        let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        joined.push_str(&first.to_ascii_uppercase());
        joined.push_str(rest);
    }
    joined
}

fn problem(key: &str, value: &str, reason: String, origin: Origin) -> ConfigProblem {
    ConfigProblem { key: key.to_owned(), value: value.to_owned(), reason, origin }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn unknown_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("unknown field `")?.split('`').next()
}

fn get<'v>(root: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(root, |value, part| value.get(part))
}

fn put(root: &mut Value, path: &[String], value: Value) {
    let mut here = root;
    for part in path {
        if !here.is_object() {
            *here = Value::Object(Map::new());
        }
        let Value::Object(map) = here else { return };
        here = map.entry(part.clone()).or_insert(Value::Null);
    }
    *here = value;
}

/// Removes the value at a path such as `a.b[2].c`.
fn take(root: &mut Value, path: &str) -> Option<Value> {
    let mut parts: Vec<&str> = path.split(['.', '[']).map(|part| part.trim_end_matches(']')).collect();
    let last = parts.pop()?;
    let mut here = root;
    for part in parts {
        here = match here {
            Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?)?,
            other => other.get_mut(part)?,
        };
    }
    match here {
        Value::Object(map) => map.remove(last),
        Value::Array(items) => {
            let index = last.parse::<usize>().ok()?;
            (index < items.len()).then(|| items.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
