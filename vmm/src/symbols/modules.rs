//! The modules of a running Linux, as its own list has them.
//!
//! `struct module` begins with its state, its place in the list `modules` and its name. Where in it the pointer to
//! `struct mod_kallsyms` (the symbol table, its length, its strings and types) is, differs from kernel to kernel; but what
//! such a thing looks like does not.

use super::guest::Reader;

/// More modules, or symbols of one, than this are not looked at.
const MODULES: usize = 512;
const SYMBOLS: u64 = 1 << 16;
/// Bytes of `struct module` that are looked through.
const LOOKED_AT: u64 = 2048;
/// MODULE_NAME_LEN.
const NAME: usize = 56;
/// Modules are not further from the kernel than this.
const REACH: u64 = 4 << 30;
/// Bytes of an Elf64_Sym.
const SYMBOL: u64 = 24;

/// Names of the code of all modules: `NAME [MODULE]` by address, ascending. `list` is the address of `modules`.
pub(super) fn read(guest: &mut Reader<'_>, list: u64) -> Vec<(u64, String)> {
    let mut code = Vec::new();
    let mut node = guest.word(list);
    for _ in 0..MODULES {
        let Some(at) = node.filter(|&at| at != list && is_kernel(at)) else { break };
        let name = guest.text(at.wrapping_add(16), NAME);
        if let Some(table) = table(guest, at.wrapping_sub(8)) {
            symbols(guest, &table, &name, &mut code);
        }
        node = guest.word(at);
    }
    super::by_address(code)
}

/// Where the list is in a kernel that has no name for it (without CONFIG_KALLSYMS_ALL): among its `size` bytes from `start`
/// on, a pointer to something that points back and is a module. Its code is from `start` to `end`.
pub(super) fn find(guest: &mut Reader<'_>, start: u64, end: u64, size: u64) -> Option<u64> {
    let kernel = guest.behind(start, size);
    kernel.chunks_exact(8).enumerate().find_map(|(n, word)| {
        let list = start.wrapping_add(8 * n as u64);
        let first = u64::from_le_bytes(word.try_into().ok()?);
        let near = is_kernel(first) && first.abs_diff(start) < REACH && !(start..end).contains(&first);
        if !near || first == list || guest.word(first.wrapping_add(8)) != Some(list) {
            return None;
        }
        let name = guest.text(first.wrapping_add(16), NAME);
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (named && table(guest, first.wrapping_sub(8)).is_some()).then_some(list)
    })
}

/// `struct mod_kallsyms`.
struct Table {
    symbols: u64,
    count: u64,
    strings: u64,
    types: u64,
}

fn is_kernel(address: u64) -> bool {
    address >> 48 == 0xffff && address & 7 == 0
}

/// The symbol table of the module at `module`.
fn table(guest: &mut Reader<'_>, module: u64) -> Option<Table> {
    (0..LOOKED_AT).step_by(8).find_map(|offset| {
        let at = guest.word(module.wrapping_add(offset)).filter(|&at| is_kernel(at))?;
        let [symbols, count, strings, types] = [0, 8, 16, 24].map(|n| guest.word(at.wrapping_add(n)));
        let table = Table {
            symbols: symbols.filter(|&at| is_kernel(at))?,
            count: count? & 0xffff_ffff,
            strings: strings.filter(|&at| at >> 48 == 0xffff)?,
            types: types.filter(|&at| at >> 48 == 0xffff)?,
        };
        // The first symbol is none, and its name is empty.
        let first = [0, 8, 16].map(|n| guest.word(table.symbols.wrapping_add(n)));
        let empty = guest.byte(table.strings) == Some(0);
        ((2..SYMBOLS).contains(&table.count) && first == [Some(0); 3] && empty).then_some(table)
    })
}

fn symbols(guest: &mut Reader<'_>, table: &Table, module: &str, code: &mut Vec<(u64, String)>) {
    for n in 1..table.count {
        let at = table.symbols.wrapping_add(SYMBOL * n);
        let code_letter = matches!(guest.byte(table.types.wrapping_add(n)), Some(b't' | b'T' | b'w' | b'W'));
        let (Some(name), Some(value)) = (guest.word(at), guest.word(at.wrapping_add(8))) else { return };
        if !code_letter || value >> 48 != 0xffff {
            continue;
        }
        let name = guest.text(table.strings.wrapping_add(name & 0xffff_ffff), 256);
        // `$x` and its like mark instruction sets, not functions.
        if !name.is_empty() && !name.starts_with('$') {
            code.push((value, format!("{name} [{module}]")));
        }
    }
}

#[cfg(test)]
mod tests {
    use aarch64::Config;
    use aarch64::core::Core;
    use guest_ram::GuestRam;

    use super::*;

    const RAM: u64 = 0x4000_0000;
    /// Where the first gigabyte of RAM is in the kernel's half, with 39-bit addresses.
    const UPPER: u64 = 0xffff_ff80_0000_0000;
    const START: u64 = UPPER + 0x10_0000;
    const END: u64 = START + 0x1_0000;
    const SIZE: u64 = 0x4_0000;
    /// Where `modules` is.
    const LIST: u64 = END + 0x2340;
    /// Where the structures of modules are.
    const MODULE: u64 = UPPER + 0x80_0000;

    /// A kernel's memory, seen by a vCPU that has it mapped.
    struct Kernel {
        core: Core,
        ram: GuestRam,
    }

    impl Kernel {
        fn new() -> Self {
            let ram = GuestRam::new(RAM, 16 << 20).unwrap();
            let mut core = Core::new(0, &Config::default());
            // A block of level 1 is all that there is.
            ram.write(RAM, &(RAM | 1 << 10 | 1).to_le_bytes());
            core.sys.ttbr1_el1 = RAM;
            // T1SZ=25, TG1=4 KiB, EPD0, 40-bit outputs.
            core.sys.tcr_el1 = 25 << 16 | 2 << 30 | 1 << 7 | 2 << 32;
            core.sys.sctlr_el1 |= 1;
            Kernel { core, ram }
        }

        fn put(&self, va: u64, words: &[u64]) {
            for (n, word) in words.iter().enumerate() {
                assert!(self.ram.write(va - UPPER + RAM + 8 * n as u64, &word.to_le_bytes()));
            }
        }

        fn text(&self, va: u64, text: &str) {
            assert!(self.ram.write(va - UPPER + RAM, &[text.as_bytes(), &[0]].concat()));
        }

        /// A `struct module` at `at` with a function of its own, whose pointer to its symbols is at `offset`.
        fn module(&self, at: u64, name: &str, offset: u64) {
            let (table, symbols, strings, types) = (at + 0x1000, at + 0x1100, at + 0x1200, at + 0x1300);
            self.text(at + 24, name);
            self.put(at + offset, &[table]);
            self.put(table, &[symbols, 3, strings, types]);
            self.put(symbols, &[0, 0, 0, 1, at + 0x4000, 8, 6, at + 0x4010, 8]);
            self.text(strings + 1, "work");
            self.text(strings + 6, "$x");
            self.text(types, "-tt");
        }

        /// Links the modules at these addresses into the list.
        fn link(&self, modules: &[u64]) {
            let nodes: Vec<u64> = std::iter::once(LIST).chain(modules.iter().map(|at| at + 8)).collect();
            for (n, &node) in nodes.iter().enumerate() {
                let (next, last) = (nodes[(n + 1) % nodes.len()], nodes[(n + nodes.len() - 1) % nodes.len()]);
                self.put(node, &[next, last]);
            }
        }

        fn find(&self) -> Option<u64> {
            find(&mut Reader::new(&self.core, &self.ram), START, END, SIZE)
        }
    }

    #[test]
    fn the_list_is_found_by_what_it_looks_like() {
        let kernel = Kernel::new();
        assert_eq!(kernel.find(), None, "there is nothing");
        // Lists like it: an empty one, and one of what has no symbols.
        kernel.put(START + 0x100, &[START + 0x100, START + 0x100]);
        let other = MODULE + 0x10_0000;
        kernel.put(END + 0x80, &[other, other]);
        kernel.put(other, &[END + 0x80, END + 0x80]);
        kernel.text(other + 16, "named");
        // A pointer to a module that does not point back.
        kernel.put(END + 0x90, &[MODULE + 8]);
        assert_eq!(kernel.find(), None, "nothing of this is it");
        kernel.module(MODULE, "smmu_lab", 0x320);
        kernel.module(MODULE + 0x8000, "virtio_net", 0x320);
        kernel.link(&[MODULE + 0x8000, MODULE]);
        assert_eq!(kernel.find(), Some(LIST));
        let names = read(&mut Reader::new(&kernel.core, &kernel.ram), LIST);
        let of = |at: u64, name: &str| (at + 0x4000, format!("work [{name}]"));
        assert_eq!(names, [of(MODULE, "smmu_lab"), of(MODULE + 0x8000, "virtio_net")]);
    }

    #[test]
    fn what_is_no_module_has_no_list() {
        // (what is wrong, what a write does to a good one)
        type Damage = fn(&Kernel);
        let damages: [(&str, Damage); 5] = [
            ("its name has other characters", |kernel| kernel.text(MODULE + 24, "a/b")),
            ("it has no name", |kernel| kernel.text(MODULE + 24, "")),
            ("its first symbol is one", |kernel| kernel.put(MODULE + 0x1100, &[1])),
            ("it has no symbols", |kernel| kernel.put(MODULE + 0x1008, &[0])),
            ("the list leads away", |kernel| kernel.put(MODULE + 16, &[LIST + 0x1000])),
        ];
        for (what, damage) in damages {
            let kernel = Kernel::new();
            kernel.module(MODULE, "smmu_lab", 0x320);
            kernel.link(&[MODULE]);
            assert_eq!(kernel.find(), Some(LIST));
            damage(&kernel);
            assert_eq!(kernel.find(), None, "{what}");
        }
    }

    #[test]
    fn whatever_is_there_ends() {
        let kernel = Kernel::new();
        // A list that never comes back, of one module, whose table says that it is without end.
        kernel.module(MODULE, "smmu_lab", 0x320);
        kernel.link(&[MODULE]);
        kernel.put(MODULE + 8, &[MODULE + 8, LIST]);
        kernel.put(MODULE + 0x1008, &[u64::MAX]);
        assert_eq!(kernel.find(), None);
        assert_eq!(read(&mut Reader::new(&kernel.core, &kernel.ram), LIST), []);
        // Beyond RAM, and without translation.
        let mut guest = Reader::new(&kernel.core, &kernel.ram);
        assert_eq!(find(&mut guest, UPPER + (32 << 20), UPPER + (33 << 20), SIZE), None);
        assert_eq!(find(&mut guest, 0x1000, 0x2000, SIZE), None);
    }
}
