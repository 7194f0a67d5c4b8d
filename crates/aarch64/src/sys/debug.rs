//! Self-hosted debug: breakpoints and watchpoints (DDI 0487 D2.8, D2.9), and whether debug exceptions are enabled.
//!
//! While a watchpoint is enabled every data access takes the slow path, and while a breakpoint is, every instruction is
//! fetched on its own; otherwise neither costs anything. CONSTRAINED UNPREDICTABLE choices: a breakpoint matches by
//! word, whatever BAS says; reserved types never match; a watchpoint whose MASK is 1 or 2 is as with MASK 0.

use super::SysRegs;
use super::id::BREAKPOINTS;
use crate::core::Core;
use crate::exception::daif;

/// MDSCR_EL1.SS.
pub const SS: u64 = 1;
/// MDSCR_EL1.MDE: breakpoints and watchpoints are enabled.
pub const MDE: u64 = 1 << 15;
/// MDSCR_EL1.KDE: debug exceptions at EL1 are.
const KDE: u64 = 1 << 13;

/// Whether debug exceptions can be taken at an exception level with the given DAIF.
pub(crate) fn enabled_at(s: &SysRegs, el: u8, daif_bits: u32) -> bool {
    let locked = s.oslsr >> 1 & 1 != 0 || s.osdlr & 1 != 0;
    !locked && (el == 0 || (s.mdscr_el1 & KDE != 0 && daif_bits & daif::D == 0))
}

fn enabled(core: &Core) -> bool {
    core.sys.mdscr_el1 & MDE != 0 && enabled_at(&core.sys, core.pstate.el, core.pstate.daif)
}

/// Whether some watchpoint may match, at whatever level.
pub(crate) fn watching(s: &SysRegs) -> bool {
    s.mdscr_el1 & MDE != 0 && s.watchpoints.iter().any(|[_, control]| control & 1 != 0)
}

/// Whether some breakpoint may match here: each instruction needs a fetch of its own.
#[inline]
pub(crate) fn breaking(core: &Core) -> bool {
    core.sys.mdscr_el1 & MDE != 0
        && enabled(core)
        && core.sys.breakpoints.iter().any(|[_, control]| control & 1 != 0)
}

/// Whether the security state and privilege fields of a control register select an access: SSC, HMC, and PxC at
/// `shift`.
fn state_matches(control: u64, privilege: u64, privileged: bool) -> bool {
    // There is no Secure state.
    control >> 14 & 3 != 2 && privilege & if privileged { 1 } else { 2 } != 0
}

/// Whether the context breakpoint that a linked one names matches: only the last breakpoint knows contexts.
fn link_matches(s: &SysRegs, control: u64) -> bool {
    let n = (control >> 16 & 15) as usize;
    n == BREAKPOINTS - 1
        && s.breakpoints[n][1] & 1 != 0
        && s.breakpoints[n][1] >> 20 & 15 == 3
        && s.breakpoints[n][0] & 0xffff_ffff == s.contextidr_el1
}

/// Whether a breakpoint matches the instruction at `pc`.
pub(crate) fn breakpoint(core: &Core) -> bool {
    let s = &core.sys;
    let hit = |(n, [value, control]): (usize, &[u64; 2])| {
        let matches = match control >> 20 & 15 {
            0 => (value ^ core.pc) & 0x1_ffff_ffff_fffc == 0,
            1 => (value ^ core.pc) & 0x1_ffff_ffff_fffc == 0 && link_matches(s, *control),
            2 => n == BREAKPOINTS - 1 && value & 0xffff_ffff == s.contextidr_el1,
            _ => false,
        };
        control & 1 != 0 && matches && state_matches(*control, control >> 1 & 3, core.pstate.el != 0)
    };
    enabled(core) && s.breakpoints.iter().enumerate().any(hit)
}

/// The first byte of an access of `size` bytes at `va` that a watchpoint matches. `privileged` is false for LDTR and
/// STTR as well.
pub(crate) fn watchpoint(core: &Core, va: u64, size: u64, write: bool, privileged: bool) -> Option<u64> {
    let s = &core.sys;
    if !watching(s) || !enabled(core) {
        return None;
    }
    let selected = |control: u64| {
        control & 1 != 0
            && control >> 3 & if write { 2 } else { 1 } != 0
            && state_matches(control, control >> 1 & 3, privileged)
            && (control >> 20 & 1 == 0 || link_matches(s, control))
    };
    let byte_matches = |[value, control]: &[u64; 2], byte: u64| {
        let mask = control >> 24 & 31;
        let near = (value ^ byte) << 15 >> 15;
        if mask >= 3 { near >> mask == 0 } else { near >> 3 == 0 && control >> 5 >> (byte & 7) & 1 != 0 }
    };
    (0..size)
        .map(|i| va.wrapping_add(i))
        .find(|&byte| s.watchpoints.iter().any(|w| selected(w[1]) && byte_matches(w, byte)))
}
