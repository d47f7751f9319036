use std::io::Read as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;

fn read_tar(bytes: &[u8]) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, (entry.header().mode().unwrap(), entry.header().mtime().unwrap(), content))
    });
    entries.collect()
}

fn example(folder: &Path) -> (PathBuf, Written) {
    let program = folder.join("hello");
    std::fs::write(&program, "#!").unwrap();
    let mut image = Image::new("selvage/hello:1.0", Arch::Arm64).unwrap();
    image.layers[1].insert("usr/local/bin/hello".into(), (Source::Host(program), 0o755));
    image.entrypoint = vec!["/usr/local/bin/hello".into(), "serve".into()];
    image.user = NONROOT.into();
    image.created = 1_700_000_000;
    image.labels.insert("org.opencontainers.image.version".into(), "1.0".into());
    let out = folder.join("out/hello.oci.tar");
    let written = image.write(&out).unwrap();
    (out, written)
}

#[test]
fn every_digest_and_size_of_the_layout_is_that_of_its_blob() {
    let folder = tempfile::tempdir().unwrap();
    let (out, written) = example(folder.path());
    let files = read_tar(&std::fs::read(&out).unwrap());
    let json = |name: &str| serde_json::from_slice::<Value>(&files[name].2).unwrap();
    let blob = |descriptor: &Value| {
        let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let content = files[&format!("blobs/sha256/{hex}")].2.clone();
        assert_eq!(descriptor["size"], content.len());
        let real: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, real);
        content
    };
    assert_eq!(json("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
    let descriptor = &json("index.json")["manifests"][0];
    assert_eq!(descriptor["digest"], written.digest);
    assert_eq!(descriptor["annotations"]["io.containerd.image.name"], "docker.io/selvage/hello:1.0");
    let manifest: Value = serde_json::from_slice(&blob(descriptor)).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(config["config"]["User"], NONROOT);
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/hello", "serve"]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let mut inside = BTreeMap::new();
    for (layer, diff) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&blob(layer)[..]).read_to_end(&mut plain).unwrap();
        let real: String = Sha256::digest(&plain).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(*diff, format!("sha256:{real}"));
        inside.extend(read_tar(&plain));
    }
    assert_eq!(inside["usr/local/bin/hello"], (0o755, 1_700_000_000, b"#!".to_vec()));
    assert_eq!(inside["tmp/"].0, 0o1777);
    assert!(String::from_utf8_lossy(&inside["etc/passwd"].2).contains("nonroot:x:65532:"));
    // What `docker load` reads names the same blobs.
    assert_eq!(json("manifest.json")[0]["RepoTags"][0], "selvage/hello:1.0");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (example(one.path()), example(two.path()));
    assert_eq!(first.1.digest, second.1.digest);
    assert_eq!(std::fs::read(first.0).unwrap(), std::fs::read(second.0).unwrap());
}

#[test]
fn a_dynamic_program_brings_its_libraries_and_its_loader() {
    let mut image = Image::new("selvage/test:1", Arch::here()).unwrap();
    image.program(&std::env::current_exe().unwrap()).unwrap();
    let base: Vec<&String> = image.layers[0].keys().collect();
    assert!(base.iter().any(|p| p.contains("ld-linux")), "{base:?}");
    assert!(base.iter().any(|p| p.ends_with("libc.so.6")), "{base:?}");
    assert_eq!(image.layers[1].len(), 1);
}

#[test]
fn names_and_tools_that_are_none_are_refused() {
    for name in ["hello", "Hello:1", "hello:", ":1", "hello:a b"] {
        assert!(matches!(Image::new(name, Arch::Amd64), Err(ImageError::Name(_))), "{name}");
    }
    assert!(Image::new("localhost:5000/selvage/x:1.0-rc1", Arch::Amd64).is_ok());
    let mut image = Image::new("selvage/x:1", Arch::Amd64).unwrap();
    let error = image.tool("no-such-tool", Path::new("/")).unwrap_err().to_string();
    assert!(error.contains("no-such-tool") && error.contains("/usr/sbin"), "{error}");
}

#[test]
fn the_bill_names_what_is_linked_and_not_what_builds() {
    let package = |name: &str, source: Option<&str>| json!({"id": name, "name": name, "version": "1.0.0", "source": source, "license": "MIT/Apache-2.0"});
    let registry = Some("registry");
    let dep = |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
    let metadata = json!({
        "packages": [package("app", None), package("a", registry), package("b", registry), package("cc", registry)],
        "resolve": {"nodes": [
            {"id": "app", "deps": [dep("a", None), dep("cc", Some("build"))]},
            {"id": "a", "deps": [dep("b", None)]},
            {"id": "b", "deps": []},
            {"id": "cc", "deps": []},
        ]},
    });
    let other = "pkg:deb/debian/nftables@1.0.6-2?arch=amd64".to_owned();
    let bill = sbom::sbom(&metadata, "app", &[other], "2026-01-01T00:00:00Z").unwrap();
    let names: Vec<&str> =
        bill["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "nftables"]);
    assert_eq!(bill["metadata"]["component"]["purl"], "pkg:cargo/app@1.0.0");
    assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
    assert_eq!(bill["components"][2]["version"], "1.0.6-2");
    assert!(sbom::sbom(&metadata, "other", &[], "").is_err());
}
