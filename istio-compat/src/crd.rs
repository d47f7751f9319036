//! CustomResourceDefinitions from the types.

use serde_json::Value;

/// All CRDs.
pub fn all() -> Vec<Value> {
    Vec::new()
}
