//! Names for the guest's code: from a System.map, a copy of /proc/kallsyms or an ELF vmlinux, or as the running kernel has
//! them itself.

mod guest;
mod kallsyms;
mod modules;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectKind, ObjectSymbol, SymbolKind};

use self::guest::Reader;
use crate::machine::Machine;

/// A function is not longer than this: an address further behind a symbol has no name.
const LONGEST: u64 = 1 << 20;
/// Where every arm64 kernel has its exception vectors, whose address VBAR_EL1 tells.
const VECTORS: &str = "vectors";
/// The list of Linux's modules.
const MODULES: &str = "modules";
/// How far behind its vectors a kernel's own table of names may end.
const KERNEL: u64 = 64 << 20;

/// Names of code, by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Ascending addresses.
    code: Vec<(u64, String)>,
    /// Where the list of modules is.
    list: Option<u64>,
    /// The kernel has no name for that list.
    nameless: bool,
    /// How much further up the kernel runs than it was linked for.
    slide: u64,
    /// Where modules run, ascending.
    modules: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads an ELF file, or lines of `ADDRESS TYPE NAME`, with `[MODULE]` behind those of modules.
    ///
    /// # Errors
    /// When the file cannot be read, has no symbols, or is a module's.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let symbols = match bytes.starts_with(&object::elf::ELFMAG) {
            true => Self::elf(&bytes).with_context(|| format!("cannot use {}", path.display()))?,
            false => Self::parse(&String::from_utf8_lossy(&bytes)),
        };
        ensure!(
            !symbols.code.is_empty(),
            "{} has no symbols: it is no System.map and no vmlinux with a symbol table",
            path.display()
        );
        Ok(symbols)
    }

    /// Reads such lines; what is none is passed over.
    pub fn parse(text: &str) -> Self {
        let list = |text: &str| {
            let mut words = text.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let data = matches!(words.next()?, "d" | "D");
            (data && words.next()? == MODULES && words.next().is_none()).then_some(address)
        };
        Self { code: sorted(text), list: text.lines().find_map(list), ..Self::default() }
    }

    /// Reads the symbol table of an ELF executable.
    fn elf(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("it is a damaged ELF file")?;
        ensure!(
            file.kind() != ObjectKind::Relocatable,
            "it is an object file or a module: where the modules of a guest are is taken from the guest itself"
        );
        let (mut code, mut list) = (Vec::new(), None);
        for symbol in file.symbols().filter(|symbol| !symbol.is_undefined()) {
            let Ok(name) = symbol.name() else { continue };
            match symbol.kind() {
                SymbolKind::Data if name == MODULES => list = Some(symbol.address()),
                // Labels of assembly, as `vectors`, have no type.
                SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown
                    if !name.is_empty() && !name.starts_with('$') =>
                {
                    code.push((symbol.address(), name.to_string()));
                }
                _ => {}
            }
        }
        Ok(Self { code: by_address(code), list, ..Self::default() })
    }

    /// Takes the names of modules where they run, as the guest's own /proc/kallsyms has them.
    pub fn add_modules(&mut self, text: &str) {
        let mut modules = sorted(text);
        modules.retain(|(_, name)| name.ends_with(']'));
        self.modules.extend(modules);
        self.modules = by_address(std::mem::take(&mut self.modules));
    }

    /// Takes from a guest what only it can tell: where its kernel and its modules run, and if nothing else has them, the
    /// names of its kernel. Changes nothing there.
    pub fn learn(&mut self, machine: &Machine) {
        let seen = machine.board.checkers.kernel();
        let core = seen.as_deref().unwrap_or_else(|| machine.cluster.core(0));
        let vbar = core.sys.vbar[1];
        let mut guest = Reader::new(core, &machine.board.ram);
        if self.code.is_empty() && vbar >> 48 == 0xffff {
            let names = kallsyms::find(&guest.behind(vbar, KERNEL)).unwrap_or_default();
            self.list = names.iter().find(|name| name.text == MODULES).map(|name| name.offset);
            let code = names.into_iter().filter(|name| matches!(name.kind, b't' | b'T' | b'w' | b'W'));
            self.code = by_address(code.map(|name| (name.offset, name.text)).collect());
            self.nameless = self.list.is_none() && !self.code.is_empty();
        }
        self.locate(vbar);
        if self.nameless && self.list.is_none() {
            let end = self.code.last().map_or(0, |(last, _)| last.wrapping_add(self.slide));
            let list = modules::find(&mut guest, vbar, end, KERNEL);
            self.list = list.map(|list| list.wrapping_sub(self.slide));
        }
        if let Some(list) = self.list {
            let modules = modules::read(&mut guest, list.wrapping_add(self.slide));
            // Those that are gone may still be in a report.
            self.modules.retain(|(at, _)| modules.binary_search_by_key(at, |(own, _)| *own).is_err());
            self.modules.extend(modules);
            self.modules = by_address(std::mem::take(&mut self.modules));
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Finds out where the kernel runs: with address-space randomisation it is not where it was linked for. `vbar` is
    /// VBAR_EL1 of a vCPU on which it runs.
    pub fn locate(&mut self, vbar: u64) {
        if let Some(linked) = self.find(VECTORS)
            && vbar >> 48 == 0xffff
        {
            self.slide = self.slide.wrapping_add(vbar.wrapping_sub(linked));
        }
    }

    /// The symbol that an address of code belongs to, and how far behind it the address is.
    pub fn at(&self, address: u64) -> Option<(&str, u64)> {
        below(&self.modules, address).or_else(|| below(&self.code, address.wrapping_sub(self.slide)))
    }

    /// `symbol+0xOFFSET`, or the bare address.
    pub fn name(&self, address: u64) -> String {
        match self.at(address) {
            Some((name, 0)) => name.to_string(),
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }

    /// Where a symbol is.
    pub fn find(&self, name: &str) -> Option<u64> {
        let of_module = |own: &str| own.strip_prefix(name).is_some_and(|rest| rest.starts_with(" ["));
        let module = self.modules.iter().find(|(_, own)| of_module(own));
        let found = self.code.iter().find(|(_, own)| own == name);
        let kernel = found.map(|(address, _)| address.wrapping_add(self.slide));
        kernel.or(module.map(|&(address, _)| address))
    }
}

/// The lines' symbols by address. Of several names of one address the first stays.
fn sorted(text: &str) -> Vec<(u64, String)> {
    by_address(text.lines().filter_map(line).collect())
}

/// Sorts symbols. Of several names of one address the first stays, or the one that is looked for.
fn by_address(mut code: Vec<(u64, String)>) -> Vec<(u64, String)> {
    code.sort_by_key(|(address, name)| (*address, name != VECTORS));
    code.dedup_by_key(|&mut (address, _)| address);
    code
}

/// The last symbol that is not behind an address.
fn below(code: &[(u64, String)], address: u64) -> Option<(&str, u64)> {
    let (start, name) = code[..code.partition_point(|(start, _)| *start <= address)].last()?;
    let offset = address - start;
    (offset < LONGEST).then_some((name, offset))
}

fn line(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let code = matches!(words.next()?, "t" | "T" | "w" | "W");
    let name = words.next()?;
    // `$x` and its like mark instruction sets, not functions.
    (code && !name.starts_with('$')).then(|| match words.next() {
        Some(module) => (address, format!("{name} {module}")),
        None => (address, name.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
ffff800008000000 t _text
ffff800008010800 T vectors
ffff800008010800 t $x
ffff800008020000 T arm_smmu_cmdq_issue_cmdlist
ffff800008030000 D data
ffff800008040000 t engine_unmap [smmulab_engine]
nonsense
";

    #[test]
    fn addresses_have_names() {
        let symbols = Symbols::parse(MAP);
        assert_eq!(symbols.name(0xffff_8000_0802_0044), "arm_smmu_cmdq_issue_cmdlist+0x44");
        assert_eq!(symbols.name(0xffff_8000_0801_0800), "vectors");
        assert_eq!(symbols.name(0xffff_8000_0804_0000), "engine_unmap [smmulab_engine]");
        assert_eq!(symbols.name(0x1000), "0x1000");
        assert_eq!(symbols.name(0xffff_9000_0000_0000), "0xffff900000000000");
    }

    #[test]
    fn a_kernel_that_runs_elsewhere_is_found_by_its_vectors() {
        let mut symbols = Symbols::parse(MAP);
        symbols.locate(0xffff_8000_1801_0800);
        assert_eq!(symbols.name(0xffff_8000_1802_0004), "arm_smmu_cmdq_issue_cmdlist+0x4");
        assert_eq!(symbols.find("vectors"), Some(0xffff_8000_1801_0800));
        symbols.locate(0xffff_8000_1801_0800);
        assert_eq!(symbols.find("vectors"), Some(0xffff_8000_1801_0800), "once is enough");
        symbols.add_modules(
            "ffff800078900000 t engine_start\t[smmulab_engine]\nffff800008010800 T vectors\nhello\n",
        );
        assert_eq!(symbols.name(0xffff_8000_7890_0010), "engine_start [smmulab_engine]+0x10");
        assert_eq!(symbols.find("engine_start"), Some(0xffff_8000_7890_0000));
        symbols.locate(0);
        assert_eq!(symbols.find("vectors"), Some(0xffff_8000_1801_0800), "a guest that has no vectors yet");
    }
}
