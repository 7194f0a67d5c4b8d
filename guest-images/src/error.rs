//! What can go wrong, each said in one line.

use std::path::{Path, PathBuf};

/// Why an image could not be had. Each message is one line and says what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none that this crate knows.
    #[error("unknown image '{0}'; known images: {known}", known = crate::name::NAMES.join(", "))]
    UnknownImage(String),
    /// The name's part behind the colon is no flavour of Debian's arm64 kernels.
    #[error("unknown kernel flavour '{0}'; known flavours: {known}", known = crate::name::FLAVOURS.join(", "))]
    UnknownFlavour(String),
    /// The host lacks programs that only Debian and its derivatives have.
    #[error("cannot fetch images here: {} not found; pass --kernel and --initrd instead", .0.join(", "))]
    NoDebianTools(Vec<String>),
    /// The host's apt sources name no Debian archive.
    #[error(
        "this host's apt sources name no Debian mirror to fetch from; pass --kernel and --initrd instead"
    )]
    NoMirror,
    /// Debian's archive keyring is not installed, so nothing could be verified.
    #[error("no Debian archive keyring found; install debian-archive-keyring, or pass --kernel and --initrd")]
    NoKeyring,
    /// A Debian tool failed; the second part is the last thing it said.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The program, with its main argument.
        tool: String,
        /// The last error line it printed.
        message: String,
    },
    /// The archive has no package for this image.
    #[error("the Debian mirror has no package for {0}")]
    NoPackage(String),
    /// A file has not the hash that was promised for it.
    #[error("{}: the contents do not match their recorded hash", .0.display())]
    Corrupt(PathBuf),
    /// A package or module is not made as this crate expects.
    #[error("{0}")]
    Format(String),
    /// Programs that building the lab kernel or the guest's tools needs are missing.
    #[error("building this needs Debian's packages {0}")]
    BuildNeeds(String),
    /// No directory to keep images in.
    #[error("no cache directory: set SMMULAB_CACHE or HOME")]
    NoCacheDirectory,
    /// A file operation failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// This crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the path to an I/O error: `.map_err(at(path))`.
pub(crate) fn at(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.as_ref().to_path_buf();
    move |source| Error::Io { path, source }
}
