//! Generates the message types from `proto/` without `protoc`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/mesh.proto", "proto/discovery.proto"], ["proto"])?;
    prost_build::Config::new()
        // Maps keep their order, so equal resources encode to equal bytes and versions can be hashes.
        .btree_map(["."])
        .skip_source_info()
        // Its own Debug shows no key.
        .skip_debug([".selvage.mesh.v1.Secret"])
        .compile_fds(files)?;
    Ok(())
}
