//! Compiled string conditions.

use mesh_api::model::{StringMatch, string_match::Kind};
use regex::{Regex, RegexBuilder};

/// Longest regular expression that a rule may hold, as in Istio.
pub const MAX_REGEX: usize = 1024;
/// Bound on the compiled size of one regular expression.
const MAX_PROGRAM: usize = 1 << 20;

/// A condition on one value.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    /// Equal.
    Exact(Box<str>),
    /// Begins with.
    Prefix(Box<str>),
    /// That path, or one below it; empty takes every path.
    PathPrefix(Box<str>),
    /// The whole value matches.
    Regex(Regex),
    /// The value exists.
    Present,
}

/// Why a condition cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Longer than [`MAX_REGEX`].
    #[error("regular expression of {0} bytes is longer than {MAX_REGEX}")]
    TooLong(usize),
    /// Not a regular expression.
    #[error("regular expression {pattern:?}: {reason}")]
    Syntax {
        /// As written.
        pattern: String,
        /// What the compiler said.
        reason: String,
    },
}

impl StringMatcher {
    /// Compiles a condition; no kind means presence.
    pub fn compile(m: &StringMatch) -> Result<Self, BadPattern> {
        Ok(match &m.kind {
            Some(Kind::Exact(s)) => Self::Exact(s.as_str().into()),
            Some(Kind::Prefix(s)) => Self::Prefix(s.as_str().into()),
            Some(Kind::PathPrefix(s)) => Self::PathPrefix(s.as_str().into()),
            Some(Kind::Regex(s)) if s == "*" => Self::Present,
            Some(Kind::Regex(s)) => Self::Regex(whole(s)?),
            Some(Kind::Present(_)) | None => Self::Present,
        })
    }

    /// Whether a value that exists satisfies the condition.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(s) => **s == *value,
            Self::Prefix(s) => value.starts_with(&**s),
            Self::PathPrefix(s) => below(value, s).is_some(),
            Self::Regex(r) => r.is_match(value),
            Self::Present => true,
        }
    }

    /// The same with letters of either case equal; a regular expression stays as it is.
    pub fn matches_ignoring_case(&self, value: &str) -> bool {
        match self {
            Self::Exact(s) => s.eq_ignore_ascii_case(value),
            Self::Prefix(s) => has_prefix_ignoring_case(value, s),
            Self::PathPrefix(_) | Self::Regex(_) | Self::Present => self.matches(value),
        }
    }
}

/// What follows `prefix` in a path that is that prefix or lies below it: nothing, or a rest that begins with a slash.
pub fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `value` begins with `prefix`, letters of either case equal.
pub fn has_prefix_ignoring_case(value: &str, prefix: &str) -> bool {
    value.as_bytes().get(..prefix.len()).is_some_and(|v| v.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// A regular expression that has to match the whole value.
pub fn whole(pattern: &str) -> Result<Regex, BadPattern> {
    // Alone first: "a)|(b" would otherwise break out of the group.
    build(pattern, pattern)?;
    build(pattern, &format!(r"\A(?:{pattern})\z"))
}

/// A regular expression that may match anywhere.
pub fn anywhere(pattern: &str) -> Result<Regex, BadPattern> {
    build(pattern, pattern)
}

fn build(pattern: &str, source: &str) -> Result<Regex, BadPattern> {
    if pattern.len() > MAX_REGEX {
        return Err(BadPattern::TooLong(pattern.len()));
    }
    RegexBuilder::new(source).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).build().map_err(|e| {
        BadPattern::Syntax {
            pattern: pattern.to_owned(),
            reason: e.to_string().lines().last().unwrap_or_default().trim().to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(s: &str) -> StringMatcher {
        StringMatcher::compile(&StringMatch { kind: Some(Kind::Regex(s.into())) }).unwrap()
    }

    #[test]
    fn a_regex_matches_the_whole_value_only() {
        assert!(regex("a|b").matches("a"));
        assert!(!regex("a|b").matches("ab"));
        assert!(!regex("b+").matches("abb"));
        assert!(!regex("a$").matches("a\n"));
        assert!(regex("*").matches("anything"));
    }

    #[test]
    fn a_pattern_cannot_break_out_of_its_anchors() {
        assert!(matches!(whole("a)|(b"), Err(BadPattern::Syntax { .. })));
        assert!(matches!(whole(&"a".repeat(1025)), Err(BadPattern::TooLong(1025))));
        assert!(whole("(a{1000}){1000}").is_err(), "the compiled size is bounded");
    }

    #[test]
    fn a_path_prefix_ends_at_a_slash() {
        let prefix = |s: &str| {
            StringMatcher::compile(&StringMatch { kind: Some(Kind::PathPrefix(s.into())) }).unwrap()
        };
        for (path, fits) in
            [("/api", true), ("/api/", true), ("/api/x", true), ("/apis", false), ("/ap", false)]
        {
            assert_eq!(prefix("/api").matches(path), fits, "{path}");
        }
        assert!(prefix("").matches("/") && prefix("").matches("/x"));
    }

    #[test]
    fn ignoring_case_never_splits_a_character() {
        assert!(has_prefix_ignoring_case("/API/x", "/api"));
        assert!(!has_prefix_ignoring_case("/é", "/\u{c3}"));
    }
}
