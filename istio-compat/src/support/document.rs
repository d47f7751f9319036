//! The table as documentation.

use super::{KINDS, MESH_CONFIG, fields};

const HEAD: &str = "\
# Istio fields

<!-- Generated from istio-compat's table of fields; do not edit.
     REGENERATE=1 cargo test -p istio-compat --test generated -->

Objects of all versions of Istio's API groups are read unchanged. A field that has no effect here is
never passed over in silence: `meshctl validate` lists it under `unsupported`, and the controller logs and counts it.
A row covers the fields below it that have no row of their own. `[]` stands for any position of a list, `{}` for any
key of a map.
";

/// The whole page.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for kind in KINDS {
        out.push_str(&format!("\n## {kind}\n\n| field | honoured | remark |\n|---|---|---|\n"));
        for field in fields(kind) {
            out.push_str(&format!("| `{}` | {} | {} |\n", field.path, field.status.as_str(), field.note));
        }
        if kind == "DestinationRule" {
            out.push_str(
                "\nThe rows of `trafficPolicy` hold for `trafficPolicy.portLevelSettings[]` and \
                 `subsets[].trafficPolicy` alike.\n",
            );
        }
    }
    out.push_str(
        "\n## MeshConfig\n\nThe key `mesh` of the ConfigMap `istio` in the root namespace.\n\n\
         | setting | honoured | remark |\n|---|---|---|\n",
    );
    for field in MESH_CONFIG {
        out.push_str(&format!("| `{}` | {} | {} |\n", field.path, field.status.as_str(), field.note));
    }
    out
}
