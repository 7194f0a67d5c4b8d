//! Tables of any geometry, written without protocol: what is in the way of an entry is overwritten.

use proptest::prelude::*;

use crate::lab::Ram;

pub(crate) const CONTIGUOUS: u64 = 1 << 52;
/// Tables of one level that are used in turns.
const RING: usize = 6;
const SLOT: u64 = 0x1_0000;

/// One stage: its geometry, and where its tables are.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) second: bool,
    /// log2 of the page.
    pub(crate) page: u32,
    pub(crate) tsz: u32,
    pub(crate) first: i32,
    pub(crate) ds: bool,
    /// Output size in bits.
    pub(crate) out: u32,
    /// TTB1's.
    pub(crate) upper: bool,
    pub(crate) root: u64,
    /// Tables made of each level, from 0.
    pub(crate) made: [usize; 4],
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Invalid,
    Table(u64),
    /// Output address, log2 of the bytes of the leaf, and of those that one entry may have.
    Leaf {
        output: u64,
        shift: u32,
        span: u32,
    },
}

/// A leaf's place in its address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) base: u64,
    pub(crate) level: i32,
}

impl Stage {
    pub(crate) fn bits(&self) -> u32 {
        64 - self.tsz
    }

    /// Address bits below what an entry of a level translates.
    pub(crate) fn shift(&self, level: i32) -> u32 {
        self.page + (self.page - 3) * (3 - level) as u32
    }

    /// Descriptors have 52 bits of address.
    fn wide(&self) -> bool {
        if self.page == 16 { self.out == 52 } else { self.ds }
    }

    fn may_be_leaf(&self, level: i32) -> bool {
        match (self.page, level) {
            (_, 3) | (_, 2) | (12, 1) => true,
            (12, 0) | (14 | 16, 1) => self.wide(),
            _ => false,
        }
    }

    /// log2 of the entries of a contiguous span.
    fn contiguous(&self, level: i32) -> u32 {
        match (self.page, level) {
            (12, 1..=3) => 4,
            (14, 3) => 7,
            (14, 2) | (16, 2 | 3) => 5,
            _ => 0,
        }
    }

    /// The addresses that tests use begin here. Below, stage 2 has what stage 1 needs.
    pub(crate) fn anchor(&self) -> u64 {
        match (self.second, self.upper) {
            (true, _) => 1 << (self.bits() - 1),
            (_, true) => u64::MAX << self.bits(),
            (_, false) => 0,
        }
    }

    /// Bits of the addresses that tests use.
    fn room(&self) -> u32 {
        self.bits() - u32::from(self.second)
    }

    /// One of the few places where things meet: all levels begin at the anchor.
    pub(crate) fn unit(&self, pick: (u8, u8)) -> Unit {
        let levels: Vec<_> = (self.first..=3)
            .rev()
            .filter(|&level| self.may_be_leaf(level) && self.shift(level) < self.room())
            .collect();
        let level = levels[[0, 0, 1, 1, 2, 3][pick.0 as usize % 6] % levels.len()];
        // Neighbours; the last of a span, and the first of the next.
        let n = [0, 1, 2, 3, 15, 16, 31, 32, 127, 128][pick.1 as usize % 10];
        let n = if n >> (self.room() - self.shift(level)).min(60) == 0 { n } else { 0 };
        Unit { base: self.anchor() + (n << self.shift(level)), level }
    }

    /// A neighbour: before or after it, or after the span, or the last of that.
    pub(crate) fn near(&self, pick: (u8, u8), which: u8) -> Option<Unit> {
        let Unit { base, level } = self.unit(pick);
        let (one, span) = (1u64 << self.shift(level), 1u64 << self.span(level));
        let offset = base - self.anchor();
        let offset = match which {
            0 => offset.checked_sub(one)?,
            1 => offset + one,
            2 => offset + span,
            3 => offset + span - one,
            _ => return None,
        };
        (offset >> self.room() == 0).then(|| Unit { base: self.anchor() + offset, level })
    }

    /// log2 of the bytes of a contiguous span, if there is room for one.
    pub(crate) fn span(&self, level: i32) -> u32 {
        let span = self.shift(level) + self.contiguous(level);
        if span <= self.room() { span } else { self.shift(level) }
    }

    pub(crate) fn index(&self, level: i32, input: u64) -> u64 {
        let top = if level == self.first { self.bits() } else { self.shift(level) + self.page - 3 };
        (input & ((1 << top) - 1)) >> self.shift(level)
    }

    pub(crate) fn encode(&self, address: u64) -> u64 {
        let low = address & ((1 << 48) - 1);
        match (self.wide(), self.page) {
            (false, _) => low,
            (true, 16) => low | (address >> 48 & 15) << 12,
            (true, _) => address & ((1 << 50) - 1) | (address >> 50 & 3) << 8,
        }
    }

    /// With DS, the shareability is not in the descriptor.
    fn attrs(&self, attrs: u64) -> u64 {
        if self.ds { attrs & !(3 << 8) } else { attrs }
    }

    fn decode(&self, descriptor: u64, from: u32) -> u64 {
        let low = descriptor & ((1 << 48) - 1) >> from << from;
        match (self.wide(), self.page) {
            (false, _) => low,
            (true, 16) => low | (descriptor >> 12 & 15) << 48,
            (true, _) => low | descriptor & 3 << 48 | (descriptor >> 8 & 3) << 50,
        }
    }

    /// What the descriptor of `input` is.
    pub(crate) fn kind(&self, level: i32, input: u64, descriptor: u64, contiguous: bool) -> Kind {
        let shift = self.shift(level);
        match (descriptor & 3, level) {
            (3, ..3) => Kind::Table(self.decode(descriptor, self.page)),
            (3, 3) | (1, ..3) if self.may_be_leaf(level) => {
                let more =
                    if descriptor & CONTIGUOUS != 0 && contiguous { self.contiguous(level) } else { 0 };
                let output = self.decode(descriptor, shift) | input & ((1 << shift) - 1);
                Kind::Leaf { output, shift, span: shift + more }
            }
            _ => Kind::Invalid,
        }
    }

    /// An old table of this level; what it says is what it said.
    fn next_table(&mut self, level: i32) -> u64 {
        let made = &mut self.made[level as usize];
        *made += 1;
        self.root + 0x10_0000 + (level as usize * RING + *made % RING) as u64 * SLOT
    }

    /// Where some table is, or may be.
    pub(crate) fn place(&self, n: u64) -> u64 {
        // The root; one of level 2, 3, and so on.
        if n == 1 {
            self.root
        } else {
            self.root + 0x10_0000 + (2 + n / 5) * RING as u64 * SLOT + n % 5 * SLOT
        }
    }

    /// Whether all tables down to a unit's entry are there.
    pub(crate) fn has_tables(&self, ram: &Ram, unit: Unit) -> bool {
        let mut table = self.root;
        (self.first..unit.level).all(|above| {
            let at = table + self.index(above, unit.base) * 8;
            match self.kind(above, unit.base, ram.word(at), true) {
                Kind::Table(next) => table = next,
                _ => return false,
            }
            true
        })
    }

    /// Where the descriptor of `input` at `level` is, with tables down to it.
    fn entry(
        &mut self,
        ram: &Ram,
        input: u64,
        level: i32,
        next: &mut dyn FnMut(&mut Self, i32) -> u64,
    ) -> u64 {
        let mut table = self.root;
        for above in self.first..level {
            let at = table + self.index(above, input) * 8;
            table = match self.kind(above, input, ram.word(at), true) {
                Kind::Table(table) => table,
                _ => {
                    self.clear(ram, at, above);
                    let table = next(self, above + 1);
                    ram.set(at, self.encode(table) | 3);
                    table
                }
            };
        }
        table + self.index(level, input) * 8
    }

    /// Clears an entry, and all that are contiguous with it.
    fn clear(&self, ram: &Ram, at: u64, level: i32) {
        let bytes = match ram.word(at) & CONTIGUOUS != 0 && ram.word(at) & 3 != if level < 3 { 3 } else { 0 }
        {
            true => 8 << self.contiguous(level),
            false => 8,
        };
        for at in (at / bytes * bytes..).step_by(8).take(bytes as usize / 8) {
            ram.set(at, 0);
        }
    }

    /// Writes a leaf, or a span of them.
    pub(crate) fn write_leaf(&mut self, ram: &Ram, unit: Unit, output: u64, attrs: u64) {
        let shift = self.shift(unit.level);
        let count = if attrs & CONTIGUOUS != 0 { 1 << (self.span(unit.level) - shift) } else { 1 };
        let base = unit.base / (count << shift) * (count << shift);
        for n in 0..count {
            let input = base + (n << shift);
            let at = self.entry(ram, input, unit.level, &mut Self::next_table);
            if n == 0 || attrs & CONTIGUOUS == 0 {
                self.clear(ram, at, unit.level);
            }
            let kind = if unit.level == 3 { 3 } else { 1 };
            ram.set(at, self.encode(output + (n << shift)) | self.attrs(attrs) | kind);
        }
    }

    /// Clears a leaf, or a table with all that it leads to.
    pub(crate) fn write_nothing(&mut self, ram: &Ram, unit: Unit) {
        let at = self.entry(ram, unit.base, unit.level, &mut Self::next_table);
        self.clear(ram, at, unit.level);
    }

    /// Puts another table in the place of a leaf or a table.
    pub(crate) fn write_table(&mut self, ram: &Ram, unit: Unit) {
        if unit.level < 3 {
            let at = self.entry(ram, unit.base, unit.level, &mut Self::next_table);
            self.clear(ram, at, unit.level);
            let table = self.next_table(unit.level + 1);
            ram.set(at, self.encode(table) | 3);
        }
    }

    /// Makes a page of that invalid, or valid again.
    pub(crate) fn blink(&mut self, ram: &Ram, input: u64) {
        let at = self.entry(ram, input, 3, &mut Self::next_table);
        ram.set(at, ram.word(at) ^ 1);
    }

    /// Maps what stage 1 needs to where it is, with tables of their own from `next` on.
    pub(crate) fn identity(&mut self, ram: &Ram, range: std::ops::Range<u64>, attrs: u64, next: &mut u64) {
        for input in (range.start..range.end).step_by(1 << self.page) {
            let at = self.entry(ram, input, 3, &mut |_, _| {
                *next += SLOT;
                *next
            });
            ram.set(at, self.encode(input) | self.attrs(attrs) | 3);
        }
    }
}

/// A geometry that is legal. Stage 2 has room for what stage 1 needs below its anchor; `nested` can be reached from any
/// stage 1.
pub(crate) fn stage(second: bool, nested: bool, has_ds: bool) -> impl Strategy<Value = Stage> {
    let page = prop_oneof![Just(12u32), Just(14), Just(16)];
    (page, 12..41u32, any::<[bool; 4]>()).prop_map(move |(page, tsz, [ds, wide, below, upper])| {
        let ds = ds && has_ds && page != 16;
        let out = if wide { 52 } else { 48 };
        let large = if page == 16 { !second || wide } else { ds };
        let tsz = if large && !nested { tsz } else { tsz.max(16) };
        // Without DS, 16 KiB does not begin at level 0; stage 2 has other means.
        let tsz = if second { tsz.min(33) } else { tsz };
        let mut stage =
            Stage { second, page, tsz, first: 0, ds, out, upper: upper && !second, root: 0, made: [0; 4] };
        let bits = stage.bits();
        let full = 4 - (bits - page).div_ceil(page - 3) as i32;
        let can = second && full < 3 && bits <= stage.shift(full + 1) + page + 1;
        let must = second && page == 14 && full == 0 && !ds;
        stage.first = if must || can && below && (page != 12 || full < 2) { full + 1 } else { full };
        stage
    })
}
