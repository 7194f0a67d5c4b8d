//! Builds translation tables in any memory, for tests: every granule, level and stage, and raw descriptors for what no
//! sane operating system writes.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::config::{Stage1, Stage2};
use crate::descriptor::{self as d, Kind};
use crate::granule::{Granule, LAST};

/// Memory that holds 8-byte little-endian descriptors.
pub trait TableMemory {
    /// The descriptor at `address`, or `None` if nothing is there.
    fn read(&self, address: u64) -> Option<u64>;
    /// Writes the descriptor at `address`; `None` if nothing is there.
    fn write(&mut self, address: u64, descriptor: u64) -> Option<()>;
}

/// Sparse memory without end, zero where nothing was written.
impl TableMemory for BTreeMap<u64, u64> {
    fn read(&self, address: u64) -> Option<u64> {
        Some(self.get(&address).copied().unwrap_or(0))
    }

    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        if descriptor == 0 {
            self.remove(&address);
        } else {
            self.insert(address, descriptor);
        }
        Some(())
    }
}

/// Why tables could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// TxSZ (and SL0) do not make a table.
    #[error("the table configuration has no start level")]
    Config,
    /// The pool has no room for another table.
    #[error("no room for another table")]
    Full,
    /// An address or length is not a multiple of the page or block.
    #[error("misaligned address or length {0:#x}")]
    Misaligned(u64),
    /// An address is outside the input range.
    #[error("input address {0:#x} is out of range")]
    Range(u64),
    /// The level does not exist below the start level, or has no such leaf.
    #[error("no such leaf at level {0}")]
    Level(i8),
    /// A block is in the way of a table, or a table of a block.
    #[error("input address {0:#x} is mapped with another size")]
    Occupied(u64),
    /// The memory has nothing at a table's address.
    #[error("no memory at {0:#x}")]
    Memory(u64),
}

/// One tree of tables under construction. It holds no memory: each call is given it.
///
/// ```
/// use pgtable::{Builder, Stage1, descriptor as d};
/// let mut memory = std::collections::BTreeMap::new();
/// let mut cfg = Stage1 { tsz: 25, oas: 40, ..Stage1::default() };
/// let mut tables = Builder::stage1(&mut cfg, &mut memory, 0x8000_0000..0x8010_0000)?;
/// // Two pages, privileged read and write.
/// tables.map(&mut memory, 0x40_0000, 0x9000_0000, 0x2000, d::AF | d::SH_INNER | d::XN)?;
/// # Ok::<(), pgtable::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    granule: Granule,
    pa52: bool,
    start: i8,
    input_bits: u8,
    root: u64,
    pool: Range<u64>,
    /// The coarsest level that [`Builder::map`] puts leaves at; 3 makes it use pages only.
    pub coarsest: i8,
    /// Whether [`Builder::map`] sets the Contiguous bit wherever a whole aligned span is mapped.
    pub contiguous: bool,
}

impl Builder {
    /// Starts tables for `cfg`: takes the first table from `pool`, clears it and sets `cfg.ttb`.
    pub fn stage1(
        cfg: &mut Stage1,
        memory: &mut impl TableMemory,
        pool: Range<u64>,
    ) -> Result<Self, BuildError> {
        let start = cfg.start_level().ok_or(BuildError::Config)?;
        let builder = Self::new(cfg.granule, cfg.pa52, start, 64 - cfg.tsz, memory, pool)?;
        cfg.ttb = builder.root;
        Ok(builder)
    }

    /// Starts tables for `cfg`, as [`Builder::stage1`] does; concatenated first tables are made as SL0 asks for them.
    pub fn stage2(
        cfg: &mut Stage2,
        memory: &mut impl TableMemory,
        pool: Range<u64>,
    ) -> Result<Self, BuildError> {
        let start = cfg.start_level().ok_or(BuildError::Config)?;
        let builder = Self::new(cfg.granule, cfg.pa52, start, 64 - cfg.tsz, memory, pool)?;
        cfg.ttb = builder.root;
        Ok(builder)
    }

    fn new(
        granule: Granule,
        pa52: bool,
        start: i8,
        input_bits: u8,
        memory: &mut impl TableMemory,
        pool: Range<u64>,
    ) -> Result<Self, BuildError> {
        let mut builder =
            Self { granule, pa52, start, input_bits, root: 0, pool, coarsest: start, contiguous: false };
        // TTBRs of 52-bit addresses have no bits below 64 bytes.
        let bits = (input_bits - granule.shift(start) + 3).max(6);
        builder.root = builder.allocate(memory, 1 << bits)?;
        Ok(builder)
    }

    /// Address of the first table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// What is left of the pool.
    pub fn free(&self) -> Range<u64> {
        self.pool.clone()
    }

    /// Maps `len` bytes at `va` to `pa` with the attribute bits `attrs` (see [`crate::descriptor`]), with the largest
    /// leaves that alignment, the granule and [`Builder::coarsest`] permit. `va` of an upper range may be given with its
    /// leading ones.
    pub fn map(
        &mut self,
        memory: &mut impl TableMemory,
        va: u64,
        pa: u64,
        len: u64,
        attrs: u64,
    ) -> Result<(), BuildError> {
        let page = self.granule.bytes();
        if let Some(&bad) = [va, pa, len].iter().find(|&&x| x % page != 0) {
            return Err(BuildError::Misaligned(bad));
        }
        let mut done = 0;
        while done < len {
            let (va, pa, left) = (va.wrapping_add(done), pa.wrapping_add(done), len - done);
            let fits = |bits: u8| (va | pa) & ((1u64 << bits) - 1) == 0 && left >> bits != 0;
            let level = (self.start.max(self.coarsest)..LAST)
                .find(|&level| self.granule.allows_block(level, self.pa52) && fits(self.granule.shift(level)))
                .unwrap_or(LAST);
            let shift = self.granule.shift(level);
            let span = self
                .granule
                .contiguous_bits(level)
                .filter(|more| self.contiguous && shift + more <= self.input_bits && fits(shift + more));
            let count = 1u64 << span.unwrap_or(0);
            let attrs = if span.is_some() { attrs | d::CONTIGUOUS } else { attrs };
            for i in 0..count {
                self.map_one(memory, level, va.wrapping_add(i << shift), pa.wrapping_add(i << shift), attrs)?;
            }
            done += count << shift;
        }
        Ok(())
    }

    /// Writes one block or page descriptor at `level`.
    pub fn map_one(
        &mut self,
        memory: &mut impl TableMemory,
        level: i8,
        va: u64,
        pa: u64,
        attrs: u64,
    ) -> Result<(), BuildError> {
        if level != LAST && !self.granule.allows_block(level, self.pa52) {
            return Err(BuildError::Level(level));
        }
        if pa & ((1u64 << self.granule.shift(level)) - 1) != 0 {
            return Err(BuildError::Misaligned(pa));
        }
        let kind = if level == LAST { d::VALID | d::TABLE } else { d::VALID };
        self.set(memory, level, va, d::encode_address(pa, self.granule, self.pa52) | attrs | kind).map(drop)
    }

    /// Writes `descriptor` as it is into the entry for `va` at `level`, making the tables above it. Zero unmaps. Gives
    /// the address of the entry.
    pub fn set(
        &mut self,
        memory: &mut impl TableMemory,
        level: i8,
        va: u64,
        descriptor: u64,
    ) -> Result<u64, BuildError> {
        let at = self.entry(memory, level, va)?;
        memory.write(at, descriptor).ok_or(BuildError::Memory(at))?;
        Ok(at)
    }

    /// ORs `bits` (APTable and the like) into the table descriptor for `va` at `level`, making the table if needed.
    pub fn restrict(
        &mut self,
        memory: &mut impl TableMemory,
        level: i8,
        va: u64,
        bits: u64,
    ) -> Result<(), BuildError> {
        if level >= LAST {
            return Err(BuildError::Level(level));
        }
        self.entry(memory, level + 1, va)?;
        let at = self.entry(memory, level, va)?;
        let descriptor = memory.read(at).ok_or(BuildError::Memory(at))?;
        memory.write(at, descriptor | bits).ok_or(BuildError::Memory(at))
    }

    /// Address of the descriptor for `va` at `level`; makes the tables above it.
    pub fn entry(&mut self, memory: &mut impl TableMemory, level: i8, va: u64) -> Result<u64, BuildError> {
        if level < self.start || level > LAST {
            return Err(BuildError::Level(level));
        }
        let top = va >> self.input_bits;
        if top != 0 && top != u64::MAX >> self.input_bits {
            return Err(BuildError::Range(va));
        }
        let input = va & ((1u64 << self.input_bits) - 1);
        let mut at = self.root | (input >> self.granule.shift(self.start)) << 3;
        for above in self.start..level {
            let descriptor = memory.read(at).ok_or(BuildError::Memory(at))?;
            let table = match d::kind(descriptor, self.granule, above, self.pa52) {
                Kind::Table => d::address(descriptor, self.granule, self.granule.bits(), self.pa52),
                Kind::Leaf => return Err(BuildError::Occupied(va)),
                Kind::Invalid => {
                    let table = self.allocate(memory, self.granule.bytes())?;
                    let descriptor = d::encode_address(table, self.granule, self.pa52) | d::VALID | d::TABLE;
                    memory.write(at, descriptor).ok_or(BuildError::Memory(at))?;
                    table
                }
            };
            let index = input >> self.granule.shift(above + 1) & ((1 << self.granule.stride()) - 1);
            at = table | index << 3;
        }
        Ok(at)
    }

    /// Takes a cleared table of `size` bytes, aligned to its size, from the pool.
    fn allocate(&mut self, memory: &mut impl TableMemory, size: u64) -> Result<u64, BuildError> {
        let base = self.pool.start.checked_next_multiple_of(size).ok_or(BuildError::Full)?;
        let end = base.checked_add(size).filter(|&end| end <= self.pool.end).ok_or(BuildError::Full)?;
        self.pool.start = end;
        for at in (base..end).step_by(8) {
            memory.write(at, 0).ok_or(BuildError::Memory(at))?;
        }
        Ok(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, FaultKind, Leaf, Step, Walk};

    fn run(memory: &BTreeMap<u64, u64>, mut step: Step) -> Result<Leaf, Fault> {
        loop {
            match step {
                Step::Fetch(walk) => step = walk.next(memory.read(walk.address()).unwrap()),
                Step::Done(leaf) => return Ok(leaf),
                Step::Fault(fault) => return Err(fault),
            }
        }
    }

    const POOL: Range<u64> = 0x8000_0000..0x9000_0000;

    #[test]
    fn maps_with_the_largest_leaves() {
        // Granule, block size, contiguous pages.
        for (granule, block, span) in [
            (Granule::G4K, 2 << 20, 64 << 10),
            (Granule::G16K, 32 << 20, 2 << 20),
            (Granule::G64K, 512 << 20, 2 << 20),
        ] {
            let mut memory = BTreeMap::new();
            let mut cfg = Stage1 { granule, tsz: 25, oas: 48, ..Stage1::default() };
            let mut tables = Builder::stage1(&mut cfg, &mut memory, POOL).unwrap();
            tables.contiguous = true;
            let (va, pa, page) = (3 * block - 2 * span, 0x100_0000_0000 - 2 * span, granule.bytes());
            tables.map(&mut memory, va, pa, 2 * span + block + page, d::AF | d::attr_index(5)).unwrap();
            let walk = |offset: u64| run(&memory, Walk::stage1(&cfg, va + offset));
            let leaf = walk(page + 0x123).unwrap();
            assert_eq!(
                (leaf.pa, leaf.level, leaf.span(), leaf.attr_index()),
                (pa + page + 0x123, 3, span, 5)
            );
            let leaf = walk(2 * span + 7 * page).unwrap();
            assert_eq!((leaf.pa, leaf.level, leaf.span()), (pa + 2 * span + 7 * page, 2, block));
            let leaf = walk(2 * span + block).unwrap();
            assert_eq!((leaf.level, leaf.span()), (3, page));
            assert_eq!(walk(2 * span + block + page), Err(Fault::new(FaultKind::Translation, 3)));
        }
    }

    #[test]
    fn every_start_level_and_concatenation_of_stage2() {
        for granule in [Granule::G4K, Granule::G16K, Granule::G64K] {
            for (tsz, sl0, pa52) in
                (12..=48).flat_map(|t| (0..5).flat_map(move |s| [(t, s, false), (t, s, true)]))
            {
                let mut memory = BTreeMap::new();
                let mut cfg = Stage2 { granule, tsz, sl0, oas: 52, pa52, ttst: true, ..Stage2::default() };
                let Ok(mut tables) = Builder::stage2(&mut cfg, &mut memory, POOL) else {
                    assert_eq!(cfg.start_level(), None);
                    continue;
                };
                let last = (u64::MAX >> tsz) & !(granule.bytes() - 1);
                let pa = if pa52 { 0xf_1234_5670_0000 } else { 0xf234_5670_0000 };
                tables.map(&mut memory, last, pa, granule.bytes(), d::AF | d::S2AP_READ).unwrap();
                let leaf = run(&memory, Walk::stage2(&cfg, last + 8)).unwrap();
                assert_eq!((leaf.pa, leaf.level, leaf.s2ap()), (pa + 8, 3, 1), "{cfg:?}");
                assert_eq!(
                    run(&memory, Walk::stage2(&cfg, last + granule.bytes())),
                    Err(Fault::new(FaultKind::Translation, 0))
                );
            }
        }
    }

    #[test]
    fn tables_restrict_what_is_below() {
        let mut memory = BTreeMap::new();
        let mut cfg = Stage1 { tsz: 16, oas: 48, upper: true, ..Stage1::default() };
        let mut tables = Builder::stage1(&mut cfg, &mut memory, POOL).unwrap();
        let va = 0xffff_8000_0000_0000;
        tables.map(&mut memory, va, 0x4000_0000, 0x1000, d::AF | d::AP_USER).unwrap();
        tables.restrict(&mut memory, 0, va, d::AP_TABLE_READ_ONLY | d::PXN_TABLE).unwrap();
        tables.restrict(&mut memory, 2, va, d::AP_TABLE_NO_USER | d::NS_TABLE).unwrap();
        let leaf = run(&memory, Walk::stage1(&cfg, va)).unwrap();
        assert_eq!((leaf.ap(), leaf.pxn(), leaf.xn(), leaf.ns()), (0b10, true, false, true));
        let leaf = run(&memory, Walk::stage1(&Stage1 { hpd: true, ..cfg }, va)).unwrap();
        assert_eq!((leaf.ap(), leaf.pxn(), leaf.xn(), leaf.ns()), (0b01, false, false, true));
    }

    #[test]
    fn mistakes_are_errors() {
        let mut memory = BTreeMap::new();
        let mut cfg = Stage1 { tsz: 25, oas: 40, ..Stage1::default() };
        assert_eq!(Builder::stage1(&mut cfg, &mut memory, 0x1000..0x1800).unwrap_err(), BuildError::Full);
        let mut tables = Builder::stage1(&mut cfg, &mut memory, 0x1000..0x3000).unwrap();
        let mut map = |va, pa, len| tables.map(&mut memory, va, pa, len, d::AF);
        assert_eq!(map(0x10, 0, 0x1000), Err(BuildError::Misaligned(0x10)));
        assert_eq!(map(1 << 40, 0, 0x1000), Err(BuildError::Range(1 << 40)));
        assert_eq!(map(0, 0, 1 << 30), Ok(()));
        assert_eq!(map(0, 0, 0x1000), Err(BuildError::Occupied(0)));
        assert_eq!(map(1 << 30, 0, 0x1000), Err(BuildError::Full));
        let mut empty = Stage1 { tsz: 60, ..cfg };
        assert_eq!(Builder::stage1(&mut empty, &mut memory, POOL).unwrap_err(), BuildError::Config);
    }

    #[test]
    fn hardware_update_of_descriptors() {
        let mut memory = BTreeMap::new();
        let mut cfg = Stage1 { tsz: 25, oas: 40, ha: true, hd: true, ..Stage1::default() };
        let mut tables = Builder::stage1(&mut cfg, &mut memory, POOL).unwrap();
        tables.map(&mut memory, 0, 0x4000_0000, 0x1000, d::DBM | d::AP_READ_ONLY).unwrap();
        let leaf = run(&memory, Walk::stage1(&cfg, 0)).unwrap();
        assert!(leaf.needs_af() && leaf.needs_dirty() && leaf.ap() == 0);
        assert_eq!(leaf.updated(false), leaf.descriptor | d::AF);
        assert_eq!(leaf.updated(true), (leaf.descriptor | d::AF) & !d::AP_READ_ONLY);
        memory.insert(leaf.at, leaf.updated(true));
        let leaf = run(&memory, Walk::stage1(&cfg, 0)).unwrap();
        assert!(!leaf.needs_af() && !leaf.needs_dirty() && leaf.updated(true) == leaf.descriptor);
        let off = Stage1 { ha: false, ..cfg };
        memory.insert(leaf.at, leaf.descriptor & !d::AF);
        assert_eq!(run(&memory, Walk::stage1(&off, 0)), Err(Fault::new(FaultKind::AccessFlag, 3)));
        assert!(run(&memory, Walk::stage1(&Stage1 { affd: true, ..off }, 0)).is_ok());
    }
}
