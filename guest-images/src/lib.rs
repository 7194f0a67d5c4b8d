//! Guest images: kernels and initramfs archives that the machine boots.
//!
//! [`Store::fetch`] gives an [`Image`] by name: Debian's kernels from the host's own Debian mirror, through a private
//! apt root that needs no privileges, or the lab kernel, built from Debian's source. Images are cached, verified, and
//! recorded with the packages that they came from.
//!
//! [`job_cpio`] and [`ExitTrailer`] are the host's side of `--exec`: how a command gets into the guest, and how its
//! output and exit status come out again. [`Store::tools`] builds what tests in the guest use besides a shell.

#![forbid(unsafe_code)]

mod apt;
mod checks;
mod cpio;
mod cross;
mod deb;
mod error;
mod fetch;
mod hash;
mod headers;
mod initramfs;
mod job;
mod kernel;
mod lab;
mod modules;
mod name;
mod progress;
mod sources;
mod store;
mod tools;

pub use apt::Package;
pub use checks::{CHECKS, check, run_checks};
pub use error::{Error, Result};
pub use job::{ExitTrailer, job_cpio};
pub use name::{DEFAULT, FLAVOURS, NAMES, Name, Series};
pub use progress::Progress;
pub use store::{Image, Listed, Store};

/// The image called `name` (see [`NAMES`]) from the user's cache, fetched on first use.
pub fn fetch(name: &str, progress: Progress) -> Result<Image> {
    Store::open()?.fetch(&name.parse()?, false, progress)
}
