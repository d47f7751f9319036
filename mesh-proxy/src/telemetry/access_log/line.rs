//! A line, compiled: the pieces between values are bytes already, and the values go straight into the line.

use mesh_core::command::{Format as Text, ISTIO_JSON, ISTIO_TEXT, Operator};
use serde_json::Value;

use super::{
    AccessLogConfig, Format,
    entry::{Entry, Host, View, Wanted},
};

/// What stands for a value that there is not.
const ABSENT: &str = "-";
/// Deepest nesting of a JSON line.
const MAX_DEPTH: usize = 8;

/// What a line says.
pub(super) struct Program {
    form: Form,
    wanted: Wanted,
    host: Host,
}

enum Form {
    Text(Text),
    Json { fields: Vec<Field>, end: String },
}

/// A value of a JSON line, and what stands before it: braces, keys, commas.
struct Field {
    before: String,
    value: Text,
}

impl Program {
    /// The line of these settings, or what is wrong with them and where.
    pub(super) fn compile(config: &AccessLogConfig) -> Result<Self, String> {
        let json = config.format == Format::Json;
        let form = if json { Self::json(config)? } else { Self::text(config)? };
        // What is set for the other form is checked all the same: it is what comes into force with one word.
        let _checked = if json { Self::text(config)? } else { Self::json(config)? };
        let all: Vec<&Operator> = match &form {
            Form::Text(text) => text.operators().collect(),
            Form::Json { fields, .. } => fields.iter().flat_map(|f| f.value.operators()).collect(),
        };
        let host = Host::default().named_by(all.iter().copied());
        let wanted = Wanted::by(all.into_iter());
        Ok(Self { form, wanted, host })
    }

    /// Looks up what this host says: its name, and the variables of the environment.
    pub(super) fn at_this_host(mut self) -> Self {
        self.host.look();
        self
    }

    fn text(config: &AccessLogConfig) -> Result<Form, String> {
        let line = if config.text.is_empty() { ISTIO_TEXT } else { &config.text };
        // The line feed that ends Envoy's formats is written anyway.
        let line = Text::parse(line.trim_end_matches('\n'));
        line.map(Form::Text).map_err(|e| format!("access_log.text: {e}"))
    }

    fn json(config: &AccessLogConfig) -> Result<Form, String> {
        let mut draft = Draft { fields: Vec::new(), pending: String::new() };
        if config.json.is_empty() {
            let istio = ISTIO_JSON.map(|(key, text)| (key, Value::from(text)));
            draft.object(istio.iter().map(|(k, v)| (*k, v)), "access_log.json", 0)?;
        } else {
            draft.object(config.json.iter().map(|(k, v)| (k.as_str(), v)), "access_log.json", 0)?;
        }
        Ok(Form::Json { fields: draft.fields, end: draft.pending })
    }

    pub(super) const fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Appends the line of a call.
    pub(super) fn write(&self, entry: &Entry, line: &mut Vec<u8>) {
        let plain = matches!(self.form, Form::Text(_));
        let view = View { entry, wanted: &self.wanted, host: &self.host, plain };
        match &self.form {
            Form::Text(text) => text.write(&view, ABSENT, line),
            Form::Json { fields, end } => {
                let mut value = Vec::new();
                for field in fields {
                    line.extend_from_slice(field.before.as_bytes());
                    field.write(&view, &mut value, line);
                }
                line.extend_from_slice(end.as_bytes());
            }
        }
    }
}

impl Field {
    /// Appends the value; one operator keeps its type, and is null if there is no value.
    fn write(&self, view: &View<'_>, scratch: &mut Vec<u8>, line: &mut Vec<u8>) {
        scratch.clear();
        if let Some(command) = self.value.single() {
            if !command.write(view, scratch) {
                return line.extend_from_slice(b"null");
            }
            if command.operator.is_number() {
                return line.extend_from_slice(scratch);
            }
        } else {
            self.value.write(view, ABSENT, scratch);
        }
        quote(scratch, line);
    }
}

/// Appends a JSON string; what is no UTF-8 is replaced.
fn quote(text: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    for chunk in text.utf8_chunks() {
        for b in chunk.valid().bytes() {
            match b {
                b'"' | b'\\' => line.extend_from_slice(&[b'\\', b]),
                b'\n' => line.extend_from_slice(b"\\n"),
                b if b.is_ascii_control() => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    let digits = [HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]];
                    line.extend_from_slice(b"\\u00");
                    line.extend_from_slice(&digits);
                }
                b => line.push(b),
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    line.push(b'"');
}

/// A JSON line while it is compiled.
struct Draft {
    fields: Vec<Field>,
    pending: String,
}

impl Draft {
    fn object<'v>(
        &mut self,
        fields: impl Iterator<Item = (&'v str, &'v Value)>,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("{at}: nested deeper than {MAX_DEPTH}"));
        }
        self.pending.push('{');
        for (i, (key, value)) in fields.enumerate() {
            if i > 0 {
                self.pending.push(',');
            }
            self.pending.push_str(&Value::from(key).to_string());
            self.pending.push(':');
            self.value(value, &format!("{at}.{key}"), depth)?;
        }
        self.pending.push('}');
        Ok(())
    }

    fn value(&mut self, value: &Value, at: &str, depth: usize) -> Result<(), String> {
        match value {
            Value::String(text) => {
                let value = Text::parse(text).map_err(|e| format!("{at}: {e}"))?;
                self.fields.push(Field { before: std::mem::take(&mut self.pending), value });
                Ok(())
            }
            Value::Object(fields) => self.object(fields.iter().map(|(k, v)| (k.as_str(), v)), at, depth + 1),
            Value::Number(_) | Value::Bool(_) | Value::Null => {
                self.pending.push_str(&value.to_string());
                Ok(())
            }
            Value::Array(_) => Err(format!("{at}: a list; texts and objects are understood")),
        }
    }
}
