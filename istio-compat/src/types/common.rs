//! Types that several resources share.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::duration;

/// A Go-style duration (`1h30m`, `2.5s`) as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// The length in nanoseconds, or why the text is not a duration.
    pub fn nanos(&self) -> Result<i64, duration::BadDuration> {
        duration::parse(&self.0)
    }

    /// Whole milliseconds; 0 when negative or not a duration (validation names those).
    pub fn millis(&self) -> u64 {
        self.nanos().ok().and_then(|n| u64::try_from(n / 1_000_000).ok()).unwrap_or(0)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "x-kubernetes-validations": [
                { "rule": "duration(self) >= duration('1ms')", "message": "must be a duration of at least 1ms" }
            ],
        })
    }
}

/// A Go-style duration for which zero has a meaning of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct ZeroDuration(pub String);

impl ZeroDuration {
    /// The length in nanoseconds, or why the text is not a duration.
    pub fn nanos(&self) -> Result<i64, duration::BadDuration> {
        duration::parse(&self.0)
    }
}

/// Matches a string in exactly one way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-one-of" = [["exact", "prefix", "regex"]]))]
pub struct StringMatch {
    /// The whole value, as is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// The start of the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// RE2 syntax, for the whole value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A share in percent, from 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Percent {
    /// The share; one ten-thousandth of a percent is the smallest step.
    pub value: f64,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PortSelector {
    /// Port number.
    pub number: u32,
}

/// Chooses workloads by label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels that a workload must all have.
    #[schemars(with = "MatchLabels")]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

/// Schema of labels to match: bounded, and without wildcards.
struct MatchLabels;

impl JsonSchema for MatchLabels {
    fn schema_name() -> Cow<'static, str> {
        "MatchLabels".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 4096,
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "x-kubernetes-validations": [
                    { "rule": "!self.contains('*')", "message": "a value must not have a wildcard" }
                ],
            },
            "x-kubernetes-validations": [
                { "rule": "self.all(key, !key.contains('*'))", "message": "a key must not have a wildcard" },
                { "rule": "self.all(key, key.size() != 0)", "message": "a key must not be empty" }
            ],
        })
    }
}

/// An object that a policy is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["kind", "name"]))]
pub struct PolicyTargetReference {
    /// API group.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: String,
    /// Kind.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace; only the policy's own.
    #[schemars(extend("x-kubernetes-validations" = [
        { "rule": "self.size() == 0", "message": "cross namespace referencing is not currently supported" },
    ]))]
    pub namespace: String,
}

/// Schemas that the types cannot say by themselves.
macro_rules! schema_of {
    ($(#[$doc:meta])* $name:ident = $schema:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let make: fn() -> Schema = $schema;
                make()
            }
        }
    };
}

schema_of!(
    /// Labels to select by: bounded, and without wildcards.
    SelectorLabels = || json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [
                { "rule": "!self.contains('*')", "message": "wildcard is not supported in selector" }
            ],
        },
    })
);

schema_of!(
    /// A port.
    PortNumber = || json_schema!({
        "type": "integer",
        "minimum": 0,
        "maximum": 4_294_967_295_u32,
        "x-kubernetes-validations": [
            { "rule": "0 < self && self <= 65535", "message": "port must be between 1-65535" }
        ],
    })
);

schema_of!(
    /// Ports by name.
    PortMap = || json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
        "x-kubernetes-validations": [
            { "rule": "self.all(key, size(key) < 63 && key.matches('^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$'))",
              "message": "port name must be valid" },
            { "rule": "self.all(key, 0 < self[key] && self[key] <= 65535)", "message": "port must be between 1-65535" }
        ],
    })
);

/// Settings by port number.
pub(crate) struct PortLevel<T>(std::marker::PhantomData<T>);

impl<T: JsonSchema> JsonSchema for PortLevel<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("PortLevel{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": T::json_schema(generator),
            "x-kubernetes-validations": [
                { "rule": "self.all(key, 0 < int(key) && int(key) <= 65535)", "message": "port must be between 1-65535" }
            ],
        })
    }
}
