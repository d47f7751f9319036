//! What is wrong with an object, said so that its author finds the place.

use std::fmt;

use crate::object::ObjectKey;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The object, or what it asks for, has no effect as a whole.
    Error,
    /// A part of it has no effect.
    Warning,
}

/// One thing to say about one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    /// The object.
    pub object: ObjectKey,
    /// How bad it is.
    pub level: Level,
    /// Field path, e.g. `spec.ports[0].port`; empty when it is about the whole object.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Finding {
    pub(crate) fn error(object: &ObjectKey, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { object: object.clone(), level: Level::Error, path: path.into(), message: message.into() }
    }

    pub(crate) fn warning(object: &ObjectKey, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(object, path, message) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, path, message, .. } = self;
        if path.is_empty() {
            write!(f, "{object}: {message}")
        } else {
            write!(f, "{object}: {path}: {message}")
        }
    }
}
