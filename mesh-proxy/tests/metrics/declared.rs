//! The metrics that the programs declare, read out of their source: a registry does not tell of families that have no
//! series yet.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use mesh_proxy::telemetry::istio::{CALL_LABELS, REQUEST_LABELS};

/// A metric as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub help: String,
    pub labels: Vec<String>,
    /// Which program registers it.
    pub program: &'static str,
}

/// Where metrics are declared, and by which program they are registered.
const SOURCES: [(&str, &str); 3] = [
    ("mesh-proxy/src", "mesh-proxy"),
    ("mesh-proxy/tunnel/src", "mesh-proxy"),
    ("mesh-controller/src", "mesh-controller"),
];

/// Labels that are given by name in the source.
fn named(code: &str) -> Option<Vec<&'static str>> {
    if code.contains("CALL_LABELS") {
        Some(CALL_LABELS.to_vec())
    } else if code.contains("request_labels") {
        Some(REQUEST.clone())
    } else {
        code.contains("&moved").then(|| vec!["side", "direction"])
    }
}

/// Those of a request: of a call, and two more.
static REQUEST: LazyLock<Vec<&str>> =
    LazyLock::new(|| CALL_LABELS.into_iter().chain(REQUEST_LABELS).collect());

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All of them, by name.
pub fn declared() -> BTreeMap<String, Declared> {
    let mut all = BTreeMap::new();
    for (folder, program) in SOURCES {
        for file in files(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            for found in scan(product, program) {
                let name = found.name.clone();
                let before = all.insert(name.clone(), found.clone());
                assert!(before.is_none_or(|b| b == found), "{name} is declared twice, differently");
            }
        }
    }
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            out.extend(files(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// A piece of source: a text literal, or what stands between two of them.
enum Token {
    Text(String),
    Code(String),
}

fn tokens(source: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut code = String::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                chars.by_ref().take_while(|c| *c != '\n').for_each(drop);
            }
            '\'' => {
                // A character literal: a quote in it begins no text.
                let mut ahead = chars.clone();
                let (first, second) = (ahead.next(), ahead.next());
                if second == Some('\'') || first == Some('\\') {
                    chars.next();
                    chars.by_ref().take_while(|c| *c != '\'').for_each(drop);
                }
            }
            '"' => {
                let mut text = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => match chars.next() {
                            // A line that goes on.
                            Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                            Some('n') => text.push('\n'),
                            Some(c) => text.push(c),
                            None => {}
                        },
                        c => text.push(c),
                    }
                }
                out.push(Token::Code(std::mem::take(&mut code)));
                out.push(Token::Text(text));
            }
            c => code.push(c),
        }
    }
    out.push(Token::Code(code));
    out
}

fn scan(source: &str, program: &'static str) -> Vec<Declared> {
    let tokens = tokens(source);
    let mut out = Vec::new();
    for (i, window) in tokens.windows(4).enumerate() {
        let [Token::Code(before), Token::Text(name), Token::Code(comma), Token::Text(help)] = window else {
            continue;
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let own = name.starts_with("selvage_") || name.starts_with("istio_");
        let squeezed: String = before.chars().filter(|c| !c.is_whitespace()).collect();
        // The controller's helpers put the first part of the name before it.
        let helpers = ["gauge", "gauges", "counter", "counters", "counters2", "histogram"];
        let short = helpers.iter().any(|h| squeezed.ends_with(&format!("r.{h}(")));
        if comma.trim() != "," || !name.chars().all(plain) || !(own || short) || !help.contains(' ') {
            continue;
        }
        let lower = before.to_ascii_lowercase();
        let at = |kind: &str| lower.rfind(kind).map(|at| (at, ()));
        let kinds = ["counter", "gauge", "histogram"].into_iter().filter_map(|k| Some((at(k)?.0, k)));
        // A helper of the file whose name says nothing: what it makes is said where it is written.
        let kind = kinds
            .max()
            .map(|(_, k)| k)
            .unwrap_or_else(|| if name.ends_with("_total") { "counter" } else { "gauge" });
        let name = if own { name.clone() } else { format!("selvage_controller_{name}") };
        let mut labels = labels(&tokens[i + 4..]);
        if labels.is_empty() && name.starts_with("istio_request") || name.starts_with("istio_response") {
            labels = REQUEST.iter().map(|l| (*l).to_owned()).collect();
        }
        out.push(Declared { name, kind, help: help.clone(), labels, program });
    }
    out
}

/// The labels that follow a help text: texts up to the end of the statement, or the name of a list.
fn labels(tokens: &[Token]) -> Vec<String> {
    let mut out = Vec::new();
    for token in tokens {
        match token {
            Token::Text(text) => out.push(text.clone()),
            Token::Code(code) => {
                // The expression ends with the question mark, or where the next entry begins.
                let end = code.find('?').or_else(|| code.find(';'));
                let code = end.map_or(code.as_str(), |end| &code[..end]);
                if let Some(list) = named(code) {
                    return list.into_iter().map(str::to_owned).collect();
                }
                if end.is_some() {
                    break;
                }
            }
        }
    }
    out
}
