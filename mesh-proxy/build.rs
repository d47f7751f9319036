//! Link options of the program: a smaller file of which less is touched at start.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    // The linker that rustc brings for this target (lld) knows both; another one may not.
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        // Relative relocations in a bitmap: 1 MB less to read and keep mapped.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // One copy of functions with equal code.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
