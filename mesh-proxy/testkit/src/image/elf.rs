//! What a program links to, read with `readelf`, so that it works for other processors too.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Arch, ImageError};

/// As the kernel's.
const MAX_LINKS: usize = 40;

/// Path in the image to file on this machine, of all libraries that a program needs and of its loader.
pub(super) fn libraries(
    program: &Path,
    root: &Path,
    arch: Arch,
) -> Result<BTreeMap<String, PathBuf>, ImageError> {
    let mut found = BTreeMap::new();
    let mut open = vec![program.to_owned()];
    while let Some(file) = open.pop() {
        let (loader, needed) = parse(&read(&file)?);
        if let Some(loader) = loader {
            let inside = loader.trim_start_matches('/').to_owned();
            let path = below(root, &inside);
            if !path.exists() {
                return Err(ImageError::NoLibrary { program: file, library: loader, places: vec![path] });
            }
            found.insert(inside, path);
        }
        for library in needed {
            let triple = arch.triple();
            let places =
                [format!("lib/{triple}"), format!("usr/lib/{triple}"), "lib".into(), "usr/lib".into()];
            let Some(place) = places.iter().find(|p| below(root, &format!("{p}/{library}")).exists()) else {
                let places = places.iter().map(|p| root.join(p)).collect();
                return Err(ImageError::NoLibrary { program: file, library, places });
            };
            let path = below(root, &format!("{place}/{library}"));
            if found.insert(format!("{place}/{library}"), path.clone()).is_none() {
                open.push(path);
            }
        }
    }
    Ok(found)
}

/// What a path inside `root` stands for: a link from `/` leads to a place below `root`, not to one of this machine.
pub(super) fn below(root: &Path, inside: &str) -> PathBuf {
    let mut path = root.join(inside);
    for _ in 0..MAX_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = match target.strip_prefix("/") {
            Ok(target) => root.join(target),
            Err(_) => path.parent().unwrap_or(root).join(target),
        };
    }
    path
}

fn read(file: &Path) -> Result<String, ImageError> {
    let bad = |reason: String| ImageError::Elf { program: file.to_owned(), reason };
    let run = Command::new("readelf").args(["-W", "-l", "-d"]).arg(file).env("LC_ALL", "C").output();
    let output = run.map_err(|e| bad(format!("readelf (package binutils) cannot be run: {e}")))?;
    // It complains of a file that is none with exit code 0 in some versions.
    if !output.status.success() || output.stdout.is_empty() {
        return Err(bad(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Loader and libraries in what `readelf` prints.
fn parse(text: &str) -> (Option<String>, Vec<String>) {
    let between = |line: &str, start: &str| {
        let (_, rest) = line.split_once(start)?;
        rest.split_once(']').map(|(name, _)| name.trim().to_owned())
    };
    let loader = text.lines().find_map(|l| between(l, "[Requesting program interpreter:"));
    let needed = text.lines().filter(|l| l.contains("(NEEDED)")).filter_map(|l| between(l, "["));
    (loader, needed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_libraries_are_read() {
        let text = "      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]\n \
                    0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n \
                    0x0000000000000001 (NEEDED)             Shared library: [libm.so.6]\n \
                    0x000000000000000e (SONAME)             Library soname: [libx.so]\n";
        let (loader, needed) = parse(text);
        assert_eq!(loader.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(needed, ["libc.so.6", "libm.so.6"]);
        assert_eq!(parse("There is no dynamic section in this file.\n"), (None, vec![]));
    }

    #[test]
    fn links_stay_below_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("sbin")).unwrap();
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/tool"), "of another processor").unwrap();
        std::os::unix::fs::symlink("/bin/tool", root.join("sbin/tool")).unwrap();
        std::os::unix::fs::symlink("../sbin/tool", root.join("bin/again")).unwrap();
        assert_eq!(below(root, "sbin/tool"), root.join("bin/tool"));
        assert_eq!(std::fs::read_to_string(below(root, "bin/again")).unwrap(), "of another processor");
        assert_eq!(below(root, "bin/none"), root.join("bin/none"));
        std::os::unix::fs::symlink("loop", root.join("bin/loop")).unwrap();
        assert!(!below(root, "bin/loop").exists());
    }

    #[test]
    fn a_file_that_is_no_program_is_said() {
        let error = libraries(Path::new("/etc/hostname"), Path::new("/"), Arch::here()).unwrap_err();
        assert!(error.to_string().contains("/etc/hostname"), "{error}");
    }
}
