//! The same as `rcu.rs` for loom: a model that gives what `rcu.rs` promises and nothing more.
//!
//! loom cannot check us with crossbeam-epoch itself: on x86 its pin is a compare-exchange that stands for a fence, which
//! loom does not know; and its inner fences would hide missing ones of ours. The book-keeping here is invisible to loom
//! (standard-library locks, never held across a step), so it orders nothing. The only edges are the promised ones.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex as Invisible};

use crate::mutant::{self, Mutant};
use crate::ordering::{publish, snapshot};
use crate::sync::{AtomicUsize, Mutex, lock};

#[derive(Debug)]
pub(crate) struct Rcu<T> {
    /// The number of the current version.
    current: AtomicUsize,
    writer: Mutex<()>,
    /// Carries the edges of promises 2 and 3.
    grace: AtomicUsize,
    book: Invisible<Book<T>>,
}

#[derive(Debug)]
struct Book<T> {
    /// `None`: destroyed.
    versions: Vec<Option<Arc<T>>>,
    readers: BTreeSet<usize>,
    next_reader: usize,
    /// Replaced versions, and who was reading then.
    retired: Vec<(usize, BTreeSet<usize>)>,
}

impl<T: Send + Sync + 'static> Rcu<T> {
    pub(crate) fn new(value: T) -> Self {
        Rcu {
            current: AtomicUsize::new(0),
            writer: Mutex::new(()),
            grace: AtomicUsize::new(0),
            book: Invisible::new(Book {
                versions: vec![Some(Arc::new(value))],
                readers: BTreeSet::new(),
                next_reader: 0,
                retired: Vec::new(),
            }),
        }
    }

    fn book<R>(&self, f: impl FnOnce(&mut Book<T>) -> R) -> R {
        f(&mut self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let reader = self.book(|book| {
            book.next_reader += 1;
            book.readers.insert(book.next_reader);
            book.next_reader
        });
        let value = loop {
            let index = self.current.load(snapshot());
            if let Some(value) = self.book(|book| book.found(index, reader)) {
                break value;
            }
            assert!(!no_grace(), "a list that has been destroyed is read");
            // Promise 2: this load cannot happen. Make sure that it does not the next time.
            self.grace.fetch_add(0, Acquire);
        };
        let result = f(&value);
        drop(value);
        self.grace.fetch_add(1, Release);
        self.book(|book| {
            book.readers.remove(&reader);
            for (_, waiting) in &mut book.retired {
                waiting.remove(&reader);
            }
        });
        self.destroy();
        result
    }

    pub(crate) fn update<R>(&self, f: impl FnOnce(&T) -> (T, R)) -> R {
        let _writer = lock(&self.writer);
        let old = self.current.load(Relaxed);
        let value = self.book(|book| book.versions[old].clone()).expect("the current value");
        let (new, result) = f(&value);
        drop(value);
        let index = self.book(|book| {
            book.versions.push(Some(Arc::new(new)));
            book.versions.len() - 1
        });
        self.current.store(index, publish());
        if !no_grace() {
            self.grace.fetch_add(1, Release);
        }
        self.book(|book| {
            let waiting = if no_grace() { BTreeSet::new() } else { book.readers.clone() };
            book.retired.push((old, waiting));
        });
        self.destroy();
        result
    }

    /// Destroys what nobody waits for.
    fn destroy(&self) {
        if !self.book(|book| book.retired.iter().any(|(_, waiting)| waiting.is_empty())) {
            return;
        }
        if !no_grace() {
            self.grace.fetch_add(1, AcqRel);
        }
        // A reader may have found one of them meanwhile.
        for value in self.book(Book::over) {
            assert!(Arc::into_inner(value).is_some(), "a list is destroyed while somebody reads it");
        }
    }
}

impl<T> Book<T> {
    /// Version `index` for `reader`. Promise 1 holds too if it has just been replaced, and the reader began after that.
    fn found(&mut self, index: usize, reader: usize) -> Option<Arc<T>> {
        for (_, waiting) in self.retired.iter_mut().filter(|(retired, _)| *retired == index) {
            waiting.insert(reader);
        }
        self.versions[index].clone()
    }

    /// Takes out the versions whose grace period is over.
    fn over(&mut self) -> Vec<Arc<T>> {
        let (over, retired) = std::mem::take(&mut self.retired).into_iter().partition(|(_, w)| w.is_empty());
        self.retired = retired;
        let over: Vec<(usize, _)> = over;
        over.into_iter().filter_map(|(index, _)| self.versions[index].take()).collect()
    }
}

pub(crate) fn reclaim() {}

/// Whether what was replaced is destroyed at once.
fn no_grace() -> bool {
    mutant::is(Mutant::NoGrace)
}
