//! A line of a log: when, how bad, what. Programs write it as text or as JSON.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::Level;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Who says it.
    pub(crate) program: String,
    /// As it is written: RFC 3339, so it sorts as a text. Empty when the line has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) time: String,
    /// Empty for a line of another form, such as one of the access log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) level: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) target: String,
    pub(crate) message: String,
    /// What else a line of JSON says.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) fields: Map<String, Value>,
}

impl Line {
    /// Reads a line of either form.
    pub(crate) fn read(program: &str, line: &str) -> Self {
        let plain = || Self {
            program: program.to_owned(),
            time: String::new(),
            level: String::new(),
            target: String::new(),
            message: line.to_owned(),
            fields: Map::new(),
        };
        if line.starts_with('{') {
            return match serde_json::from_str::<Map<String, Value>>(line) {
                Ok(fields) => Self { message: String::new(), ..plain() }.with(fields),
                Err(_) => plain(),
            };
        }
        // `2026-01-01T00:00:00.123456Z  INFO mesh_proxy::app: started listen=...`
        let mut words = line.splitn(2, ' ');
        let (Some(time), Some(rest)) = (words.next().filter(|t| is_time(t)), words.next()) else {
            return plain();
        };
        let rest = rest.trim_start();
        let Some((level, rest)) = rest.split_once(' ').filter(|(l, _)| level_of(l).is_some()) else {
            return Self { time: time.to_owned(), message: rest.to_owned(), ..plain() };
        };
        let is_target =
            |t: &&str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
        let (target, message) = match rest.split_once(": ").filter(|(t, _)| is_target(t)) {
            Some((target, message)) => (target, message),
            None => ("", rest),
        };
        Self {
            time: time.to_owned(),
            level: level.to_ascii_lowercase(),
            target: target.to_owned(),
            message: message.to_owned(),
            ..plain()
        }
    }

    fn with(mut self, mut fields: Map<String, Value>) -> Self {
        let mut take = |key: &str| match fields.remove(key) {
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        self.time = take("timestamp");
        self.level = take("level").to_ascii_lowercase();
        self.target = take("target");
        self.message = take("message");
        self.fields = fields;
        self
    }

    /// Whether it is as bad as that, or worse. Lines without a level are shown when no level is asked for.
    pub(crate) fn is_at_least(&self, level: Option<Level>) -> bool {
        level.is_none_or(|wanted| level_of(&self.level).is_some_and(|level| level >= wanted))
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("{} |", self.program);
        for part in [&self.time, &self.level.to_ascii_uppercase()] {
            if !part.is_empty() {
                out.push_str(&format!(" {part}"));
            }
        }
        if !self.target.is_empty() {
            out.push_str(&format!(" {}:", self.target));
        }
        if !self.message.is_empty() {
            out.push_str(&format!(" {}", self.message));
        }
        for (key, value) in &self.fields {
            match value {
                Value::String(text) if !text.contains([' ', '"']) => out.push_str(&format!(" {key}={text}")),
                value => out.push_str(&format!(" {key}={value}")),
            }
        }
        out
    }
}

fn is_time(word: &str) -> bool {
    word.len() >= 20
        && word.as_bytes().get(10) == Some(&b'T')
        && word.starts_with(|c: char| c.is_ascii_digit())
}

fn level_of(word: &str) -> Option<Level> {
    Some(match word.to_ascii_lowercase().as_str() {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warn" => Level::Warn,
        "error" => Level::Error,
        _ => return None,
    })
}

/// By time; a line without one stays behind the line before it of its program.
pub(crate) fn in_order(lines: &mut Vec<Line>) {
    let (mut keyed, mut last) = (Vec::with_capacity(lines.len()), (String::new(), String::new()));
    for (at, line) in lines.drain(..).enumerate() {
        if last.0 != line.program {
            last = (line.program.clone(), String::new());
        }
        if !line.time.is_empty() {
            last.1.clone_from(&line.time);
        }
        keyed.push(((last.1.clone(), at), line));
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    lines.extend(keyed.into_iter().map(|(_, line)| line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_forms_say_time_and_level() {
        let text = Line::read(
            "edge-a/proxy",
            "2026-01-01T00:00:00.5Z  WARN mesh_proxy::dns: no server answers name=x",
        );
        assert_eq!((text.level.as_str(), text.target.as_str()), ("warn", "mesh_proxy::dns"));
        assert_eq!(text.message, "no server answers name=x");
        let json = Line::read(
            "edge-a/proxy",
            r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","target":"t","message":"m","peer":"a b","n":3}"#,
        );
        assert_eq!(json.text(), r#"edge-a/proxy | 2026-01-01T00:00:00Z ERROR t: m n=3 peer="a b""#);
        // Other forms stay as they are.
        for other in ["[access] GET /", "{not json", "2026", ""] {
            let line = Line::read("p", other);
            assert_eq!((line.message.as_str(), line.level.as_str()), (other, ""), "{other}");
        }
    }

    #[test]
    fn a_level_hides_what_is_below_it() {
        let line = |level: &str| Line::read("p", &format!("2026-01-01T00:00:00.000000Z {level} a: b"));
        let at_least = |l: &str, level| line(l).is_at_least(Some(level));
        assert!(at_least("ERROR", Level::Warn) && at_least("WARN", Level::Warn));
        assert!(
            !at_least("INFO", Level::Warn) && !Line::read("p", "access log").is_at_least(Some(Level::Trace))
        );
        assert!(Line::read("p", "access log").is_at_least(None));
    }

    #[test]
    fn programs_are_merged_by_time_and_lines_without_one_stay_in_their_place() {
        let mut lines: Vec<Line> = [
            ("a", "2026-01-01T00:00:01.000000Z INFO x: 1"),
            ("a", "continues 1"),
            ("a", "2026-01-01T00:00:03.000000Z INFO x: 3"),
            ("b", "2026-01-01T00:00:02.000000Z INFO x: 2"),
        ]
        .iter()
        .map(|(p, l)| Line::read(p, l))
        .collect();
        in_order(&mut lines);
        let order: Vec<&str> = lines.iter().map(|l| l.message.as_str()).collect();
        assert_eq!(order, ["1", "continues 1", "2", "3"]);
    }
}
