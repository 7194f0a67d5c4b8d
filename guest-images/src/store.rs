//! The cache of images: what is in it, and whether it still is what was put there.
//!
//! Below the cache directory, `images/NAME.json` is the manifest of an image and names the directory that holds its
//! files. A new version gets a new directory and the manifest is replaced in one rename, so a running `smmulab` keeps
//! the files that it was told of. A lock file per image keeps two fetches apart.

use crate::apt::Package;
use crate::error::{Error, Result, at};
use crate::name::{Name, Series};
use crate::{hash, initramfs, lab, modules};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// File names within an image's directory.
pub(crate) const KERNEL: &str = "Image";
pub(crate) const SYSTEM_MAP: &str = "System.map";
pub(crate) const CONFIG: &str = "config";
pub(crate) const BUSYBOX: &str = "busybox";
pub(crate) const MODULES: &str = "modules";
pub(crate) const VMLINUX: &str = "vmlinux";
pub(crate) const BUILD: &str = "build";

/// Directories that an image is prepared in start with this.
const STAGING: &str = ".new-";

/// A guest's kernel and initramfs, ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it was asked for as.
    pub name: Name,
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// A plain arm64 `Image`.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive, to which [`crate::job_cpio`] can be appended.
    pub initrd: PathBuf,
    /// The kernel's symbols.
    pub system_map: Option<PathBuf>,
    /// The kernel's configuration.
    pub config: Option<PathBuf>,
    /// The kernel as an ELF file with its symbols (lab kernel only).
    pub vmlinux: Option<PathBuf>,
    /// A tree to build modules against: `make -C BUILD M=…` (lab kernel only).
    pub build: Option<PathBuf>,
    /// The packages that it was made of.
    pub packages: Vec<Package>,
}

/// One line of `smmulab image list`.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The image's name.
    pub name: Name,
    /// What it is.
    pub description: &'static str,
    /// The cached image, if there is one and it is intact.
    pub cached: Option<Image>,
}

/// What is recorded of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: Name,
    pub(crate) release: String,
    /// The directory with the files, relative to `images`.
    pub(crate) directory: String,
    pub(crate) initrd: String,
    pub(crate) packages: Vec<Package>,
    /// See [`selection_hash`].
    pub(crate) selection: String,
    /// Hash of what this crate put into the initramfs.
    pub(crate) recipe: String,
    pub(crate) files: BTreeMap<String, Record>,
}

/// What is recorded of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    sha256: String,
    size: u64,
    /// Time of last change, in nanoseconds since 1970. While size and time stay the contents are taken to be the same.
    changed: u128,
}

/// The cache of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The user's cache: `SMMULAB_CACHE`, or `smmulab` in the user's cache directory.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os("SMMULAB_CACHE").filter(|p| !p.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => directories::ProjectDirs::from("", "", "smmulab")
                .ok_or(Error::NoCacheDirectory)?
                .cache_dir()
                .to_path_buf(),
        };
        Ok(Self::at(root))
    }

    /// A cache in `root`, which need not exist.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All images there are, with what is cached.
    pub fn list(&self) -> Vec<Listed> {
        let mut names: Vec<Name> =
            crate::name::NAMES.iter().map(|n| n.parse().expect("a known name")).collect();
        let manifests = fs::read_dir(self.images()).into_iter().flatten().flatten();
        for file in manifests.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")) {
            names.extend(read_manifest(&file).map(|m| m.name));
        }
        names.sort();
        names.dedup();
        let listed = |name: Name| Listed {
            description: describe(name.series),
            cached: self.manifest(&name).and_then(|m| self.verify(&m).ok()),
            name,
        };
        names.into_iter().map(listed).collect()
    }

    /// The cached image of that name, if it is intact and this version of the crate would pack it the same way.
    pub fn cached(&self, name: &Name) -> Option<Image> {
        let manifest = self.manifest(name)?;
        if manifest.recipe != recipe_hash() || manifest.selection != selection_hash(name.series) {
            return None;
        }
        self.verify(&manifest).map_err(|e| log::warn!("{e}; fetching it again")).ok()
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The private apt root for a series.
    pub(crate) fn apt_root(&self, series: Series) -> PathBuf {
        self.root.join("apt").join(series.suites().0)
    }

    /// Waits until no other process works on `what`; the lock lasts as long as the file.
    pub(crate) fn lock(&self, what: &str) -> Result<File> {
        let path = self.root.join("locks").join(what);
        let directory = path.parent().expect("has a parent");
        fs::create_dir_all(directory).map_err(at(directory))?;
        let file = File::options().create(true).append(true).open(&path).map_err(at(&path))?;
        file.lock().map_err(at(&path))?;
        Ok(file)
    }

    /// A directory to prepare an image in, on the same file system as the final one.
    pub(crate) fn staging(&self) -> Result<tempfile::TempDir> {
        let images = self.images();
        fs::create_dir_all(&images).map_err(at(&images))?;
        // What an interrupted fetch has left behind; a day is longer than any fetch or build.
        for entry in fs::read_dir(&images).map_err(at(&images))?.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            let stale = age.is_some_and(|a| a > Duration::from_secs(86_400));
            if stale && entry.file_name().to_string_lossy().starts_with(STAGING) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        tempfile::Builder::new().prefix(STAGING).tempdir_in(&images).map_err(at(&images))
    }

    pub(crate) fn manifest(&self, name: &Name) -> Option<Manifest> {
        read_manifest(&self.manifest_path(name))
    }

    fn manifest_path(&self, name: &Name) -> PathBuf {
        self.images().join(format!("{}.json", key(name)))
    }

    /// Packs the initramfs of the parts in `directory` and writes it there; gives its file name.
    pub(crate) fn pack(&self, directory: &Path, release: &str) -> Result<String> {
        let busybox = directory.join(BUSYBOX);
        let tree = directory.join(MODULES);
        fs::create_dir_all(&tree).map_err(at(&tree))?;
        let modules = modules::select(&tree, &modules::WANTED)?;
        let archive = initramfs::pack(&initramfs::Contents {
            release,
            busybox: &fs::read(&busybox).map_err(at(&busybox))?,
            modules: &modules,
        });
        let name = format!("initrd-{}.cpio", &recipe_hash()[..8]);
        write_whole(&directory.join(&name), &archive)?;
        Ok(name)
    }

    /// Makes the staged files an image: packs the initramfs, moves the directory into place, records all.
    pub(crate) fn publish(
        &self,
        staged: &Path,
        name: &Name,
        release: &str,
        packages: Vec<Package>,
    ) -> Result<Image> {
        let initrd = self.pack(staged, release)?;
        let mut files = BTreeMap::new();
        for file in [KERNEL, SYSTEM_MAP, CONFIG, BUSYBOX, VMLINUX, &initrd] {
            let path = staged.join(file);
            if path.exists() {
                files.insert(file.to_string(), Record::of(&path)?);
            }
        }
        let version = packages.first().map_or("", |p| p.version.as_str()).replace([':', '/'], "_");
        let directory = format!("{}/{release}_{version}", key(name));
        let target = self.images().join(&directory);
        let parent = target.parent().expect("has a parent");
        fs::create_dir_all(parent).map_err(at(parent))?;
        // The same version fetched again takes the old one's place.
        let aside = self.staging()?;
        if target.exists() {
            fs::rename(&target, aside.path().join("old")).map_err(at(&target))?;
        }
        fs::rename(staged, &target).map_err(at(&target))?;
        let previous = self.manifest(name).map(|m| m.directory);
        let manifest = Manifest {
            name: name.clone(),
            release: release.to_string(),
            directory: directory.clone(),
            initrd,
            packages,
            selection: selection_hash(name.series),
            recipe: recipe_hash(),
            files,
        };
        self.record(&manifest)?;
        self.prune(parent, &[Some(directory), previous]);
        if name.series == Series::Lab {
            self.prune_labs(&key(name));
        }
        self.verify(&manifest)
    }

    /// Removes lab kernels with other keys that are older than a week: before that another checkout may use them.
    fn prune_labs(&self, keep: &str) {
        for entry in fs::read_dir(self.images()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(other) = name.strip_suffix(".json").filter(|n| n.starts_with("lab") && *n != keep)
            else {
                continue;
            };
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_some_and(|a| a > Duration::from_secs(7 * 86_400)) {
                let _ = fs::remove_file(entry.path());
                let _ = fs::remove_dir_all(self.images().join(other));
            }
        }
    }

    /// Packs the initramfs again from the cached parts, because this crate's share of it has changed.
    pub(crate) fn repack(&self, mut manifest: Manifest) -> Result<Image> {
        self.verify(&manifest)?;
        let directory = self.images().join(&manifest.directory);
        let previous = std::mem::take(&mut manifest.initrd);
        manifest.files.remove(&previous);
        manifest.initrd = self.pack(&directory, &manifest.release)?;
        manifest.recipe = recipe_hash();
        let record = Record::of(&directory.join(&manifest.initrd))?;
        manifest.files.insert(manifest.initrd.clone(), record);
        self.record(&manifest)?;
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("initrd-") && name != previous && name != manifest.initrd {
                let _ = fs::remove_file(entry.path());
            }
        }
        self.verify(&manifest)
    }

    fn record(&self, manifest: &Manifest) -> Result<()> {
        let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain data");
        write_whole(&self.manifest_path(&manifest.name), text.as_bytes())
    }

    /// Removes an image's directories but those in `keep`: the present one and the one before it, which another process
    /// may be about to open.
    fn prune(&self, parent: &Path, keep: &[Option<String>]) {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let kept = keep.iter().flatten().any(|k| self.images().join(k) == entry.path());
            if !kept {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Checks every file of an image against its record.
    fn verify(&self, manifest: &Manifest) -> Result<Image> {
        let directory = self.images().join(&manifest.directory);
        for (name, record) in &manifest.files {
            record.check(&directory.join(name))?;
        }
        let optional = |name: &str| manifest.files.contains_key(name).then(|| directory.join(name));
        let build = directory.join(BUILD);
        Ok(Image {
            name: manifest.name.clone(),
            release: manifest.release.clone(),
            kernel: directory.join(KERNEL),
            initrd: directory.join(&manifest.initrd),
            system_map: optional(SYSTEM_MAP),
            config: optional(CONFIG),
            vmlinux: optional(VMLINUX),
            build: build.is_dir().then_some(build),
            packages: manifest.packages.clone(),
        })
    }
}

impl Record {
    fn of(path: &Path) -> Result<Self> {
        let (size, changed) = stat(path)?;
        Ok(Self { sha256: hash::of_file(path)?, size, changed })
    }

    fn check(&self, path: &Path) -> Result<()> {
        let (size, changed) = stat(path)?;
        let same = size == self.size && (changed == self.changed || hash::of_file(path)? == self.sha256);
        if same { Ok(()) } else { Err(Error::Corrupt(path.to_path_buf())) }
    }
}

fn stat(path: &Path) -> Result<(u64, u128)> {
    let data = fs::metadata(path).map_err(at(path))?;
    let changed = data.modified().map_err(at(path))?;
    Ok((data.len(), changed.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())))
}

fn read_manifest(path: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a file so that others see all of it or nothing.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().expect("has a parent");
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(at(directory))?;
    file.write_all(bytes).map_err(at(path))?;
    file.persist(path).map_err(|e| at(path)(e.error))?;
    Ok(())
}

pub(crate) fn recipe_hash() -> String {
    hash::of_bytes(&initramfs::recipe())
}

/// What decides over the parts that were kept: the list of modules, or the lab kernel's configuration.
pub(crate) fn selection_hash(series: Series) -> String {
    match series {
        Series::Lab => lab::selection(),
        _ => hash::of_bytes(modules::WANTED.join(" ").as_bytes()),
    }
}

/// What an image's manifest and directory are called. Lab kernels that differ are there side by side, so that checkouts
/// with other patches can share a cache.
fn key(name: &Name) -> String {
    match name.series {
        Series::Lab => format!("{}-{}", name.file_name(), &lab::selection()[..8]),
        _ => name.file_name(),
    }
}

fn describe(series: Series) -> &'static str {
    match series {
        Series::V6_1 => "Debian 12's kernel, Linux 6.1",
        Series::V6_12 => "Debian 13's kernel, Linux 6.12 (default)",
        Series::Newest => "the newest kernel in Debian's development branch",
        Series::Lab => "small kernel with IOMMU debugging, built here from Debian's newest source",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishes an image with the given kernel contents.
    fn put(store: &Store, name: &Name, version: &str, kernel: &[u8]) -> Image {
        let staging = store.staging().unwrap();
        let staged = staging.path().join("image");
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join(KERNEL), kernel).unwrap();
        fs::write(staged.join(BUSYBOX), "busybox").unwrap();
        let package = Package {
            name: "linux-image-x".into(),
            version: version.into(),
            suite: "trixie".into(),
            sha256: String::new(),
            size: 1,
        };
        store.publish(&staged, name, "6.12.1", vec![package]).unwrap()
    }

    fn fixture() -> (tempfile::TempDir, Store, Name) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("cache"));
        (directory, store, "debian-6.12:cloud-arm64".parse().unwrap())
    }

    #[test]
    fn what_is_published_is_found_and_listed() {
        let (_directory, store, name) = fixture();
        assert_eq!(store.cached(&name), None);
        let image = put(&store, &name, "1", b"kernel");
        assert_eq!(store.cached(&name), Some(image.clone()));
        assert_eq!(fs::read(&image.kernel).unwrap(), b"kernel");
        assert!(fs::read(&image.initrd).unwrap().starts_with(b"070701"));
        assert_eq!((image.system_map, image.build), (None, None));
        let listed = store.list();
        let cached: Vec<_> =
            listed.iter().filter(|l| l.cached.is_some()).map(|l| l.name.to_string()).collect();
        assert_eq!(cached, ["debian-6.12:cloud-arm64"]);
        assert_eq!(listed.len(), crate::name::NAMES.len() + 1);
    }

    #[test]
    fn damage_is_noticed() {
        let (_directory, store, name) = fixture();
        let image = put(&store, &name, "1", b"kernel");
        fs::write(&image.kernel, b"kernal").unwrap();
        assert_eq!(store.cached(&name), None);
        // Only the time differs: the hash decides.
        fs::write(&image.kernel, b"kernel").unwrap();
        assert_eq!(store.cached(&name), Some(image.clone()));
        fs::remove_file(&image.initrd).unwrap();
        assert_eq!(store.cached(&name), None);
    }

    #[test]
    fn a_new_version_replaces_the_old_and_spares_the_one_before() {
        let (_directory, store, name) = fixture();
        let first = put(&store, &name, "1", b"first");
        let second = put(&store, &name, "2", b"second");
        assert_eq!(store.cached(&name), Some(second.clone()));
        assert!(first.kernel.exists());
        let third = put(&store, &name, "3", b"third");
        assert!(!first.kernel.exists() && second.kernel.exists());
        let again = put(&store, &name, "3", b"again");
        assert_eq!(third.kernel, again.kernel);
        assert_eq!(fs::read(&again.kernel).unwrap(), b"again");
        let left: Vec<_> = fs::read_dir(store.images()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|n| n.to_string_lossy().starts_with('.')), "{left:?}");
    }

    #[test]
    fn an_older_recipe_is_packed_again_from_the_parts() {
        let (_directory, store, name) = fixture();
        put(&store, &name, "1", b"kernel");
        let mut manifest = store.manifest(&name).unwrap();
        manifest.recipe = "old".into();
        store.record(&manifest).unwrap();
        assert_eq!(store.cached(&name), None);
        let image = store.repack(manifest).unwrap();
        assert_eq!(store.cached(&name), Some(image));
    }

    #[test]
    fn leftovers_of_interrupted_fetches_go_away() {
        let (_directory, store, _) = fixture();
        let old = store.images().join(".new-old");
        fs::create_dir_all(&old).unwrap();
        let recent = store.staging().unwrap();
        assert!(old.exists());
        let yesterday = std::time::SystemTime::now() - Duration::from_secs(2 * 86_400);
        File::open(&old).unwrap().set_modified(yesterday).unwrap();
        let _another = store.staging().unwrap();
        assert!(!old.exists() && recent.path().exists());
    }

    #[test]
    fn lab_kernels_that_differ_stay_side_by_side_for_a_week() {
        let (_directory, store, _) = fixture();
        let name = "lab".parse().unwrap();
        let image = put(&store, &name, "1", b"kernel");
        let (old, recent) = (store.images().join("lab-old"), store.images().join("lab.json"));
        fs::create_dir_all(&old).unwrap();
        let manifest = old.with_extension("json");
        fs::write(&manifest, "").unwrap();
        fs::write(&recent, "").unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(8 * 86_400);
        File::options().append(true).open(&manifest).unwrap().set_modified(long_ago).unwrap();
        put(&store, &name, "2", b"another");
        assert!(!old.exists() && !manifest.exists() && recent.exists());
        assert!(image.kernel.exists(), "the one before is spared");
    }

    #[test]
    fn locks_exclude() {
        let (_directory, store, _) = fixture();
        let held = store.lock("x").unwrap();
        let other = File::options().append(true).open(store.root.join("locks/x")).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
