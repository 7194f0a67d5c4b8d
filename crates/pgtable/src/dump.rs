//! Prints translation tables for people. Tables come from guests: output and work are bounded, and tables that point
//! back at themselves end in a remark.

use std::fmt::{Result, Write};

use crate::config::{Stage1, Stage2};
use crate::descriptor as d;
use crate::fault::{Fault, FaultKind};
use crate::leaf::{Controls, Leaf, Permissions, TableAttrs};
use crate::walk::{Step, Walk};

/// How tables are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One line a descriptor, indented by level, with the address of each.
    Tree,
    /// One line a mapped range: adjacent leaves of the same size and attributes are merged.
    Ranges,
}

/// Bounds of a dump, and its style.
#[derive(Clone, Copy, Debug)]
pub struct Dump {
    /// How to print.
    pub style: Style,
    /// Lines to print at most, before the closing remark.
    pub max_lines: usize,
    /// Descriptors to read at most.
    pub max_fetches: u64,
}

impl Default for Dump {
    fn default() -> Self {
        Self { style: Style::Ranges, max_lines: 1000, max_fetches: 4 << 20 }
    }
}

impl Dump {
    /// Prints the tables of `cfg`. `fetch` reads the 8-byte descriptor at an address; `None` where there is no memory.
    pub fn stage1(&self, out: &mut dyn Write, cfg: &Stage1, fetch: &dyn Fn(u64) -> Option<u64>) -> Result {
        let high = if cfg.upper { !(u64::MAX >> cfg.tsz.min(63)) } else { 0 };
        self.print(out, Walk::stage1(cfg, 0), high, fetch)
    }

    /// Prints the tables of `cfg`.
    pub fn stage2(&self, out: &mut dyn Write, cfg: &Stage2, fetch: &dyn Fn(u64) -> Option<u64>) -> Result {
        self.print(out, Walk::stage2(cfg, 0), 0, fetch)
    }

    fn print(
        &self,
        out: &mut dyn Write,
        first: Step,
        high: u64,
        fetch: &dyn Fn(u64) -> Option<u64>,
    ) -> Result {
        let root = match first {
            Step::Fetch(root) => root,
            Step::Fault(fault) => return writeln!(out, "no tables: {fault}"),
            Step::Done(_) => return Ok(()), // no walk ends before its first fetch
        };
        let mut printer = Printer {
            out,
            fetch,
            high,
            style: self.style,
            lines: self.max_lines,
            fetches: self.max_fetches,
            path: Vec::new(),
            open: None,
        };
        let end = printer.table(&root).and_then(|()| printer.close());
        match end {
            Ok(()) => Ok(()),
            Err(Stop::Lines) => writeln!(printer.out, "... stopped after {} lines", self.max_lines),
            Err(Stop::Fetches) => writeln!(printer.out, "... stopped after {} descriptors", self.max_fetches),
            Err(Stop::Format) => Err(std::fmt::Error),
        }
    }
}

/// Why printing ended early.
enum Stop {
    Lines,
    Fetches,
    Format,
}

impl From<std::fmt::Error> for Stop {
    fn from(_: std::fmt::Error) -> Self {
        Self::Format
    }
}

/// A range being merged: input address, the first leaf, and how many there are.
struct Open {
    input: u64,
    leaf: Leaf,
    count: u64,
}

struct Printer<'a> {
    out: &'a mut dyn Write,
    fetch: &'a dyn Fn(u64) -> Option<u64>,
    /// Leading ones of input addresses in an upper range.
    high: u64,
    style: Style,
    /// Lines left.
    lines: usize,
    /// Descriptor reads left.
    fetches: u64,
    /// Addresses of the tables from the first down to the present one; five at most.
    path: Vec<u64>,
    open: Option<Open>,
}

impl Printer<'_> {
    /// Prints the table whose first entry `first` asks for.
    fn table(&mut self, first: &Walk) -> std::result::Result<(), Stop> {
        if self.path.contains(&first.address()) {
            return self.line(first.level(), format_args!("table {:#x} again: a loop", first.address()));
        }
        self.path.push(first.address());
        let mut holes = 0;
        for index in 0..first.table_entries() {
            let walk = first.entry_in_table(index);
            self.fetches = self.fetches.checked_sub(1).ok_or(Stop::Fetches)?;
            let Some(descriptor) = (self.fetch)(walk.address()) else {
                // What is missing is usually the whole table: one remark for all of it.
                holes += 1;
                continue;
            };
            let input = self.high | walk.input();
            match walk.next(descriptor) {
                Step::Fetch(next) => {
                    if self.style == Style::Tree {
                        let (at, table) = (walk.address(), next.address());
                        let attrs = table_attrs(descriptor);
                        self.line(
                            walk.level(),
                            format_args!("{input:#018x} [{at:#x}] table {table:#x}{attrs}"),
                        )?;
                    }
                    self.table(&next)?;
                }
                Step::Done(leaf) => self.leaf(input, leaf)?,
                Step::Fault(fault) => self.broken(&walk, input, descriptor, fault)?,
            }
        }
        self.path.pop();
        if holes > 0 {
            self.close()?;
            let text = format_args!("table {:#x}: {holes} descriptors are not in memory", first.address());
            self.line(first.level(), text)?;
        }
        Ok(())
    }

    fn leaf(&mut self, input: u64, leaf: Leaf) -> std::result::Result<(), Stop> {
        if self.style == Style::Tree {
            let at = leaf.at;
            let line = describe(&leaf);
            return self.line(leaf.level, format_args!("{input:#018x} [{at:#x}] {:#x} {line}", leaf.pa));
        }
        if let Some(open) = &mut self.open {
            let bytes = open.leaf.size.wrapping_mul(open.count);
            let same = attributes(&open.leaf) == attributes(&leaf)
                && open.input.wrapping_add(bytes) == input
                && open.leaf.pa.wrapping_add(bytes) == leaf.pa;
            if same {
                open.count += 1;
                return Ok(());
            }
        }
        self.close()?;
        self.open = Some(Open { input, leaf, count: 1 });
        Ok(())
    }

    /// Prints the range being merged.
    fn close(&mut self) -> std::result::Result<(), Stop> {
        let Some(Open { input, leaf, count }) = self.open.take() else { return Ok(()) };
        let last = input.wrapping_add(leaf.size.wrapping_mul(count)).wrapping_sub(1);
        self.line(
            0,
            format_args!("{input:#018x}-{last:#018x} -> {:#x} {} x{count}", leaf.pa, describe(&leaf)),
        )
    }

    /// A descriptor that faults. Plain invalid ones are the normal case and say nothing.
    fn broken(
        &mut self,
        walk: &Walk,
        input: u64,
        descriptor: u64,
        fault: Fault,
    ) -> std::result::Result<(), Stop> {
        if fault.kind == FaultKind::Translation && descriptor & d::VALID == 0 {
            return Ok(());
        }
        self.close()?;
        let at = walk.address();
        self.line(walk.level(), format_args!("{input:#018x} [{at:#x}] {descriptor:#018x}: {fault}"))
    }

    fn line(&mut self, level: i8, text: std::fmt::Arguments<'_>) -> std::result::Result<(), Stop> {
        self.lines = self.lines.checked_sub(1).ok_or(Stop::Lines)?;
        if self.style == Style::Tree {
            write!(self.out, "{:1$}", "", 2 * (level + 1) as usize)?;
        }
        Ok(writeln!(self.out, "{text}")?)
    }
}

fn table_attrs(descriptor: u64) -> String {
    let names = [
        (d::NS_TABLE, " NSTable"),
        (d::AP_TABLE_READ_ONLY, " APTable=RO"),
        (d::AP_TABLE_NO_USER, " APTable=noEL0"),
        (d::XN_TABLE, " UXNTable"),
        (d::PXN_TABLE, " PXNTable"),
    ];
    names.iter().filter(|(bit, _)| descriptor & bit != 0).map(|(_, name)| *name).collect()
}

/// What must be equal for two leaves to be merged: the descriptor without addresses and software bits, and what came
/// from the tables.
fn attributes(leaf: &Leaf) -> (i8, u64, TableAttrs) {
    let addresses = d::encode_address(u64::MAX, leaf.rules.granule, leaf.rules.pa52);
    (leaf.level, leaf.descriptor & !addresses & !(0xf << 55), leaf.table)
}

/// Level, size and attributes of a leaf: everything but addresses.
fn describe(leaf: &Leaf) -> String {
    let p = leaf.permissions(&Controls { xnx: true, ..Controls::default() });
    let flag = |bit, c| if p.contains(bit) { c } else { '-' };
    let rwx = |r, w, x| String::from_iter([flag(r, 'r'), flag(w, 'w'), flag(x, 'x')]);
    let privileged = rwx(Permissions::PRIV_READ, Permissions::PRIV_WRITE, Permissions::PRIV_EXEC);
    let user = rwx(Permissions::USER_READ, Permissions::USER_WRITE, Permissions::USER_EXEC);
    let mut text = format!("L{} {}", leaf.level, size(leaf.size));
    if leaf.contiguous {
        text += &format!(" of {}", size(leaf.span()));
    }
    text += &format!(" priv={privileged} user={user}");
    text += &if leaf.is_stage2() {
        format!(" MemAttr={:#x}", leaf.mem_attr())
    } else {
        format!(" AttrIndx={}", leaf.attr_index())
    };
    text += ["", " SH=1", " OSH", " ISH"][usize::from(leaf.shareability())];
    let flags = [
        (leaf.ng(), " nG"),
        (!leaf.is_stage2() && leaf.ns(), " NS"),
        (!leaf.af(), " !AF"),
        (leaf.dbm(), " DBM"),
    ];
    text.extend(flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name));
    text
}

/// A power of two of at least 4096 bytes, in the largest unit that divides it.
fn size(bytes: u64) -> String {
    let (shift, unit) = match bytes.trailing_zeros() {
        40.. => (40, 'T'),
        30..=39 => (30, 'G'),
        20..=29 => (20, 'M'),
        _ => (10, 'K'),
    };
    format!("{}{unit}", bytes >> shift)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Builder, TableMemory};

    fn sample() -> (BTreeMap<u64, u64>, Stage1) {
        let mut memory = BTreeMap::new();
        let mut cfg = Stage1 { tsz: 25, oas: 40, upper: true, ..Stage1::default() };
        let mut tables = Builder::stage1(&mut cfg, &mut memory, 0x8000_0000..0x8010_0000).unwrap();
        let text = d::AF | d::SH_INNER | d::AP_READ_ONLY | d::XN;
        tables.map(&mut memory, 0xffff_ff80_0020_0000, 0x4020_0000, 0x40_3000, text).unwrap();
        let data = d::AF | d::NG | d::AP_USER | d::XN | d::PXN | d::attr_index(2);
        tables.map(&mut memory, 0xffff_ff80_0060_3000, 0x5000_0000, 0x1000, data).unwrap();
        tables.restrict(&mut memory, 1, 0xffff_ff80_0000_0000, d::PXN_TABLE).unwrap();
        tables.set(&mut memory, 3, 0xffff_ff80_0060_5000, d::VALID).unwrap();
        (memory, cfg)
    }

    fn print(dump: Dump, cfg: &Stage1, memory: &BTreeMap<u64, u64>) -> String {
        let mut text = String::new();
        dump.stage1(&mut text, cfg, &|at| memory.read(at)).unwrap();
        text
    }

    #[test]
    fn ranges() {
        let (memory, cfg) = sample();
        let want = "\
0xffffff8000200000-0xffffff80005fffff -> 0x40200000 L2 2M priv=r-- user=--- AttrIndx=0 ISH x2
0xffffff8000600000-0xffffff8000602fff -> 0x40600000 L3 4K priv=r-- user=--- AttrIndx=0 ISH x3
0xffffff8000603000-0xffffff8000603fff -> 0x50000000 L3 4K priv=rw- user=rw- AttrIndx=2 nG x1
0xffffff8000605000 [0x80002028] 0x0000000000000001: Translation fault, level 3
";
        assert_eq!(print(Dump::default(), &cfg, &memory), want);
    }

    #[test]
    fn tree() {
        let (memory, cfg) = sample();
        let text = print(Dump { style: Style::Tree, max_lines: 4, ..Dump::default() }, &cfg, &memory);
        let want = "
    0xffffff8000000000 [0x80000000] table 0x80001000 PXNTable
      0xffffff8000200000 [0x80001008] 0x40200000 L2 2M priv=r-- user=--- AttrIndx=0 ISH
      0xffffff8000400000 [0x80001010] 0x40400000 L2 2M priv=r-- user=--- AttrIndx=0 ISH
      0xffffff8000600000 [0x80001018] table 0x80002000
... stopped after 4 lines
";
        assert_eq!(text, want.trim_start_matches('\n'));
    }

    #[test]
    fn loops_and_absent_memory_end() {
        let cfg = Stage1 { tsz: 16, oas: 48, ttb: 0x1000, ..Stage1::default() };
        let mut text = String::new();
        // Every descriptor points back at the first table.
        Dump::default().stage1(&mut text, &cfg, &|_| Some(0x1003)).unwrap();
        assert_eq!(text.lines().next(), Some("table 0x1000 again: a loop"));
        assert_eq!(text.lines().count(), 512);
        // Tables that share children without a loop: 2^36 leaves.
        let shared = |at: u64| Some((at & !0xfff) + 0x1003);
        let mut text = String::new();
        let dump = Dump { max_fetches: 10_000, max_lines: usize::MAX, ..Dump::default() };
        dump.stage1(&mut text, &cfg, &shared).unwrap();
        assert_eq!(text.lines().last(), Some("... stopped after 10000 descriptors"));
        let mut text = String::new();
        dump.stage1(&mut text, &cfg, &|_| None).unwrap();
        assert_eq!(text, "table 0x1000: 512 descriptors are not in memory\n");
        let mut text = String::new();
        dump.stage1(&mut text, &Stage1 { tsz: 0, ..cfg }, &|_| None).unwrap();
        assert_eq!(text, "no tables: Translation fault, level 0\n");
    }

    #[test]
    fn stage2_ranges() {
        let mut memory = BTreeMap::new();
        let mut cfg = Stage2 { tsz: 24, sl0: 1, oas: 40, ..Stage2::default() };
        let mut tables = Builder::stage2(&mut cfg, &mut memory, 0x8000_0000..0x8010_0000).unwrap();
        tables.contiguous = true;
        let attrs = d::AF | d::S2AP_READ | d::SH_OUTER | d::mem_attr(15) | d::XN;
        tables.map(&mut memory, 0x80_0000_0000, 0x1_0000, 0x1_0000, attrs).unwrap();
        let mut text = String::new();
        Dump::default().stage2(&mut text, &cfg, &|at| memory.read(at)).unwrap();
        let want = "0x0000008000000000-0x000000800000ffff -> 0x10000 L3 4K of 64K priv=r-- user=r-- MemAttr=0xf OSH x16\n";
        assert_eq!(text, want);
    }
}
