//! The part of CEL that filters of access logs use: comparisons of attributes with constants, `&&`, `||`, `!`,
//! `startsWith`, `endsWith`, `contains`, `matches`, `has`. What is not known is an error when it is compiled, so that it
//! can be said; an expression is evaluated without allocation.

mod parse;

use regex::Regex;

/// Longest expression.
pub const MAX_LENGTH: usize = 4096;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// What an expression may ask about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the attribute of that name")]
pub enum Attribute {
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ResponseSize,
    RequestSize,
    RequestDuration,
    RequestMethod,
    RequestPath,
    RequestUrlPath,
    RequestHost,
    RequestProtocol,
    RequestUserAgent,
    RequestId,
    ConnectionServerName,
    SourceAddress,
    UpstreamAddress,
    ClusterName,
    RouteName,
}

/// Attributes by name.
const NAMES: [(&str, Attribute); 18] = [
    ("response.code", Attribute::ResponseCode),
    ("response.flags", Attribute::ResponseFlags),
    ("response.code_details", Attribute::ResponseCodeDetails),
    ("response.size", Attribute::ResponseSize),
    ("request.size", Attribute::RequestSize),
    ("request.duration", Attribute::RequestDuration),
    ("request.method", Attribute::RequestMethod),
    ("request.path", Attribute::RequestPath),
    ("request.url_path", Attribute::RequestUrlPath),
    ("request.host", Attribute::RequestHost),
    ("request.protocol", Attribute::RequestProtocol),
    ("request.useragent", Attribute::RequestUserAgent),
    ("request.id", Attribute::RequestId),
    ("connection.requested_server_name", Attribute::ConnectionServerName),
    ("source.address", Attribute::SourceAddress),
    ("upstream.address", Attribute::UpstreamAddress),
    ("xds.cluster_name", Attribute::ClusterName),
    ("xds.route_name", Attribute::RouteName),
];

/// A value; durations are numbers of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A number.
    Number(i64),
    /// A text.
    Text(&'a str),
    /// There is none.
    Absent,
}

/// A call, as expressions look at it.
pub trait Attributes {
    /// The value of an attribute.
    fn get(&self, attribute: Attribute) -> Value<'_>;
}

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expression(Node);

/// Why an expression is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {at}: {reason}")]
pub struct BadExpression {
    /// Position in the text, in bytes.
    pub at: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Debug, Clone)]
enum Node {
    Constant(bool),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Compare(Operator, Operand, Operand),
    Test(Test, Operand, Box<str>),
    Matches(Operand, Regex),
    Has(Attribute),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Clone)]
enum Operand {
    Attribute(Attribute),
    Number(i64),
    Text(Box<str>),
}

impl Expression {
    /// Compiles an expression.
    pub fn compile(text: &str) -> Result<Self, BadExpression> {
        parse::parse(text).map(Self)
    }

    /// Whether it holds for a call. A comparison with what is not there does not hold.
    pub fn holds(&self, call: &dyn Attributes) -> bool {
        self.0.holds(call)
    }
}

impl Operand {
    fn value<'a>(&'a self, call: &'a dyn Attributes) -> Value<'a> {
        match self {
            Self::Attribute(a) => call.get(*a),
            Self::Number(n) => Value::Number(*n),
            Self::Text(t) => Value::Text(t),
        }
    }
}

impl Node {
    fn holds(&self, call: &dyn Attributes) -> bool {
        let text = |operand: &Operand, f: &dyn Fn(&str) -> bool| match operand.value(call) {
            Value::Text(t) => f(t),
            Value::Number(_) | Value::Absent => false,
        };
        match self {
            Self::Constant(b) => *b,
            Self::Not(n) => !n.holds(call),
            Self::And(a, b) => a.holds(call) && b.holds(call),
            Self::Or(a, b) => a.holds(call) || b.holds(call),
            Self::Compare(op, a, b) => compare(*op, a.value(call), b.value(call)),
            Self::Test(Test::StartsWith, a, with) => text(a, &|t| t.starts_with(&**with)),
            Self::Test(Test::EndsWith, a, with) => text(a, &|t| t.ends_with(&**with)),
            Self::Test(Test::Contains, a, with) => text(a, &|t| t.contains(&**with)),
            Self::Matches(a, regex) => text(a, &|t| regex.is_match(t)),
            Self::Has(a) => call.get(*a) != Value::Absent,
        }
    }
}

fn compare(op: Operator, a: Value<'_>, b: Value<'_>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.cmp(&b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        // Values of two kinds differ, and have no order.
        _ => return op == Operator::NotEqual,
    };
    match op {
        Operator::Equal => order == Equal,
        Operator::NotEqual => order != Equal,
        Operator::Less => order == Less,
        Operator::LessOrEqual => order != Greater,
        Operator::Greater => order == Greater,
        Operator::GreaterOrEqual => order != Less,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Call;

    impl Attributes for Call {
        fn get(&self, attribute: Attribute) -> Value<'_> {
            match attribute {
                Attribute::ResponseCode => Value::Number(503),
                Attribute::RequestDuration => Value::Number(1500),
                Attribute::RequestMethod => Value::Text("GET"),
                Attribute::RequestPath => Value::Text("/api/x?y=1"),
                _ => Value::Absent,
            }
        }
    }

    #[test]
    fn what_istio_documents_is_understood() {
        for (text, expected) in [
            ("response.code >= 400", true),
            ("response.code >= 500 && response.code < 503", false),
            ("response.code == 200 || response.code == 503", true),
            ("!(response.code == 503)", false),
            ("request.method == 'GET' && request.path.startsWith(\"/api\")", true),
            ("request.path.contains('y=') && request.path.endsWith('1')", true),
            ("request.path.matches('^/api/.*$')", true),
            ("has(request.id)", false),
            ("request.duration > duration('1s')", true),
            ("request.duration > duration('1500ms')", false),
            ("request.host == 'x'", false),
            ("request.host != 'x'", true),
            ("400 <= response.code", true),
            ("true", true),
        ] {
            assert_eq!(Expression::compile(text).unwrap().holds(&Call), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for text in [
            "",
            "response.code >=",
            "response.kode == 1",
            "response.code",
            "request.headers['x'] == 'y'",
            "response.code == 1 response.code == 2",
            "(response.code == 1",
            "request.path.matches('(')",
            "request.path.reverse('x')",
            "'unclosed",
            "size(request.path) > 1",
        ] {
            assert!(Expression::compile(text).is_err(), "{text}");
        }
        assert!(Expression::compile(&"!".repeat(200)).is_err(), "nesting is bounded");
        assert!(Expression::compile(&"(".repeat(100_000)).is_err());
    }
}
