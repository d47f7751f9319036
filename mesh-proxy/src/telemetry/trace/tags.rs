//! Tags that users add to spans: fixed, from the environment, from a header, or a text with command operators.

use http::{HeaderMap, HeaderName};
use mesh_api::model::{self, tracing_tag::Source};
use mesh_core::command::Format;

use super::span::cut;

/// A tag, compiled.
#[derive(Debug)]
pub(crate) struct Tag {
    pub(in crate::telemetry) name: String,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Text(String),
    Header(HeaderName, String),
    Format(Format),
}

impl Tag {
    /// Compiles a tag; none if it can have no value.
    pub(crate) fn compile(tag: &model::TracingTag) -> Result<Option<Self>, String> {
        let fallback = || tag.default_value.clone();
        let value = match &tag.source {
            None => return Ok(None),
            Some(Source::Literal(text)) => Value::Text(text.clone()),
            Some(Source::Environment(name)) => {
                Value::Text(std::env::var(name).unwrap_or_else(|_| fallback()))
            }
            Some(Source::Header(name)) => {
                let name = HeaderName::from_bytes(name.as_bytes());
                Value::Header(name.map_err(|_| format!("tag {}: no name of a header", tag.name))?, fallback())
            }
            Some(Source::Formatter(text)) => {
                let format = Format::parse(text).map_err(|e| format!("tag {}: {e}", tag.name))?;
                match format.constant() {
                    Some(text) => Value::Text(text.to_owned()),
                    None => Value::Format(format),
                }
            }
        };
        Ok(Some(Self { name: tag.name.clone(), value }))
    }

    /// The text with operators that it is.
    pub(crate) const fn format(&self) -> Option<&Format> {
        match &self.value {
            Value::Format(format) => Some(format),
            Value::Text(_) | Value::Header(..) => None,
        }
    }

    /// What the request's head says of it; none for texts with operators, which are known at the end.
    pub(super) fn of_head(&self, headers: &HeaderMap) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Header(name, fallback) => {
                let found = headers.get(name).and_then(|v| v.to_str().ok());
                Some(found.map_or_else(|| fallback.clone(), cut))
            }
            Value::Format(_) => None,
        }
    }

    /// The value out of the headers of a message that is only read; by the name of each.
    pub(in crate::telemetry) fn of_lines<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Header(name, fallback) => {
                Some(header(name.as_str()).map_or_else(|| fallback.clone(), cut))
            }
            Value::Format(_) => None,
        }
    }
}
