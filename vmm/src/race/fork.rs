//! Copies of this process, each of which does one thing and says what came of it.
//!
//! `fork` copies a whole machine in milliseconds, whatever its size, and the kernel keeps the copies apart.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A copy that works. It ends with this value.
pub struct Child {
    pid: Pid,
    answer: File,
    reaped: bool,
}

impl Child {
    /// Lets a copy of this process do `job`, and nothing else: it ends with it.
    ///
    /// # Errors
    /// When the host has no room for another process.
    pub fn start<T: Serialize>(job: impl FnOnce() -> T) -> Result<Self> {
        let (read, write) = pipe().context("cannot make a pipe")?;
        // SAFETY: the race lab makes no threads, so nothing in the copy waits for one that is not there: no lock is held
        // by another. The copy never returns from here.
        match unsafe { fork() }.context("cannot make a process")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, answer: File::from(read), reaped: false }),
            ForkResult::Child => {
                drop(read);
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                let sent = answer.is_ok_and(|answer| {
                    serde_json::to_vec(&answer).is_ok_and(|bytes| File::from(write).write_all(&bytes).is_ok())
                });
                // SAFETY: ends the process at once, without what its original registered for its own end.
                unsafe { nix::libc::_exit(if sent { 0 } else { 1 }) }
            }
        }
    }

    /// What becomes readable when the copy has something to say.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }

    /// Waits for the copy's answer.
    ///
    /// # Errors
    /// When it died without one.
    pub fn join<T: DeserializeOwned>(mut self) -> Result<T> {
        let mut bytes = Vec::new();
        self.answer.read_to_end(&mut bytes).context("cannot read from a process")?;
        let status = waitpid(self.pid, None);
        self.reaped = true;
        if bytes.is_empty() {
            bail!("a process that ran a schedule died: {status:?}");
        }
        serde_json::from_slice(&bytes).context("a process that ran a schedule gave no whole answer")
    }
}

impl Drop for Child {
    /// Nobody waits for the answer: nothing is left behind.
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_answer_and_their_changes_stay_with_them() {
        let mut value = 5;
        let child = Child::start(|| {
            value += 1;
            value
        });
        assert_eq!(child.unwrap().join::<i32>().unwrap(), 6);
        assert_eq!(value, 5);
    }
}
