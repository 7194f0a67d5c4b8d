//! How many instructions this thread executes, where the host counts them.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use nix::libc;

/// The start of `struct perf_event_attr` (perf_event_open(2)), up to the first of its later versions.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const HARDWARE: u32 = 0;
const INSTRUCTIONS: u64 = 1;
/// `exclude_kernel` and `exclude_hv`.
const USER_ONLY: u64 = 1 << 5 | 1 << 6;

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: u64 = 8;

/// A counter of this thread's instructions in user mode.
pub(super) struct Counter(File);

impl Counter {
    /// `None` where the host has no such counter for us.
    pub(super) fn new() -> Option<Self> {
        let attributes = Attributes {
            kind: HARDWARE,
            size: size_of::<Attributes>() as u32,
            config: INSTRUCTIONS,
            flags: USER_ONLY,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads `size` bytes of attributes and gives a new descriptor, or a negative number. The other
        // arguments say: this thread, on any CPU, no group.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, -1, -1, CLOSE_ON_EXEC)
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor is new, and nobody else's.
        Some(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Instructions so far.
    pub(super) fn read(&mut self) -> u64 {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
    }
}
