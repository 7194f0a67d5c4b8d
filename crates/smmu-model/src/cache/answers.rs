//! What hits were answered lately, ready made: one line of the host's memory has all that a hit reads.
//!
//! This is no cache of the SMMU. It answers what a look-up of the STE, the CD and the IOTLB would, and says which entries
//! that uses; it is no part of a snapshot, and a guest can not tell whether it is there. Nothing removes an answer: it
//! counts only as long as no entry of those caches is replaced, removed, moved or hidden by another.

use crate::transaction::{AccessKind, MemAttrs, Shareability, Transaction};

/// log2 of the smallest translation.
const PAGE: u32 = 12;
/// Lines that the first answer makes, and the most.
const FEWEST: usize = 1 << 6;
const MOST: usize = 1 << 16;
/// Answers of one line.
const WAYS: usize = 2;

/// Bits of StreamID and SubstreamID together.
const WHO: u32 = 53;
/// Bits of the count of changes that an answer has.
const WHEN: u32 = 64 - WHO;
/// Bits of an entry's number: as many entries as the caches can have.
const TLB: u32 = 20;
const STREAM: u32 = 18;
const CONTEXT: u32 = 18;

/// One answer, packed: two of them are a line of the host's memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
pub(crate) struct Answer {
    /// The page; below, in the offset's place, the kinds of access that it is the answer for.
    page: u64,
    /// StreamID and SubstreamID; above, the lower bits of the caches' count of changes when it was made.
    whom: u64,
    /// Output address of the first byte of the translation; below, log2 of the bytes that it covers (6 bits) and
    /// shareability (2 bits).
    output: u64,
    /// Entries that it uses: of the IOTLB, the STEs, the CDs; and 8 bits of MAIR.
    entries: u64,
}

impl Answer {
    /// Output address of the first byte.
    #[inline]
    pub(crate) fn output(&self) -> u64 {
        self.output >> PAGE << PAGE
    }

    /// log2 of the bytes that the translation covers.
    #[inline]
    pub(crate) fn shift(&self) -> u8 {
        (self.output & 63) as u8
    }

    #[inline]
    pub(crate) fn attrs(&self) -> MemAttrs {
        let shareability = Shareability::from_sh((self.output >> 6) as u8);
        MemAttrs { mair: (self.entries >> (TLB + STREAM + CONTEXT)) as u8, shareability }
    }

    /// Entries that it uses: of the STEs, the CDs, the IOTLB.
    #[inline]
    pub(crate) fn entries(&self) -> [usize; 3] {
        let bits = |from: u32, n: u32| (self.entries >> from & ((1 << n) - 1)) as usize;
        [bits(TLB, STREAM), bits(TLB + STREAM, CONTEXT), bits(0, TLB)]
    }

    /// Whether it is one at all, and was made when this one was.
    fn is_as_old_as(&self, other: &Answer) -> bool {
        self.accesses() != 0 && (self.whom ^ other.whom) >> WHO == 0
    }

    fn accesses(&self) -> u64 {
        self.page & ((1 << PAGE) - 1)
    }
}

type Line = [Answer; WAYS];

/// All answers. A transaction's is in one of two lines, in the second only if there was no room in the first.
#[derive(Default)]
pub(crate) struct Answers {
    lines: Vec<Line>,
    /// 64, without log2 of the number of lines.
    shift: u32,
    /// Answers that had to go, still good, since there are as many lines as there are.
    displaced: usize,
    /// The bits of the count of changes that no answer has: when they change, all answers go.
    era: u64,
}

/// StreamID and SubstreamID, which has 20 bits.
#[inline]
pub(crate) fn who(t: &Transaction) -> u64 {
    u64::from(t.sid) | t.ssid.map_or(0, |ssid| u64::from(ssid.saturating_add(1))) << 32
}

/// A number below 12 for each kind of access.
#[inline]
pub(crate) fn access(t: &Transaction) -> u32 {
    let kind = match t.kind {
        AccessKind::Read => 0,
        AccessKind::Write => 4,
        AccessKind::Atomic => 8,
    };
    kind | u32::from(t.privileged) << 1 | u32::from(t.instruction)
}

/// What answers are spread by. Multiples of these two fill a square evenly: so do consecutive pages of consecutive
/// streams.
#[inline]
fn hash(address: u64, whom: u64) -> u64 {
    let page = (address >> PAGE).wrapping_mul(0xc13f_a9a9_02a6_328f);
    page.wrapping_add((whom << WHEN).wrapping_mul(0x91e1_0da5_c79e_7b1d))
}

/// Leads to the other line.
fn second(hash: u64) -> u64 {
    hash.swap_bytes().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What is looked for.
struct Wanted {
    address: u64,
    whom: u64,
    access: u64,
}

impl Wanted {
    #[inline]
    fn is(&self, answer: &Answer) -> bool {
        (answer.page ^ self.address) >> PAGE == 0
            && answer.whom == self.whom
            && answer.page & self.access != 0
    }
}

impl Answers {
    /// The answer for a transaction, if it still is the answer.
    #[inline]
    pub(crate) fn get(&self, t: &Transaction, changes: u64) -> Option<&Answer> {
        let wanted = Wanted { address: t.address, whom: who(t) | changes << WHO, access: 1 << access(t) };
        let hash = hash(wanted.address, wanted.whom);
        let line = self.lines.get((hash >> (self.shift & 63)) as usize)?;
        if changes >> WHEN != self.era {
            return None;
        }
        match line.iter().find(|answer| wanted.is(answer)) {
            None => self.in_second(hash, &wanted),
            found => found,
        }
    }

    #[inline(never)]
    fn in_second(&self, hash: u64, wanted: &Wanted) -> Option<&Answer> {
        let line = self.lines.get((second(hash) >> (self.shift & 63)) as usize)?;
        line.iter().find(|answer| wanted.is(answer))
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
        let [stream, context, tlb] = entries.map(|n| n as u64);
        let fits = stream >> STREAM == 0 && context >> CONTEXT == 0 && tlb >> TLB == 0;
        if t.ssid.is_some_and(|ssid| ssid >> 20 != 0) || !fits {
            return;
        }
        if self.lines.is_empty() || changes >> WHEN != self.era {
            self.era = changes >> WHEN;
            self.resize(FEWEST);
        }
        let answer = Answer {
            page: t.address >> PAGE << PAGE | 1 << access(t),
            whom: who(t) | changes << WHO,
            output: output >> PAGE << PAGE | (attrs.shareability as u64) << 6 | u64::from(shift & 63),
            entries: u64::from(attrs.mair) << (TLB + STREAM + CONTEXT)
                | context << (TLB + STREAM)
                | stream << TLB
                | tlb,
        };
        if self.displaced > self.lines.len() / 32 && self.lines.len() < MOST {
            for old in self.resize(self.lines.len() * 2).into_iter().flatten() {
                if old.is_as_old_as(&answer) {
                    self.put(old);
                }
            }
        }
        self.put(answer);
    }

    /// As many empty lines, a power of two. Gives what there was.
    fn resize(&mut self, lines: usize) -> Vec<Line> {
        (self.displaced, self.shift) = (0, 64 - lines.trailing_zeros());
        std::mem::replace(&mut self.lines, vec![Line::default(); lines])
    }

    fn put(&mut self, answer: Answer) {
        let hash = hash(answer.page, answer.whom);
        let lines = [hash, second(hash)].map(|hash| (hash >> (self.shift & 63)) as usize);
        let places = || lines.into_iter().flat_map(|line| (0..WAYS).map(move |way| (line, way)));
        let same = |old: &Answer| {
            old.is_as_old_as(&answer) && old.whom == answer.whom && (old.page ^ answer.page) >> PAGE == 0
        };
        if let Some((line, way)) = places().find(|&(line, way)| same(&self.lines[line][way])) {
            self.lines[line][way].page |= answer.accesses();
        } else if let Some((line, way)) =
            places().find(|&(line, way)| !self.lines[line][way].is_as_old_as(&answer))
        {
            self.lines[line][way] = answer;
        } else {
            // Which of the first two goes does not matter much; not always the same.
            self.lines[lines[0]][(answer.page >> PAGE & 1) as usize] = answer;
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
        write!(f, "Answers({} lines)", self.lines.len())
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
        let entries = |answers: &Answers, t: &Transaction| answers.get(t, 7).map(Answer::entries);
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
        assert_eq!(answers.lines.len(), MOST);
        let mut answers = Answers::default();
        let all: Vec<_> =
            (0..4096).map(|n| Transaction::new((n % 64) as u32, (n / 64) << 12, AccessKind::Read)).collect();
        for round in 0..100 {
            for t in all.iter().filter(|t| round == 0 || answers.get(t, 0).is_none()).collect::<Vec<_>>() {
                add(&mut answers, t, 0);
            }
        }
        let known = all.iter().filter(|t| answers.get(t, 0).is_some()).count();
        assert!(known > 4090 && answers.lines.len() <= 8192, "{known} in {} lines", answers.lines.len());
    }
}
