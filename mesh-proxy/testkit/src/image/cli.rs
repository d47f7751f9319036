//! `oci-image`: one image, its digest, and its bill of materials.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{Arch, Image, sbom};

/// Makes a container image of a program, as an OCI archive, without a daemon.
#[derive(Debug, clap::Parser)]
#[command(
    name = "oci-image",
    version,
    after_help = "Example:\n  oci-image --name selvage/mesh-proxy:test --binary target/debug/mesh-proxy --tool nft --tool ip --strip \\\n    \
                  --out mesh-proxy.oci.tar && ctr -n k8s.io images import mesh-proxy.oci.tar"
)]
pub struct Args {
    /// Name and tag of the image
    #[arg(long, value_name = "NAME:TAG")]
    name: String,
    /// The program that it runs; the libraries that it links to come along
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A further program from sbin or bin, with its libraries (any number of times)
    #[arg(long = "tool", value_name = "NAME")]
    tools: Vec<String>,
    /// Where tools and their libraries lie
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// For which processor
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Who runs it
    #[arg(long, value_name = "UID:GID", default_value = super::NONROOT)]
    user: String,
    /// A label (any number of times)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Leave debug information out of the program
    #[arg(long)]
    strip: bool,
    /// Time of the image and its files, seconds since 1970: the same time gives the same bytes
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    created: i64,
    /// Write a bill of materials (CycloneDX) there
    #[arg(long, value_name = "FILE")]
    sbom: Option<PathBuf>,
    /// The target that the program was built for, for the bill
    #[arg(long, value_name = "TRIPLE", default_value = "x86_64-unknown-linux-musl")]
    target: String,
    /// Which package each file below --root is of, for the bill: a package URL and a path in each line
    #[arg(long, value_name = "FILE")]
    owners: Option<PathBuf>,
}

/// Makes the image that the arguments describe.
///
/// # Errors
/// What was wrong, with the file's name.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let arch = args.arch.unwrap_or_else(Arch::here);
    let mut image = Image::new(&args.name, arch)?;
    image.created = args.created;
    image.user.clone_from(&args.user);
    for label in &args.labels {
        let Some((key, value)) = label.split_once('=') else { bail!("--label {label}: wanted KEY=VALUE") };
        image.labels.insert(key.to_owned(), value.to_owned());
    }
    // Lives until the image is written.
    let small = args.strip.then(|| stripped(&args.binary)).transpose()?;
    image.program(small.as_ref().map_or(args.binary.as_path(), |(_, path)| path.as_path()))?;
    for tool in &args.tools {
        image.tool(tool, &args.root)?;
    }
    let written = image.write(&args.out)?;
    if let Some(out) = &args.sbom {
        bill(args, &image, out)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{} {} {} {:.1} MiB ({:.1} MiB unpacked) {}",
        args.name,
        arch.name(),
        args.out.display(),
        mib(written.compressed),
        mib(written.unpacked),
        written.digest
    );
    Ok(())
}

/// A copy without debug information, in a folder that goes when it is dropped.
fn stripped(binary: &Path) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let name = binary.file_name().with_context(|| format!("{} names no file", binary.display()))?;
    let copy = folder.path().join(name);
    let status = Command::new("strip").arg("-o").arg(&copy).arg(binary).status();
    match status {
        Ok(status) if status.success() => Ok((folder, copy)),
        Ok(status) => bail!("strip {}: {status}", binary.display()),
        Err(error) => bail!("strip (package binutils) cannot be run: {error}"),
    }
}

/// The packages whose files lie in the image.
fn packages(args: &Args, image: &Image) -> anyhow::Result<Vec<String>> {
    let Some(file) = &args.owners else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    // A library is asked for by a name that is a link, and listed under its own and that name alike.
    let lines = text.lines().filter_map(|l| l.split_once(' '));
    let held = lines.filter(|(_, path)| image.layers[0].contains_key(path.trim_start_matches(['.', '/'])));
    let mut urls: Vec<String> = held.map(|(url, _)| url.to_owned()).collect();
    urls.sort();
    urls.dedup();
    Ok(urls)
}

fn bill(args: &Args, image: &Image, out: &Path) -> anyhow::Result<()> {
    let package = args.binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &args.target])
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata = serde_json::from_slice(&output.stdout).context("reading what cargo metadata prints")?;
    let created = jiff::Timestamp::from_second(args.created).unwrap_or_default().to_string();
    let bill = sbom::sbom(&metadata, &package, &packages(args, image)?, &created)?;
    let text = serde_json::to_vec_pretty(&bill).context("writing the bill of materials")?;
    std::fs::write(out, text).with_context(|| format!("writing {}", out.display()))
}
