//! Bare-metal guests with the test engine behind an SMMU: where things are, one page's tables, and DMA.

use super::a64::Program;

/// The lab device's MARK register: 1 begins, 3 passes, 4 fails.
pub(crate) const MARK: u64 = 0x0c00_0008;
/// The SMMU's registers.
pub(crate) const SMMU: u64 = 0x0905_0000;
/// Frame 0 of the test engine in the device tree, StreamID 0x10000.
pub(crate) const ENGINE: u64 = 0x0d00_0000;
/// The command queue, of 64 entries.
pub(crate) const CMDQ: u64 = 0x4180_0000;
const EVENTQ: u64 = 0x4181_0000;
/// The engine's CD.
pub(crate) const CD: u64 = 0x4182_0000;
/// Tables of levels 0 to 3.
pub(crate) const TABLES: u64 = 0x4183_0000;
/// Where the descriptor of [`IOVA`] is.
pub(crate) const LEAF: u64 = TABLES + 0x3000;
const STRTAB: u64 = 0x4200_0000;
/// The engine's STE.
pub(crate) const STE: u64 = STRTAB + 64 * 0x1_0000;
/// A page to be mapped.
pub(crate) const PAGE: u64 = 0x4190_0000;
/// The address at which the engine uses it.
pub(crate) const IOVA: u64 = 0x1000_0000;
/// A page's descriptor: AF, inner shareable, unprivileged, nG.
pub(crate) const RW: u64 = 1 << 10 | 3 << 8 | 1 << 6 | 1 << 11 | 3;

/// Stage 1 for the engine with ASID 7, tables without a page, and the SMMU on.
pub(crate) fn set_up(p: &mut Program) {
    p.poke(8, STE + 8, 1 << 44).poke(8, STE, 1 | 5 << 1 | CD);
    p.poke(8, CD + 8, TABLES).poke(8, CD + 24, 0xff);
    p.poke(8, CD, 16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 7 << 48);
    p.poke(8, TABLES, TABLES + 0x1003).poke(8, TABLES + 0x1000, TABLES + 0x2003);
    p.poke(8, TABLES + 0x2000 + 8 * (IOVA >> 21), TABLES + 0x3003);
    p.poke(8, SMMU + 0x90, CMDQ | 6).poke(8, SMMU + 0xa0, EVENTQ | 4);
    p.poke(8, SMMU + 0x80, STRTAB).poke(4, SMMU + 0x88, 17).poke(4, SMMU + 0x20, 0xd);
}

/// The engine sums the 64 bytes at `address`, whatever comes of it. `name` is a label.
pub(crate) fn dma(p: &mut Program, name: &str, address: u64) {
    p.poke(8, ENGINE + 0x28, address).poke(8, ENGINE + 0x30, address + 63).poke(8, ENGINE + 0x38, 1);
    p.poke(4, ENGINE + 0x20, 0xff00ff).poke(4, ENGINE, 4);
    // Until it is something other than running.
    p.label(name).li(16, ENGINE).load(4, 17, 16).subi(17, 17, 4).cbz(17, name);
}
