//! What analysis says, collected: suppressed by annotation, each thing once, in a stable order.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{catalogue, world::Object};

/// How bad a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Level {
    /// Good to know.
    Info,
    /// Likely not what was meant.
    Warning,
    /// It does not work.
    Error,
}

impl Level {
    /// As printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

/// One thing said of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Message {
    /// For example `IST0101`.
    pub code: &'static str,
    /// For example `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace; empty when it has none.
    pub namespace: String,
    /// Kind, namespace as written, and name.
    pub resource: String,
    /// What is said.
    pub message: String,
    /// The field; empty when it is the object as a whole.
    pub path: String,
}

/// Objects with this annotation want no messages of the codes in it.
const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Collects messages.
#[derive(Debug, Default)]
pub(super) struct Report(BTreeSet<Message>);

impl Report {
    /// Says something about an object. `parts` go into the text of the code.
    pub(super) fn add(
        &mut self,
        object: &Object,
        code: &str,
        path: impl Into<String>,
        parts: &[&dyn std::fmt::Display],
    ) {
        let Some(code) = catalogue::find(code) else { return };
        let suppressed = object.annotations().get(SUPPRESS).copied().unwrap_or_default();
        if suppressed.split(',').any(|c| c == "*" || c == code.code) {
            return;
        }
        self.0.insert(Message {
            code: code.code,
            name: code.name,
            level: code.level,
            kind: object.kind.as_str(),
            namespace: object.namespace().to_owned(),
            resource: object.resource.clone(),
            message: fill(code.template, parts),
            path: path.into(),
        });
    }

    /// A reference to something that is not there.
    pub(super) fn missing(&mut self, object: &Object, path: impl Into<String>, what: &str, name: &str) {
        self.add(object, "IST0101", path, &[&what, &name]);
    }

    /// The worst first, then by code and object.
    pub(super) fn finish(self) -> Vec<Message> {
        let mut out: Vec<Message> = self.0.into_iter().collect();
        out.sort_by(|a, b| {
            (b.level, a.code, &a.resource, &a.path).cmp(&(a.level, b.code, &b.resource, &b.path))
        });
        out
    }
}

/// Replaces the `%` marks of a template.
fn fill(template: &str, parts: &[&dyn std::fmt::Display]) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    let mut parts = parts.iter();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let part = parts.next().map(ToString::to_string).unwrap_or_default();
        match after.chars().next() {
            Some('q') => out.push_str(&format!("{part:?}")),
            _ => out.push_str(&part),
        }
        rest = after.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// A list as Go prints it.
pub(super) fn bracketed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_text_in_order() {
        assert_eq!(
            fill("Referenced %s not found: %q", &[&"host", &"a\"b"]),
            "Referenced host not found: \"a\\\"b\""
        );
        assert_eq!(fill("ports %v.", &[&bracketed([1, 2])]), "ports [1 2].");
        assert_eq!(fill("%v", &[&"x"]), "x");
        assert_eq!(fill("nothing", &[&"x"]), "nothing");
    }

    #[test]
    fn every_template_takes_its_parts() {
        for code in catalogue::CODES {
            let text = fill(code.template, &[&"a", &"b", &"c", &"d", &"e"]);
            assert!(!text.contains('%'), "{}: {text}", code.code);
        }
    }
}
