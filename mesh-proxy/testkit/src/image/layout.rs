//! The OCI image layout: blobs named by their digest, an index, and the older `manifest.json` for `docker load`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, Read as _, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Image, ImageError, Source};

/// What was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// `sha256:…` of the manifest: what a cluster pins.
    pub digest: String,
    /// Bytes of the layers, compressed.
    pub compressed: u64,
    /// Bytes of the layers, unpacked.
    pub unpacked: u64,
}

/// Counts and digests what goes through.
struct Meter<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Meter<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.digest.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<W> Meter<W> {
    fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

struct Layer {
    file: tempfile::NamedTempFile,
    /// Of the tar, which the config names.
    diff_id: String,
    /// Of the compressed file, which the manifest names.
    digest: String,
    compressed: u64,
    unpacked: u64,
}

pub(super) fn write(image: &Image, out: &Path) -> Result<Written, ImageError> {
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(ImageError::io("creating", folder))?;
    let files = image.layers.iter().filter(|l| !l.is_empty());
    let layers = files.map(|files| layer(files, image.created, folder)).collect::<Result<Vec<_>, _>>()?;
    let config = to_bytes("the image's config", &config(image, &layers))?;
    let config_digest = hex(Sha256::new_with_prefix(&config));
    let manifest = to_bytes("the manifest", &manifest(&config_digest, config.len(), &layers))?;
    let manifest_digest = hex(Sha256::new_with_prefix(&manifest));
    let index = to_bytes("the index", &index(image, &manifest_digest, manifest.len()))?;
    let docker = to_bytes("manifest.json", &docker(image, &config_digest, &layers))?;

    // Beside the target and renamed: nobody reads half an image.
    let temporary =
        tempfile::NamedTempFile::new_in(folder).map_err(ImageError::io("writing into", folder))?;
    let failed = || ImageError::io("writing", out);
    let mut tar = tar::Builder::new(BufWriter::new(temporary.as_file()));
    let mut blob = |name: &str, bytes: &[u8]| append(&mut tar, name, 0o644, image.created, bytes);
    blob("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed())?;
    blob("index.json", &index).map_err(failed())?;
    blob("manifest.json", &docker).map_err(failed())?;
    blob(&format!("blobs/sha256/{manifest_digest}"), &manifest).map_err(failed())?;
    blob(&format!("blobs/sha256/{config_digest}"), &config).map_err(failed())?;
    for layer in &layers {
        let mut file = layer.file.reopen().map_err(failed())?;
        let mut header = header(0o644, layer.compressed, image.created);
        let name = format!("blobs/sha256/{}", layer.digest);
        tar.append_data(&mut header, name, &mut file).map_err(failed())?;
    }
    let mut written = tar.into_inner().map_err(failed())?;
    written.flush().map_err(failed())?;
    drop(written);
    let file = temporary.persist(out).map_err(|e| failed()(e.error))?;
    set_mode(&file).map_err(failed())?;
    Ok(Written {
        digest: format!("sha256:{manifest_digest}"),
        compressed: layers.iter().map(|l| l.compressed).sum(),
        unpacked: layers.iter().map(|l| l.unpacked).sum(),
    })
}

/// Temporary files are private; an image is to be read by those who import it.
fn set_mode(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn header(mode: u32, size: u64, created: i64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(created.try_into().unwrap_or(0));
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    created: i64,
    bytes: &[u8],
) -> std::io::Result<()> {
    tar.append_data(&mut header(mode, bytes.len() as u64, created), name, bytes)
}

fn layer(files: &BTreeMap<String, (Source, u32)>, created: i64, folder: &Path) -> Result<Layer, ImageError> {
    let file = tempfile::NamedTempFile::new_in(folder).map_err(ImageError::io("writing into", folder))?;
    let failed = || ImageError::io("writing a layer into", folder);
    let packed = Meter::new(BufWriter::new(file.reopen().map_err(failed())?));
    let gzip = GzEncoder::new(packed, Compression::fast());
    let mut tar = tar::Builder::new(Meter::new(gzip));
    let mut folders = BTreeSet::new();
    for (path, (source, mode)) in files {
        for parent in Path::new(path).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let name = parent.to_string_lossy().into_owned();
            if !name.is_empty() && !files.contains_key(&name) && folders.insert(name.clone()) {
                directory(&mut tar, &name, 0o755, created).map_err(failed())?;
            }
        }
        match source {
            Source::Directory(mode) => directory(&mut tar, path, *mode, created).map_err(failed())?,
            Source::Text(text) => {
                append(&mut tar, path, *mode, created, text.as_bytes()).map_err(failed())?;
            }
            Source::Host(host) => {
                let bad = || ImageError::io("reading", host);
                let mut file = File::open(host).map_err(bad())?;
                let size = file.metadata().map_err(bad())?.len();
                let mut content = (&mut file).take(size);
                tar.append_data(&mut header(*mode, size, created), path, &mut content).map_err(bad())?;
            }
        }
    }
    let plain = tar.into_inner().map_err(failed())?;
    let (diff_id, unpacked) = (hex(plain.digest), plain.bytes);
    let mut packed = plain.inner.finish().map_err(failed())?;
    packed.flush().map_err(failed())?;
    Ok(Layer { file, diff_id, digest: hex(packed.digest), compressed: packed.bytes, unpacked })
}

fn directory<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    created: i64,
) -> std::io::Result<()> {
    let mut header = header(mode, 0, created);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, format!("{name}/"), std::io::empty())
}

fn to_bytes(what: &'static str, value: &Value) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|e| ImageError::Json(what, e))
}

/// RFC 3339 of seconds since 1970, in UTC.
fn time(created: i64) -> String {
    jiff::Timestamp::from_second(created).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

fn config(image: &Image, layers: &[Layer]) -> Value {
    json!({
        "created": time(image.created),
        "architecture": image.arch.name(),
        "os": "linux",
        "config": {
            "User": image.user,
            "Entrypoint": image.entrypoint,
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "Labels": image.labels,
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|l| format!("sha256:{}", l.diff_id)).collect::<Vec<_>>(),
        },
        "history": layers.iter().map(|_| json!({"created": time(image.created)})).collect::<Vec<_>>(),
    })
}

fn manifest(config: &str, config_size: usize, layers: &[Layer]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{config}"),
            "size": config_size,
        },
        "layers": layers.iter().map(|l| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": format!("sha256:{}", l.digest),
            "size": l.compressed,
        })).collect::<Vec<_>>(),
    })
}

fn index(image: &Image, manifest: &str, size: usize) -> Value {
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest}"),
            "size": size,
            "platform": {"architecture": image.arch.name(), "os": "linux"},
            "annotations": {
                "io.containerd.image.name": full(&image.name),
                "org.opencontainers.image.ref.name": tag,
            },
        }],
    })
}

fn docker(image: &Image, config: &str, layers: &[Layer]) -> Value {
    json!([{
        "Config": format!("blobs/sha256/{config}"),
        "RepoTags": [image.name],
        "Layers": layers.iter().map(|l| format!("blobs/sha256/{}", l.digest)).collect::<Vec<_>>(),
    }])
}

/// The name as a container runtime writes it out: what kubelets ask for when a pod says `selvage/mesh-proxy`.
fn full(name: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    match name.contains('/') {
        true if first.contains('.') || first.contains(':') || first == "localhost" => name.to_owned(),
        true => format!("docker.io/{name}"),
        false => format!("docker.io/library/{name}"),
    }
}
