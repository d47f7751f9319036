//! Files made from the types are current. `REGENERATE=1 cargo test -p istio-compat --test generated` rewrites them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn check(path: &str, want: &str) {
    let file = repository().join(path);
    if std::env::var_os("REGENERATE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, want).unwrap();
    }
    let have = fs::read_to_string(&file).unwrap_or_default();
    assert!(have == want, "{path} is stale: run `REGENERATE=1 cargo test -p istio-compat --test generated`");
}

#[test]
fn crds_are_current() {
    for crd in istio_compat::crd::all() {
        let text = istio_compat::crd::yaml(&crd);
        let again = istio_compat::yaml::documents(&text).unwrap().remove(0);
        assert_eq!(again, crd, "YAML does not say what the CRD says");
        check(&format!("charts/crds/{}", istio_compat::crd::file_name(&crd)), &text);
    }
}

#[test]
fn documentation_is_current() {
    check("docs/istio-support.md", &istio_compat::support::markdown());
}
