//! What hits were answered lately, ready made: one line of the host's memory has all that a hit reads.
//!
//! This is no cache of the SMMU. It answers what a look-up of the STE, the CD and the IOTLB would, and says which entries
//! that uses; it is no part of a snapshot, and a guest can not tell whether it is there. Nothing removes an answer: it
//! counts only as long as no entry of those caches is replaced, removed, moved or hidden by another.

use crate::transaction::{AccessKind, MemAttrs, Shareability, Transaction};

/// log2 of the smallest translation.
const PAGE: u32 = 12;
/// Pairs of lines that the first answer makes, and the most.
const FEWEST: usize = 1 << 5;
const MOST: usize = 1 << 16;

/// One answer.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Answer {
    page: u64,
    who: u64,
    /// The caches' count of changes when it was made.
    changes: u64,
    /// Output address of the first byte of the translation.
    pub(crate) output: u64,
    /// Entries that it uses: of the STEs, the CDs, the IOTLB.
    pub(crate) entries: [u32; 3],
    /// Kinds of access that it was the answer for.
    accesses: u16,
    /// log2 of the bytes that the translation covers.
    pub(crate) shift: u8,
    pub(crate) attrs: MemAttrs,
}

const NONE: Answer = Answer {
    page: 0,
    who: 0,
    changes: 0,
    output: 0,
    entries: [0; 3],
    accesses: 0,
    shift: 0,
    attrs: MemAttrs { mair: 0, shareability: Shareability::NonShareable },
};

/// All answers. A transaction's is in one of two neighbouring lines.
#[derive(Default)]
pub(crate) struct Answers {
    pairs: Vec<[Answer; 2]>,
    /// 64, without log2 of the number of pairs.
    shift: u32,
    /// Answers that had to go, still good, since there are as many pairs as there are.
    displaced: usize,
}

/// StreamID and SubstreamID.
#[inline]
fn who(t: &Transaction) -> u64 {
    // SubstreamIDs have 20 bits.
    u64::from(t.sid) | t.ssid.map_or(0, |ssid| u64::from(ssid.saturating_add(1))) << 32
}

/// One bit for each kind of access.
#[inline]
fn access(t: &Transaction) -> u16 {
    let kind = match t.kind {
        AccessKind::Read => 0,
        AccessKind::Write => 4,
        AccessKind::Atomic => 8,
    };
    1 << (kind | u16::from(t.privileged) << 1 | u16::from(t.instruction))
}

impl Answers {
    /// Where the two lines of a transaction are.
    #[inline]
    fn pair(&self, page: u64, who: u64) -> usize {
        // Multiples of these two fill a square evenly: so do consecutive pages of consecutive streams.
        let hash =
            page.wrapping_mul(0xc13f_a9a9_02a6_328f).wrapping_add(who.wrapping_mul(0x91e1_0da5_c79e_7b1d));
        (hash >> (self.shift & 63)) as usize
    }

    /// The answer for a transaction, if it still is the answer.
    #[inline]
    pub(crate) fn get(&self, t: &Transaction, changes: u64) -> Option<&Answer> {
        let (page, who) = (t.address >> PAGE, who(t));
        let is = |answer: &&Answer| {
            answer.page == page
                && answer.who == who
                && answer.changes == changes
                && answer.accesses & access(t) != 0
        };
        self.pairs.get(self.pair(page, who))?.iter().find(is)
    }

    /// Remembers an answer for a transaction.
    pub(crate) fn add(
        &mut self,
        t: &Transaction,
        changes: u64,
        output: u64,
        shift: u8,
        attrs: MemAttrs,
        entries: [usize; 3],
    ) {
        if t.ssid.is_some_and(|ssid| ssid >> 20 != 0) {
            return;
        }
        if self.pairs.is_empty() {
            self.resize(FEWEST);
        }
        let answer = Answer {
            page: t.address >> PAGE,
            who: who(t),
            changes,
            output,
            entries: entries.map(|n| n as u32),
            accesses: access(t),
            shift,
            attrs,
        };
        if self.displaced > self.pairs.len() / 16 && self.pairs.len() < MOST {
            for old in self.resize(self.pairs.len() * 2).into_iter().flatten() {
                if old.changes == changes && old.accesses != 0 {
                    self.put(old);
                }
            }
        }
        self.put(answer);
    }

    /// As many empty pairs, a power of two. Gives what there was.
    fn resize(&mut self, pairs: usize) -> Vec<[Answer; 2]> {
        (self.displaced, self.shift) = (0, 64 - pairs.trailing_zeros());
        std::mem::replace(&mut self.pairs, vec![[NONE; 2]; pairs])
    }

    fn put(&mut self, answer: Answer) {
        let at = self.pair(answer.page, answer.who);
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let good = |old: &Answer| old.changes == answer.changes && old.accesses != 0;
        let same = |old: &Answer| good(old) && old.page == answer.page && old.who == answer.who;
        if let Some(old) = pair.iter_mut().find(|old| same(old)) {
            old.accesses |= answer.accesses;
        } else if let Some(line) = pair.iter_mut().find(|old| !good(old)) {
            *line = answer;
        } else {
            // Which of the two goes does not matter much; not always the same.
            pair[(answer.page & 1) as usize] = answer;
            self.displaced += 1;
        }
    }
}

/// A copy begins without.
impl Clone for Answers {
    fn clone(&self) -> Self {
        Answers::default()
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answers({} pairs)", self.pairs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(answers: &mut Answers, t: &Transaction, changes: u64) {
        answers.add(t, changes, t.address & !0xfff, 12, MemAttrs::WRITE_BACK, [1, 2, 3]);
    }

    #[test]
    fn answers_only_what_was_asked() {
        let mut answers = Answers::default();
        let t = Transaction::new(5, 0x1234, AccessKind::Read);
        assert!(answers.get(&t, 0).is_none());
        add(&mut answers, &t, 7);
        let entries = |answers: &Answers, t: &Transaction| answers.get(t, 7).map(|answer| answer.entries);
        assert_eq!(entries(&answers, &t), Some([1, 2, 3]));
        assert_eq!(entries(&answers, &Transaction { address: 0x1fff, ..t }), Some([1, 2, 3]));
        for other in [
            Transaction { address: 0x2000, ..t },
            Transaction { address: 0x1234 | 1 << 56, ..t },
            Transaction { sid: 4, ..t },
            Transaction { kind: AccessKind::Write, ..t },
            Transaction { privileged: true, ..t },
            Transaction { instruction: true, ..t },
            t.with_ssid(0),
            t.with_ssid(u32::MAX),
        ] {
            assert_eq!(entries(&answers, &other), None, "{other:?}");
            add(&mut answers, &other, 7);
            assert_eq!(entries(&answers, &other).is_some(), other.ssid != Some(u32::MAX), "{other:?}");
            assert!(entries(&answers, &t).is_some());
        }
        assert!(answers.get(&t, 8).is_none(), "something changed");
    }

    #[test]
    fn grows_to_hold_what_is_used_and_no_further() {
        let mut answers = Answers::default();
        for n in 0..1u64 << 19 {
            add(&mut answers, &Transaction::new((n % 64) as u32, (n / 64) << 12, AccessKind::Read), 0);
        }
        assert_eq!(answers.pairs.len(), MOST);
        let mut answers = Answers::default();
        let all: Vec<_> =
            (0..4096).map(|n| Transaction::new((n % 64) as u32, (n / 64) << 12, AccessKind::Read)).collect();
        for round in 0..100 {
            for t in all.iter().filter(|t| round == 0 || answers.get(t, 0).is_none()).collect::<Vec<_>>() {
                add(&mut answers, t, 0);
            }
        }
        let known = all.iter().filter(|t| answers.get(t, 0).is_some()).count();
        assert!(known > 4000 && answers.pairs.len() <= 8192, "{known} in {} pairs", answers.pairs.len());
    }
}
