//! A log filter as a list of targets and their levels.

use super::LogError;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Targets and levels in the order in which they were set; the default has an empty target. What is more than that
/// (spans, fields) stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Levels(Vec<(String, String)>);

/// The name of a level, as filters spell it.
pub(super) fn level(text: &str) -> Result<String, LogError> {
    let lower = text.to_ascii_lowercase();
    // Envoy's and Istio's names for what we have too.
    let known = match lower.as_str() {
        "warning" => "warn",
        "critical" | "fatal" => "error",
        "none" => "off",
        other => other,
    };
    LEVELS.contains(&known).then(|| known.to_owned()).ok_or_else(|| LogError::Level(text.to_owned()))
}

impl Levels {
    /// The parts of a filter.
    pub(super) fn of(filter: &str) -> Self {
        let part = |part: &str| match part.rsplit_once('=') {
            Some((target, level)) => (target.to_owned(), level.to_owned()),
            None if LEVELS.contains(&part.to_ascii_lowercase().as_str()) => (String::new(), part.to_owned()),
            // A bare target means everything of it.
            None => (part.to_owned(), "trace".to_owned()),
        };
        Self(filter.split(',').map(str::trim).filter(|p| !p.is_empty()).map(part).collect())
    }

    /// The level of one target; of an empty one, the default.
    pub(super) fn set(&mut self, target: &str, text: &str) -> Result<(), LogError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-');
        if !target.bytes().all(plain) {
            return Err(LogError::Target(target.to_owned()));
        }
        let level = level(text)?;
        self.0.retain(|(t, _)| t != target);
        // The default stands first, for people.
        let at = if target.is_empty() { 0 } else { self.0.len() };
        self.0.insert(at, (target.to_owned(), level));
        Ok(())
    }

    /// One level for everything.
    pub(super) fn set_all(&mut self, text: &str) -> Result<(), LogError> {
        self.0 = vec![(String::new(), level(text)?)];
        Ok(())
    }

    /// As a filter.
    pub(super) fn filter(&self) -> String {
        let part = |(target, level): &(String, String)| match target.as_str() {
            "" => level.clone(),
            target => format!("{target}={level}"),
        };
        self.0.iter().map(part).collect::<Vec<_>>().join(",")
    }

    /// Targets and levels; the default is called so.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(t, l)| (if t.is_empty() { "default" } else { t.as_str() }, l.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_set_one_by_one() {
        let mut levels = Levels::of("info,mesh_proxy::dns=debug");
        levels.set("mesh_tunnel", "TRACE").unwrap();
        levels.set("mesh_proxy::dns", "warning").unwrap();
        assert_eq!(levels.filter(), "info,mesh_tunnel=trace,mesh_proxy::dns=warn");
        levels.set("", "error").unwrap();
        assert_eq!(levels.filter(), "error,mesh_tunnel=trace,mesh_proxy::dns=warn");
        assert_eq!(levels.list().next(), Some(("default", "error")));
        assert_eq!(
            levels.set("x", "loud").unwrap_err().to_string(),
            "\"loud\" is no level; levels are off, error, warn, info, debug, trace"
        );
        assert!(matches!(levels.set("a b", "info"), Err(LogError::Target(_))));
        levels.set_all("debug").unwrap();
        assert_eq!(levels.filter(), "debug");
        assert_eq!(Levels::of("warn,[span{x=1}]=debug,hyper").filter(), "warn,[span{x=1}]=debug,hyper=trace");
    }
}
