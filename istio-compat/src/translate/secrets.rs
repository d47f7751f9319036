//! Names of secrets, as resources and as objects.

/// The resource name of a credential: `namespace/name`. `kubernetes://ns/name` and `ns/name` say the namespace
/// themselves. Empty for none.
pub(crate) fn full_name(credential: &str, namespace: &str) -> String {
    let name = credential.strip_prefix("kubernetes://").unwrap_or(credential);
    let name = name.strip_prefix("kubernetes-gateway://").unwrap_or(name);
    match name {
        "" => String::new(),
        full if full.contains('/') => full.to_owned(),
        short => format!("{namespace}/{short}"),
    }
}
