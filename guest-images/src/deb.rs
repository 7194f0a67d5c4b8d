//! Takes single files out of `.deb` packages, without unpacking the rest.

use crate::error::{Error, Result, at};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Streams through a package's files. `wanted` says for each path (relative, such as `boot/vmlinuz-6.1.0-47-arm64`)
/// where to write that file, if anywhere. Only regular files are written.
pub(crate) fn extract(package: &Path, mut wanted: impl FnMut(&Path) -> Option<PathBuf>) -> Result<()> {
    let failed = |message: String| Error::Tool { tool: format!("dpkg-deb {}", package.display()), message };
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut archive = tar::Archive::new(child.stdout.take().expect("piped"));
    let entries = archive.entries().map_err(|e| failed(e.to_string()))?;
    for entry in entries {
        let mut entry = entry.map_err(|e| failed(e.to_string()))?;
        let path = entry.path().map_err(|e| failed(e.to_string()))?.into_owned();
        let path: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if let Some(target) = wanted(&path) {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            let mut file = fs::File::create(&target).map_err(at(&target))?;
            std::io::copy(&mut entry, &mut file).map_err(at(&target))?;
        }
    }
    // Read to the end, or dpkg-deb would complain of a broken pipe.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(|e| failed(e.to_string()))?;
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(format!("{status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_files_are_written() {
        if !crate::apt::missing(&["dpkg-deb"]).is_empty() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "dpkg-deb is not installed");
            println!("SKIPPED: dpkg-deb is not installed");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        let control =
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: x\n";
        fs::write(root.join("DEBIAN/control"), control).unwrap();
        fs::write(root.join("boot/vmlinuz"), "kernel").unwrap();
        fs::write(root.join("boot/other"), "other").unwrap();
        let deb = directory.path().join("x.deb");
        let status = Command::new("dpkg-deb")
            .args(["--root-owner-group", "-b"])
            .arg(&root)
            .arg(&deb)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let mut seen = Vec::new();
        let target = directory.path().join("out/Image");
        extract(&deb, |path| {
            seen.push(path.to_path_buf());
            path.ends_with("vmlinuz").then(|| target.clone())
        })
        .unwrap();
        seen.sort();
        assert_eq!(seen, [Path::new("boot/other"), Path::new("boot/vmlinuz")]);
        assert_eq!(fs::read_to_string(&target).unwrap(), "kernel");
        assert!(extract(&directory.path().join("absent.deb"), |_| None).is_err());
    }
}
