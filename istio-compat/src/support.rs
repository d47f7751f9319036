//! Which fields this mesh honours: one table, from which findings at parse time and the documentation are made.

use serde_json::Value;

/// Why a field that is set has no or not the full effect, if so.
pub(crate) fn unsupported(_kind: &str, _field: &str, _value: &Value) -> Option<String> {
    None
}
