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
