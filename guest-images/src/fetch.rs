//! `smmulab image fetch`: Debian's kernel packages become an image in the cache.

use crate::apt::{Apt, Package};
use crate::error::{Error, Result, at};
use crate::name::{Name, Series};
use crate::progress::Progress;
use crate::store::{self, Image, Store};
use crate::{deb, kernel, modules};
use std::fs;
use std::path::{Path, PathBuf};

impl Store {
    /// The image called `name`, from the cache or else from Debian's mirror; `lab` is built, which takes minutes.
    ///
    /// With `refresh` the mirror is asked even if the image is there, and a newer kernel replaces it.
    pub fn fetch(&self, name: &Name, refresh: bool, progress: Progress) -> Result<Image> {
        if name.series == Series::Lab {
            return self.build_lab(refresh, progress);
        }
        if let Some(image) = self.cached(name).filter(|_| !refresh) {
            return Ok(image);
        }
        let _lock = self.lock(&name.file_name())?;
        // Another process may have fetched it while we waited.
        if let Some(image) = self.reuse(name).filter(|_| !refresh) {
            return Ok(image);
        }
        let _apt_lock = self.lock(name.series.suites().0)?;
        let apt = Apt::open(&self.apt_root(name.series), name.series)?;
        apt.update(&progress)?;
        let mut available = apt.names("linux-image-")?;
        available.extend(apt.names("linux-binary-")?);
        let kernel = name
            .packages(available.iter().map(String::as_str))
            .ok_or_else(|| Error::NoPackage(name.to_string()))?;
        let packages = apt.packages(&kernel.packages)?;
        if let Some(image) = self.reuse(name).filter(|i| i.packages.starts_with(&packages)) {
            return Ok(image);
        }
        let release = format!("{}-{}", kernel.abi, name.flavour);
        let staging = self.staging()?;
        let staged = staging.path().join("image");
        let packages = self.stage(&apt, packages, &release, staging.path(), &staged, progress)?;
        self.publish(&staged, name, &release, packages)
    }

    /// The cached image, packed again if only this crate's share of it is old.
    pub(crate) fn reuse(&self, name: &Name) -> Option<Image> {
        self.cached(name).or_else(|| {
            let manifest =
                self.manifest(name).filter(|m| m.selection == store::selection_hash(name.series))?;
            self.repack(manifest).ok()
        })
    }

    /// Downloads `packages` and busybox, and puts the parts of an image into `staged`.
    fn stage(
        &self,
        apt: &Apt,
        mut packages: Vec<Package>,
        release: &str,
        work: &Path,
        staged: &Path,
        progress: Progress,
    ) -> Result<Vec<Package>> {
        let files = apt.download(&packages, work, &progress)?;
        let spinner = progress.spinner("unpacking");
        let tree = work.join("tree");
        let (vmlinuz, modules) = (work.join("vmlinuz"), tree.join("lib/modules").join(release));
        for file in files {
            deb::extract(&file, |path| target(path, &vmlinuz, staged, &tree))?;
            fs::remove_file(&file).map_err(at(&file))?;
        }
        let image = kernel::to_image(fs::read(&vmlinuz).map_err(at(&vmlinuz))?)?;
        let kernel = staged.join(store::KERNEL);
        fs::create_dir_all(staged).map_err(at(staged))?;
        fs::write(&kernel, image).map_err(at(&kernel))?;
        if !modules.is_dir() {
            return Err(Error::Format(format!("the packages hold no modules for {release}")));
        }
        let chosen = modules::select(&modules, &modules::WANTED)?;
        for module in &chosen {
            let path = staged.join(store::MODULES).join(&module.path);
            let parent = path.parent().expect("has a parent");
            fs::create_dir_all(parent).map_err(at(parent))?;
            fs::write(&path, &module.data).map_err(at(&path))?;
        }
        fs::remove_dir_all(&tree).map_err(at(&tree))?;
        spinner.finish_and_clear();
        packages.push(stage_busybox(apt, work, staged, progress)?);
        Ok(packages)
    }
}

/// Downloads busybox into `staged`.
pub(crate) fn stage_busybox(apt: &Apt, work: &Path, staged: &Path, progress: Progress) -> Result<Package> {
    let package = apt.packages(&["busybox-static".to_string()])?;
    fs::create_dir_all(staged).map_err(at(staged))?;
    let busybox = staged.join(store::BUSYBOX);
    for file in apt.download(&package, work, &progress)? {
        deb::extract(&file, |path| path.ends_with("bin/busybox").then(|| busybox.clone()))?;
    }
    if !busybox.is_file() {
        return Err(Error::Format("busybox-static holds no busybox".into()));
    }
    Ok(package.into_iter().next().expect("one package"))
}

/// Where a file of a kernel package goes: vmlinuz, what the image keeps, or the tree that modules are chosen from.
fn target(path: &Path, vmlinuz: &Path, staged: &Path, tree: &Path) -> Option<PathBuf> {
    // Newer packages have everything below usr.
    let path = path.strip_prefix("usr").unwrap_or(path);
    let name = path.file_name()?.to_str()?;
    let kernel_directory = path.starts_with("boot") || path.starts_with("lib/modules");
    if !kernel_directory {
        return None;
    }
    if modules::is_module(path) {
        return Some(tree.join(path));
    }
    let is = |stem: &str| name == stem || name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-'));
    if is("vmlinuz") {
        Some(vmlinuz.to_path_buf())
    } else if is("System.map") {
        Some(staged.join(store::SYSTEM_MAP))
    } else if is("config") {
        Some(staged.join(store::CONFIG))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_unpacked() {
        let target = |path: &str| {
            let to = target(Path::new(path), Path::new("/w/vmlinuz"), Path::new("/s"), Path::new("/t"));
            to.map(|p| p.to_string_lossy().into_owned())
        };
        assert_eq!(target("boot/vmlinuz-6.12.1-arm64").as_deref(), Some("/w/vmlinuz"));
        assert_eq!(target("usr/lib/modules/7.2.1-arm64/vmlinuz").as_deref(), Some("/w/vmlinuz"));
        assert_eq!(target("boot/System.map-6.12.1-arm64").as_deref(), Some("/s/System.map"));
        assert_eq!(target("usr/lib/modules/7.2.1-arm64/config").as_deref(), Some("/s/config"));
        assert_eq!(
            target("usr/lib/modules/7.2.1-arm64/kernel/fs/ext4.ko.xz").as_deref(),
            Some("/t/lib/modules/7.2.1-arm64/kernel/fs/ext4.ko.xz")
        );
        assert_eq!(
            target("lib/modules/6.1.0-arm64/kernel/x.ko").as_deref(),
            Some("/t/lib/modules/6.1.0-arm64/kernel/x.ko")
        );
        assert_eq!(target("usr/lib/linux-image-6.12.1-arm64/arm/juno.dtb"), None);
        assert_eq!(target("usr/share/doc/linux-image/copyright"), None);
        assert_eq!(target("lib/modules/6.1.0-arm64/modules.order"), None);
    }
}
