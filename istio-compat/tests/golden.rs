//! Our own manifests and what they compile to. `REGENERATE=1 cargo test -p istio-compat --test golden` rewrites the
//! results; read the difference before you keep it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fmt::Write, fs, path::PathBuf};

use istio_compat::{parse, translate, types::Resource, validate, yaml};

fn compiled(name: &str) -> String {
    let file = folder().join(format!("{name}.yaml"));
    let mut out = String::new();
    for document in yaml::documents(&fs::read_to_string(file).unwrap()).unwrap() {
        let parsed = parse(&document).unwrap();
        assert_eq!(parsed.unknown, []);
        assert_eq!(validate::validate(&parsed.resource).errors, []);
        let ctx = translate::Context::default();
        for finding in &parsed.unsupported {
            writeln!(out, "# {} has no effect: {}", finding.path, finding.message).unwrap();
        }
        match parsed.resource {
            Resource::VirtualService(vs) => {
                for (host, rules) in translate::virtual_service(&vs, &ctx, &translate::no_delegates) {
                    writeln!(out, "{host}: {rules:#?}").unwrap();
                }
            }
            Resource::DestinationRule(dr) => {
                let (host, policy) = translate::destination_rule(&dr, &ctx).unwrap();
                writeln!(out, "{host}: {policy:#?}").unwrap();
            }
            _ => {}
        }
    }
    out
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn check(name: &str) {
    let file = folder().join(format!("{name}.compiled"));
    let got = compiled(name);
    if std::env::var_os("REGENERATE").is_some() {
        fs::write(&file, &got).unwrap();
    }
    let want = fs::read_to_string(&file).unwrap_or_default();
    let line = want.lines().zip(got.lines()).position(|(w, g)| w != g);
    assert!(want == got, "{name}: first difference at line {:?} of {}", line.map(|l| l + 1), file.display());
}

#[test]
fn routing() {
    check("routing");
}

#[test]
fn l4() {
    check("l4");
}

#[test]
fn policy() {
    check("policy");
}
