//! Memory that generated code is in.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::core::Op;

/// Bytes of a [`Buffer`]. Only what code was written to takes memory of the host.
const SIZE: usize = 24 << 20;

/// Executable memory: code from its beginning on, the ops that code points to from its end down.
pub(super) struct Buffer {
    memory: NonNull<u8>,
    /// Bytes of code.
    used: usize,
    /// Where the ops begin.
    ops: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `None` where the host does not let a program make code, or not in the lowest 4 GiB, where addresses take 32 bits.
    pub(super) fn new() -> Option<Self> {
        let size = NonZeroUsize::new(SIZE)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_32BIT;
        // SAFETY: a new mapping, where the host likes; what it replaces is nothing.
        let memory = unsafe { mmap_anonymous(None, size, protection, flags) }.ok()?.cast::<u8>();
        // Advice only: large pages spare the host's TLB.
        // SAFETY: of the mapping just made, and without effect on its content.
        let _ = unsafe { madvise(memory.cast(), SIZE, MmapAdvise::MADV_HUGEPAGE) };
        Some(Self { memory, used: 0, ops: SIZE })
    }

    /// Where the next code will be.
    pub(super) fn next(&self) -> usize {
        self.memory.as_ptr() as usize + self.used
    }

    /// Bytes of code so far.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.ops - self.used
    }

    /// Forgets everything but the first `keep` bytes of code.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
        self.ops = SIZE;
    }

    /// Appends code, which was made for [`Buffer::next`]. Answers whether there was space.
    pub(super) fn append(&mut self, code: &[u8]) -> bool {
        if code.len() > self.left() {
            return false;
        }
        // SAFETY: the space is in the mapping and behind all that is in use; `code` is other memory.
        unsafe { self.memory.as_ptr().add(self.used).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        self.used = (self.used + code.len()).next_multiple_of(16).min(self.ops);
        true
    }

    /// Lets the jump whose 32-bit distance is at the address `at` go to `target`.
    pub(super) fn link(&mut self, at: usize, target: usize) {
        let offset = at.wrapping_sub(self.memory.as_ptr() as usize);
        let distance = (target as i64 - (at as i64 + 4)) as i32;
        if offset.checked_add(4).is_some_and(|end| end <= self.used) {
            // SAFETY: the four bytes are within the code. They need not be aligned.
            unsafe { self.memory.as_ptr().add(offset).cast::<i32>().write_unaligned(distance) };
        }
    }

    /// Keeps an op for generated code to point to. Answers its address, when there was space.
    pub(super) fn keep(&mut self, op: &Op) -> Option<usize> {
        let at = self.ops.checked_sub(size_of::<Op>())? / align_of::<Op>() * align_of::<Op>();
        if at < self.used {
            return None;
        }
        // SAFETY: the space is in the mapping, aligned, and before all ops in use. An Op is plain data.
        unsafe { self.memory.as_ptr().add(at).cast::<Op>().write(*op) };
        self.ops = at;
        Some(self.memory.as_ptr() as usize + at)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: nothing runs in the mapping or points into it when its owner goes.
        let _ = unsafe { munmap(self.memory.cast(), SIZE) };
    }
}
