//! How many instructions something takes: a child of this process does it, an instruction at a time, under our eyes.
//!
//! That needs no counter of the host, which a virtual machine may not have, and is exact: what the kernel does is not in
//! it, nor is anybody else. It is slow, a microsecond or more for each instruction.

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// The instructions of `f`. `None` where the host does not let us trace.
pub(super) fn count(f: impl FnMut()) -> Option<u64> {
    // What stands around `f` is taken off.
    steps(f)?.checked_sub(steps(|| {})?)
}

/// The instructions of `f` and of what stands around it.
fn steps(mut f: impl FnMut()) -> Option<u64> {
    // SAFETY: the child computes, stops and is killed; it takes no lock but the allocator's, which is made for this.
    match unsafe { fork() }.ok()? {
        ForkResult::Child => {
            if ptrace::traceme().is_ok() && raise(Signal::SIGSTOP).is_ok() {
                f();
                let _ = raise(Signal::SIGSTOP);
            }
            // SAFETY: this ends the child at once, without what its parent would do when it ends.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let steps = follow(child);
            // It may be over.
            let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            steps
        }
    }
}

/// Takes `child` from its first stop to its second, and counts.
fn follow(child: Pid) -> Option<u64> {
    if waitpid(child, None) != Ok(WaitStatus::Stopped(child, Signal::SIGSTOP)) {
        return None;
    }
    ptrace::setoptions(child, ptrace::Options::PTRACE_O_EXITKILL).ok()?;
    for steps in 0.. {
        ptrace::step(child, None).ok()?;
        match waitpid(child, None) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {}
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => return Some(steps),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_work_is_twice_the_instructions() {
        let work = |n: u64| {
            count(|| {
                for i in 0..n {
                    std::hint::black_box(i);
                }
            })
        };
        let Some((one, two)) = work(100).zip(work(200)) else {
            println!("SKIPPED: the host does not let us trace");
            return;
        };
        let three = work(300).unwrap_or(0);
        assert!(one >= 100 && three - two == two - one, "{one} {two} {three}");
    }
}
