//! A value that many read without a lock and that is now and then replaced by another; the old one is destroyed after a
//! grace period: when everybody who may have found it has finished. crossbeam-epoch does the work.
//!
//! What the rest of the crate relies on, and what `rcu_model.rs` gives it under loom, is no more than this:
//!
//! 1. a value found by [`Rcu::read`] is not destroyed before that read ends;
//! 2. a read does not find a value that has been destroyed;
//! 3. what is done during a read happens before the destruction of the value found.

#![expect(unsafe_code, reason = "crossbeam-epoch's interface; each use says why it is right")]

use std::sync::atomic::Ordering::Relaxed;

use crossbeam_epoch::{Atomic, Owned, pin};

use crate::ordering::{publish, snapshot};
use crate::sync::{Mutex, lock};

#[derive(Debug)]
pub(crate) struct Rcu<T> {
    /// Never null.
    current: Atomic<T>,
    /// Held by who replaces the value.
    writer: Mutex<()>,
}

impl<T: Send + Sync + 'static> Rcu<T> {
    pub(crate) fn new(value: T) -> Self {
        Rcu { current: Atomic::new(value), writer: Mutex::new(()) }
    }

    /// Lets `f` see the current value. Takes no lock, and never waits.
    #[inline]
    pub(crate) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let guard = pin();
        let current = self.current.load(snapshot(), &guard);
        // SAFETY: not null; made by `Atomic::new` or `update`, whose contents `snapshot` and `publish` let us see; destroyed
        // only by `update`'s `defer_destroy`, after `guard` is gone, or by `drop`, which has nobody beside it.
        f(unsafe { current.deref() })
    }

    /// Replaces the current value by what `f` makes of it, and destroys it after a grace period.
    pub(crate) fn update<R>(&self, f: impl FnOnce(&T) -> (T, R)) -> R {
        let _writer = lock(&self.writer);
        let guard = pin();
        let old = self.current.load(Relaxed, &guard);
        // SAFETY: as in `read`; the lock orders us after the update that stored it.
        let (new, result) = f(unsafe { old.deref() });
        self.current.store(Owned::new(new), publish());
        // SAFETY: nobody who pins from here on can load `old`, and only one update takes it out, under the lock.
        unsafe { guard.defer_destroy(old) };
        guard.flush();
        result
    }
}

/// Destroys what nobody can be using any more. A value just replaced is among it if no thread is reading now.
pub(crate) fn reclaim() {
    // An epoch can advance once in each, and twice must do.
    for _ in 0..3 {
        pin().flush();
    }
}

impl<T> Drop for Rcu<T> {
    fn drop(&mut self) {
        // SAFETY: never null, and `&mut self` says that nobody reads or replaces it.
        drop(unsafe { std::mem::take(&mut self.current).into_owned() });
    }
}
