//! Container images made without a daemon: an OCI layout in one tar file, which `ctr images import`, `skopeo` and
//! `docker load` read. What an image holds is what it was told, and what those programs link to; the same input
//! gives the same bytes.

pub mod cli;
mod elf;
mod layout;
mod sbom;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use layout::Written;
pub use sbom::SbomError;

/// Where a file's content comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this machine.
    Host(PathBuf),
    /// This text.
    Text(String),
    /// A directory with this mode.
    Directory(u32),
}

/// Processors that images are made for, as OCI names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

impl Arch {
    /// OCI's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The folder of shared libraries in Debian.
    fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// This machine's.
    #[must_use]
    pub fn here() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }
}

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Name and tag: `selvage/mesh-proxy:0.1.0`.
    pub name: String,
    /// For which processor.
    pub arch: Arch,
    /// `uid:gid` that the program runs as.
    pub user: String,
    /// Program and fixed arguments.
    pub entrypoint: Vec<String>,
    /// `org.opencontainers.image.*` and others.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970 that all files and the image carry.
    pub created: i64,
    /// Path in the image to content: what changes seldom, then what changes often; a layer each.
    pub layers: [BTreeMap<String, (Source, u32)>; 2],
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file that cannot be read or written.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that links to a library that is not there.
    #[error("{program} needs {library}, which is in none of {places:?}; install its package, or give --root")]
    NoLibrary {
        /// Who needs it.
        program: PathBuf,
        /// What.
        library: String,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// `readelf` did not understand a file.
    #[error("reading what {program} links to: {reason}")]
    Elf {
        /// The file.
        program: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// A name without a tag, or with what registries do not take.
    #[error("image name {0:?}: wanted NAME:TAG of lower-case letters, digits and . _ - /")]
    Name(String),
    /// JSON that could not be made.
    #[error("writing {0}: {1}")]
    Json(&'static str, serde_json::Error),
}

impl ImageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// A user for programs that need no rights: the number that distroless images made usual.
pub const NONROOT: &str = "65532:65532";

/// Certificates that the public web is checked with, if this machine has them.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Image {
    /// An image of this name with the files that any program expects.
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(name: &str, arch: Arch) -> Result<Self, ImageError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        let tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        // The last colon: a registry may have a port.
        let whole = name.rsplit_once(':').filter(|(n, t)| {
            !n.is_empty() && !t.is_empty() && n.chars().all(|c| good(c) || c == ':') && t.chars().all(tag)
        });
        whole.ok_or_else(|| ImageError::Name(name.to_owned()))?;
        let mut base = BTreeMap::new();
        base.insert("tmp".to_owned(), (Source::Directory(0o1777), 0));
        let text = |s: &str| (Source::Text(s.to_owned()), 0o644);
        let users = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
        base.insert("etc/passwd".to_owned(), text(users));
        base.insert("etc/group".to_owned(), text("root:x:0:\nnonroot:x:65532:\n"));
        base.insert("etc/nsswitch.conf".to_owned(), text("hosts: files dns\n"));
        if Path::new(CA_BUNDLE).exists() {
            base.insert(
                CA_BUNDLE.trim_start_matches('/').to_owned(),
                (Source::Host(CA_BUNDLE.into()), 0o644),
            );
        }
        Ok(Self {
            name: name.to_owned(),
            arch,
            user: "0:0".to_owned(),
            entrypoint: Vec::new(),
            labels: BTreeMap::new(),
            created: 0,
            layers: [base, BTreeMap::new()],
        })
    }

    /// Adds the program that the image runs, as `/usr/local/bin/NAME`, with the libraries that it links to.
    ///
    /// # Errors
    /// A library that is missing, a file that is none.
    pub fn program(&mut self, binary: &Path) -> Result<(), ImageError> {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.libraries(binary, Path::new("/"))?;
        let inside = format!("usr/local/bin/{name}");
        if self.entrypoint.is_empty() {
            self.entrypoint = vec![format!("/{inside}")];
        }
        self.layers[1].insert(inside, (Source::Host(binary.to_owned()), 0o755));
        Ok(())
    }

    /// Adds a program that the first one calls, found in the usual folders below `root`.
    ///
    /// # Errors
    /// It is not there, or a library of it is missing.
    pub fn tool(&mut self, name: &str, root: &Path) -> Result<(), ImageError> {
        let folders = ["usr/sbin", "usr/bin", "sbin", "bin"];
        let found = folders.iter().map(|f| format!("{f}/{name}")).find(|p| elf::below(root, p).exists());
        let Some(inside) = found else {
            let places = folders.iter().map(|f| root.join(f)).collect();
            return Err(ImageError::NoLibrary {
                program: self.name.clone().into(),
                library: name.into(),
                places,
            });
        };
        let path = elf::below(root, &inside);
        self.libraries(&path, root)?;
        self.layers[0].insert(inside, (Source::Host(path), 0o755));
        Ok(())
    }

    /// The dynamic libraries of a program, and theirs; of a static one, none.
    fn libraries(&mut self, program: &Path, root: &Path) -> Result<(), ImageError> {
        for (inside, path) in elf::libraries(program, root, self.arch)? {
            self.layers[0].insert(inside, (Source::Host(path), 0o755));
        }
        Ok(())
    }

    /// Writes the image.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn write(&self, out: &Path) -> Result<Written, ImageError> {
        layout::write(self, out)
    }
}

#[cfg(test)]
mod tests;
