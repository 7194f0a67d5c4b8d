//! The table of system registers, and MRS and MSR by it.
//!
//! A row says which encoding a register has, who may access it, where its value lives and what a write does besides.
//! What has no row and is not in the reserved ID space is UNDEFINED.

use super::timer;
use super::{SysRegs, id, ops, sctlr};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op, SINK, ZERO};
use crate::exception::{self, Fault, daif};
use crate::platform::SysKey;

/// What EL0 may do with a register that EL1 may access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Nothing: UNDEFINED.
    No,
    /// Everything that EL1 may.
    Yes,
    /// Read.
    Read,
    /// Everything, unless SCTLR_EL1.UMA is 0.
    Uma,
    /// Read, unless SCTLR_EL1.UCT is 0.
    Uct,
    /// Everything, unless MDSCR_EL1.TDCC is 1.
    Dcc,
    /// Read, unless the given CNTKCTL_EL1 bits are all 0.
    CounterRead(u64),
    /// Everything, unless the given CNTKCTL_EL1 bit is 0.
    Timer(u64),
}

/// Which accesses exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// Reads; a write is UNDEFINED.
    R,
    /// Both.
    RW,
    /// Writes; a read is UNDEFINED.
    W,
}

type Read = fn(&mut Core, &mut Ctx<'_>) -> Result<u64, Fault>;
type Write = fn(&mut Core, &mut Ctx<'_>, u64) -> Result<Flow, Fault>;

/// Where a register's value is.
#[derive(Clone, Copy)]
enum Place {
    /// In a field. Bits out of the mask are RES0.
    Field(fn(&mut SysRegs) -> &mut u64, u64),
    /// The same always.
    Is(u64),
    /// Wherever these functions find it.
    Calls(Read, Write),
}

/// One system register.
pub struct Row {
    /// Name in DDI 0487.
    pub name: &'static str,
    /// Encoding.
    pub key: SysKey,
    /// What EL0 may do.
    pub user: User,
    /// Which accesses exist.
    pub dir: Dir,
    place: Place,
}

macro_rules! registers {
    ($($name:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal $dir:ident $user:expr, $place:expr;)*) => {
        &[$(Row {
            name: $name,
            key: SysKey::new($op0, $op1, $crn, $crm, $op2),
            user: $user,
            dir: Dir::$dir,
            place: $place,
        }),*]
    };
}

/// A register that is a field of [`SysRegs`], whole or in part.
macro_rules! field {
    ($($path:tt)+) => { Place::Field(|s| &mut s.$($path)+, u64::MAX) };
}
macro_rules! bits {
    ($mask:expr, $($path:tt)+) => { Place::Field(|s| &mut s.$($path)+, $mask) };
}

const W32: u64 = 0xffff_ffff;
const NO: User = User::No;

/// All registers but the reserved ID space and those of the GIC.
#[rustfmt::skip]
pub static TABLE: &[Row] = registers! {
    // name            op0 op1 CRn CRm op2  access EL0
    // Identification
    "MIDR_EL1"           3 0  0  0 0  R  NO, Place::Is(id::MIDR);
    "MPIDR_EL1"          3 0  0  0 5  R  NO, field!(mpidr);
    "REVIDR_EL1"         3 0  0  0 6  R  NO, Place::Is(0);
    "CCSIDR_EL1"         3 1  0  0 0  R  NO, Place::Calls(ccsidr, read_only);
    "CLIDR_EL1"          3 1  0  0 1  R  NO, Place::Is(id::CLIDR);
    "AIDR_EL1"           3 1  0  0 7  R  NO, Place::Is(0);
    "CSSELR_EL1"         3 2  0  0 0  RW NO, bits!(0xf, csselr_el1);
    "CTR_EL0"            3 3  0  0 1  R  User::Uct, Place::Is(id::CTR);
    "DCZID_EL0"          3 3  0  0 7  R  User::Read, Place::Calls(dczid, read_only);
    // Control
    "SCTLR_EL1"          3 0  1  0 0  RW NO, Place::Calls(|c, _| Ok(c.sys.sctlr_el1), write_sctlr);
    "ACTLR_EL1"          3 0  1  0 1  RW NO, Place::Is(0);
    "CPACR_EL1"          3 0  1  0 2  RW NO, bits!(3 << 20, cpacr_el1);
    "RVBAR_EL1"          3 0 12  0 1  R  NO, Place::Is(0);
    "ISR_EL1"            3 0 12  1 0  R  NO, Place::Calls(isr, read_only);
    // Translation
    "TTBR0_EL1"          3 0  2  0 0  RW NO, Place::Calls(|c, _| Ok(c.sys.ttbr0_el1), write_ttbr0);
    "TTBR1_EL1"          3 0  2  0 1  RW NO, Place::Calls(|c, _| Ok(c.sys.ttbr1_el1), write_ttbr1);
    "TCR_EL1"            3 0  2  0 2  RW NO, Place::Calls(|c, _| Ok(c.sys.tcr_el1), write_tcr);
    "PAR_EL1"            3 0  7  4 0  RW NO, field!(par_el1);
    "MAIR_EL1"           3 0 10  2 0  RW NO, Place::Calls(|c, _| Ok(c.sys.mair_el1), write_mair);
    "AMAIR_EL1"          3 0 10  3 0  RW NO, Place::Is(0);
    "CONTEXTIDR_EL1"     3 0 13  0 1  RW NO, bits!(W32, contextidr_el1);
    // Exceptions
    "SPSR_EL1"           3 0  4  0 0  RW NO, Place::Calls(|c, _| Ok(c.sys.spsr[1]), write_spsr);
    "ELR_EL1"            3 0  4  0 1  RW NO, field!(elr[1]);
    "AFSR0_EL1"          3 0  5  1 0  RW NO, Place::Is(0);
    "AFSR1_EL1"          3 0  5  1 1  RW NO, Place::Is(0);
    "ESR_EL1"            3 0  5  2 0  RW NO, bits!(W32, esr[1]);
    "FAR_EL1"            3 0  6  0 0  RW NO, field!(far[1]);
    "VBAR_EL1"           3 0 12  0 0  RW NO, bits!(!0x7ff, vbar[1]);
    // PSTATE
    "SP_EL0"             3 0  4  1 0  RW NO, Place::Calls(read_sp_el0, write_sp_el0);
    "SPSel"              3 0  4  2 0  RW NO, Place::Calls(|c, _| Ok(u64::from(c.pstate.sp_sel)), write_spsel);
    "CurrentEL"          3 0  4  2 2  R  NO, Place::Calls(|c, _| Ok(u64::from(c.pstate.el) << 2), read_only);
    "PAN"                3 0  4  2 3  RW NO, Place::Calls(read_pan, write_pan);
    "NZCV"               3 3  4  2 0  RW User::Yes, Place::Calls(|c, _| Ok(u64::from(c.nzcv & 0xf000_0000)), write_nzcv);
    "DAIF"               3 3  4  2 1  RW User::Uma, Place::Calls(|c, _| Ok(u64::from(c.pstate.daif)), write_daif);
    "FPCR"               3 3  4  4 0  RW User::Yes, Place::Calls(read_fpcr, write_fpcr);
    "FPSR"               3 3  4  4 1  RW User::Yes, Place::Calls(read_fpsr, write_fpsr);
    // Threads
    "TPIDR_EL0"          3 3 13  0 2  RW User::Yes, field!(tpidr_el0);
    "TPIDRRO_EL0"        3 3 13  0 3  RW User::Read, field!(tpidrro_el0);
    "TPIDR_EL1"          3 0 13  0 4  RW NO, field!(tpidr_el1);
    // Generic timer
    "CNTKCTL_EL1"        3 0 14  1 0  RW NO, Place::Calls(|c, _| Ok(c.sys.timer.cntkctl), write_cntkctl);
    "CNTFRQ_EL0"         3 3 14  0 0  RW User::CounterRead(3), bits!(W32, timer.frequency);
    "CNTPCT_EL0"         3 3 14  0 1  R  User::CounterRead(1), Place::Calls(|c, _| Ok(count(c)), read_only);
    "CNTVCT_EL0"         3 3 14  0 2  R  User::CounterRead(2), Place::Calls(|c, _| Ok(count(c)), read_only);
    "CNTP_TVAL_EL0"      3 3 14  2 0  RW User::Timer(1 << 9), Place::Calls(|c, _| Ok(c.sys.timer.physical.tval(count(c))), write_p_tval);
    "CNTP_CTL_EL0"       3 3 14  2 1  RW User::Timer(1 << 9), Place::Calls(|c, _| Ok(c.sys.timer.physical.ctl(count(c))), write_p_ctl);
    "CNTP_CVAL_EL0"      3 3 14  2 2  RW User::Timer(1 << 9), Place::Calls(|c, _| Ok(c.sys.timer.physical.cval), write_p_cval);
    "CNTV_TVAL_EL0"      3 3 14  3 0  RW User::Timer(1 << 8), Place::Calls(|c, _| Ok(c.sys.timer.virtual_.tval(count(c))), write_v_tval);
    "CNTV_CTL_EL0"       3 3 14  3 1  RW User::Timer(1 << 8), Place::Calls(|c, _| Ok(c.sys.timer.virtual_.ctl(count(c))), write_v_ctl);
    "CNTV_CVAL_EL0"      3 3 14  3 2  RW User::Timer(1 << 8), Place::Calls(|c, _| Ok(c.sys.timer.virtual_.cval), write_v_cval);
    // Self-hosted debug
    "OSDTRRX_EL1"        2 0  0  0 2  RW NO, bits!(W32, osdtr[0]);
    "MDCCINT_EL1"        2 0  0  2 0  RW NO, bits!(3 << 29, mdccint_el1);
    "MDSCR_EL1"          2 0  0  2 2  RW NO, Place::Calls(|c, _| Ok(c.sys.mdscr_el1), write_mdscr);
    "OSDTRTX_EL1"        2 0  0  3 2  RW NO, bits!(W32, osdtr[1]);
    "OSECCR_EL1"         2 0  0  6 2  RW NO, bits!(W32, oseccr);
    "DBGBVR0_EL1"        2 0  0  0 4  RW NO, bits!(!3, breakpoints[0][0]);
    "DBGBVR1_EL1"        2 0  0  1 4  RW NO, bits!(!3, breakpoints[1][0]);
    "DBGBCR0_EL1"        2 0  0  0 5  RW NO, bits!(BCR, breakpoints[0][1]);
    "DBGBCR1_EL1"        2 0  0  1 5  RW NO, bits!(BCR, breakpoints[1][1]);
    "DBGWVR0_EL1"        2 0  0  0 6  RW NO, bits!(!3, watchpoints[0][0]);
    "DBGWVR1_EL1"        2 0  0  1 6  RW NO, bits!(!3, watchpoints[1][0]);
    "DBGWCR0_EL1"        2 0  0  0 7  RW NO, bits!(WCR, watchpoints[0][1]);
    "DBGWCR1_EL1"        2 0  0  1 7  RW NO, bits!(WCR, watchpoints[1][1]);
    "MDRAR_EL1"          2 0  1  0 0  R  NO, Place::Is(0);
    "OSLAR_EL1"          2 0  1  0 4  W  NO, Place::Calls(write_only, write_oslar);
    "OSLSR_EL1"          2 0  1  1 4  R  NO, field!(oslsr);
    "OSDLR_EL1"          2 0  1  3 4  RW NO, Place::Calls(|c, _| Ok(c.sys.osdlr), write_osdlr);
    "DBGPRCR_EL1"        2 0  1  4 4  RW NO, bits!(1, dbgprcr);
    "DBGCLAIMSET_EL1"    2 0  7  8 6  RW NO, Place::Calls(|_, _| Ok(0xff), write_claim_set);
    "DBGCLAIMCLR_EL1"    2 0  7  9 6  RW NO, Place::Calls(|c, _| Ok(c.sys.dbgclaim), write_claim_clear);
    "DBGAUTHSTATUS_EL1"  2 0  7 14 6  R  NO, Place::Is(0xa);
    "MDCCSR_EL0"         2 3  0  1 0  R  User::Dcc, Place::Is(0);
    "DBGDTR_EL0"         2 3  0  4 0  RW User::Dcc, Place::Is(0);
    "DBGDTRRX_EL0"       2 3  0  5 0  RW User::Dcc, Place::Is(0);
};

/// DBGBCRn_EL1: BT, LBN, SSC, HMC, BAS, PMC, E.
const BCR: u64 = 0x00ff_e1e7;
/// DBGWCRn_EL1: MASK, WT, LBN, SSC, HMC, BAS, LSC, PAC, E.
const WCR: u64 = 0x1f1f_ffff;

/// Row number plus one by encoding without its top bit (op0 is 2 or 3), 0 where there is none.
static INDEX: [u8; 1 << 15] = {
    let mut index = [0; 1 << 15];
    let mut row = 0;
    while row < TABLE.len() {
        index[(TABLE[row].key.0 & 0x7fff) as usize] = row as u8 + 1;
        row += 1;
    }
    index
};

/// The row of an encoding whose op0 is 2 or 3.
fn find(key: SysKey) -> Option<&'static Row> {
    match INDEX[usize::from(key.0 & 0x7fff)] {
        0 => None,
        row => TABLE.get(usize::from(row) - 1),
    }
}

/// The system register that an MRS or MSR (register) names.
fn key_of(op: &Op) -> SysKey {
    SysKey((op.word >> 5 & 0xffff) as u16 | 0x8000)
}

/// The register that an MRS reads into.
fn target(op: &Op) -> usize {
    usize::from(match op.word & 31 {
        31 => SINK,
        rt => rt as u8,
    })
}

/// The register that an MSR writes from.
fn source(op: &Op) -> usize {
    usize::from(match op.word & 31 {
        31 => ZERO,
        rt => rt as u8,
    })
}

/// Whether an encoding is one of the GIC CPU interface's: ICC_PMR_EL1 and all of CRn 12, CRm 8 to 12, from EL1.
fn is_icc(key: SysKey) -> bool {
    let k = key.0;
    k == SysKey::new(3, 0, 4, 6, 0).0
        || k & 0xff80 == SysKey::new(3, 0, 12, 0, 0).0 && (8..=12).contains(&(k >> 3 & 15))
}

/// Whether an encoding is in the ID space whose unassigned part reads as zero: op0 3, op1 0, CRn 0, CRm 1 to 7.
fn is_id(key: SysKey) -> bool {
    key.0 & 0xff80 == SysKey::new(3, 0, 0, 0, 0).0 && (1..=7).contains(&(key.0 >> 3 & 15))
}

/// Checks what EL0 may do.
#[inline]
fn check_user(core: &mut Core, ctx: &mut Ctx<'_>, row: &Row, op: &Op, read: bool) -> Result<(), Fault> {
    if core.pstate.el != 0 {
        return Ok(());
    }
    let s = &core.sys;
    // UNDEFINED whatever the controls say, and what EL1 decides.
    let (exists, allowed) = match row.user {
        User::No => (false, false),
        User::Yes => (true, true),
        User::Read => (read, true),
        User::Uma => (true, s.sctlr_el1 & sctlr::UMA != 0),
        User::Uct => (read, s.sctlr_el1 & sctlr::UCT != 0),
        User::Dcc => (true, s.mdscr_el1 >> 12 & 1 == 0),
        User::CounterRead(bits) => (read, s.timer.cntkctl & bits != 0),
        User::Timer(bits) => (true, s.timer.cntkctl & bits != 0),
    };
    match (exists, allowed) {
        (false, _) => Err(exception::undefined(core, ctx)),
        (true, false) => Err(exception::system_trap(core, ctx, key_of(op), op.word & 31, read)),
        (true, true) => Ok(()),
    }
}

/// MRS.
pub fn mrs(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    match read(core, op, ctx) {
        Ok(value) => {
            core.r[target(op)] = value;
            Flow::Next
        }
        Err(fault) => fault.into(),
    }
}

fn read(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    let key = key_of(op);
    let Some(row) = find(key) else { return read_other(core, key, ctx) };
    check_user(core, ctx, row, op, true)?;
    match (row.dir, row.place) {
        (Dir::W, _) => Err(exception::undefined(core, ctx)),
        (_, Place::Field(field, _)) => Ok(*field(&mut core.sys)),
        (_, Place::Is(value)) => Ok(value),
        (_, Place::Calls(read, _)) => read(core, ctx),
    }
}

fn read_other(core: &mut Core, key: SysKey, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    if core.pstate.el != 0 {
        if is_id(key) {
            return Ok(id::Identity(&core.sys).register(key.0 >> 3 & 15, key.0 & 7));
        }
        if is_icc(key) {
            let value = ctx.platform.icc_read(core.at(), key);
            ctx.after_platform();
            if let Some(value) = value {
                return Ok(value);
            }
        }
    }
    Err(exception::undefined(core, ctx))
}

/// MSR (register).
pub fn msr(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    write(core, op, ctx).unwrap_or_else(Flow::from)
}

fn write(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Result<Flow, Fault> {
    let (key, value) = (key_of(op), core.r[source(op)]);
    let Some(row) = find(key) else { return write_other(core, key, ctx, value) };
    check_user(core, ctx, row, op, false)?;
    match (row.dir, row.place) {
        (Dir::R, _) => Err(exception::undefined(core, ctx)),
        (_, Place::Field(field, mask)) => {
            *field(&mut core.sys) = value & mask;
            Ok(if key.0 >> 14 == 2 { debug_written(core) } else { Flow::Next })
        }
        (_, Place::Is(_)) => Ok(Flow::Next),
        (_, Place::Calls(_, write)) => write(core, ctx, value),
    }
}

fn write_other(core: &mut Core, key: SysKey, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    if core.pstate.el != 0 && is_icc(key) {
        let done = ctx.platform.icc_write(core.at(), key, value);
        ctx.after_platform();
        if done.is_some() {
            return Ok(Flow::Sync);
        }
    }
    Err(exception::undefined(core, ctx))
}

/// MSR (immediate): PSTATE fields by op1 and op2, the immediate in CRm.
pub fn msr_immediate(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let (field, imm) = (op.word >> 13 & 0x38 | op.word >> 5 & 7, op.word >> 8 & 15);
    let privileged = core.pstate.el != 0;
    let result = match field {
        0o05 if privileged => write_spsel(core, ctx, u64::from(imm)),
        0o04 if privileged && core.sys.features.pan => write_pan(core, ctx, u64::from(imm & 1) << 22),
        0o36 | 0o37 => {
            if !privileged && core.sys.sctlr_el1 & sctlr::UMA == 0 {
                let key = SysKey((op.word >> 5 & 0x3fff) as u16);
                return exception::system_trap(core, ctx, key, 31, false).into();
            }
            let bits = imm << 6;
            let new = if field == 0o36 { core.pstate.daif | bits } else { core.pstate.daif & !bits };
            write_daif(core, ctx, u64::from(new))
        }
        _ => Err(exception::undefined(core, ctx)),
    };
    result.unwrap_or_else(Flow::from)
}

/// SYS, under all its names: AT, DC, IC, TLBI.
pub fn sys(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let key = SysKey((op.word >> 5 & 0x3fff) as u16 | 0x4000);
    let value = core.r[source(op)];
    ops::system_instruction(core, ctx, key, op.word & 31, value).unwrap_or_else(Flow::from)
}

/// SYSL: Armv8.0 has none that is defined.
pub fn sysl(core: &mut Core, _op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    exception::undefined(core, ctx).into()
}

// What rows refer to.

fn read_only(core: &mut Core, ctx: &mut Ctx<'_>, _: u64) -> Result<Flow, Fault> {
    Err(exception::undefined(core, ctx))
}

fn write_only(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    Err(exception::undefined(core, ctx))
}

fn count(core: &Core) -> u64 {
    timer::count(core.now())
}

/// The one level of cache; every other selection reads as zero.
fn ccsidr(core: &mut Core, _: &mut Ctx<'_>) -> Result<u64, Fault> {
    Ok(if core.sys.csselr_el1 >> 1 == 0 { id::CCSIDR } else { 0 })
}

/// DCZID_EL0.DZP says whether DC ZVA is prohibited here.
fn dczid(core: &mut Core, _: &mut Ctx<'_>) -> Result<u64, Fault> {
    let prohibited = core.pstate.el == 0 && core.sys.sctlr_el1 & sctlr::DZE == 0;
    Ok(id::DCZID | u64::from(prohibited) << 4)
}

/// Bits of SCTLR_EL1 that a write sets; the rest are RES0 or RES1.
fn sctlr_mask(features: &Features) -> u64 {
    use sctlr::*;
    let span = if features.pan { SPAN } else { 0 };
    M | A | C | SA | SA0 | UMA | I | DZE | UCT | N_TWI | N_TWE | WXN | span | E0E | EE | UCI
}

/// RES1 bits of SCTLR_EL1: LSMAOE, nTLSMD, SPAN without PAN, EIS, TSCXT, EOS, SED, ITD.
pub(super) fn sctlr_res1(features: &Features) -> u64 {
    0x3050_0980 | if features.pan { 0 } else { sctlr::SPAN }
}

fn write_sctlr(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    let features = &core.sys.features;
    core.sys.sctlr_el1 = value & sctlr_mask(features) | sctlr_res1(features);
    core.mmu.controls_changed(&core.sys);
    Ok(Flow::Sync)
}

/// TCR_EL1 without what FEAT_HAFDBS, FEAT_HPDS and later add.
const TCR: u64 = 0x77_ffff_ffbf;

fn write_tcr(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.tcr_el1 = value & TCR;
    core.mmu.controls_changed(&core.sys);
    Ok(Flow::Sync)
}

fn write_mair(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.mair_el1 = value;
    core.mmu.controls_changed(&core.sys);
    Ok(Flow::Sync)
}

fn write_ttbr0(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.ttbr0_el1 = value & !1;
    core.mmu.tables_changed(&core.sys);
    Ok(Flow::Sync)
}

fn write_ttbr1(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.ttbr1_el1 = value & !1;
    core.mmu.tables_changed(&core.sys);
    Ok(Flow::Sync)
}

fn write_spsr(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    let pan = if core.sys.features.pan { 1 << 22 } else { 0 };
    core.sys.spsr[1] = value & (0xf030_03df | pan);
    Ok(Flow::Next)
}

/// SP_EL0 is UNDEFINED while it is the selected stack pointer.
fn read_sp_el0(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    if core.pstate.sp_sel { Ok(core.sys.sp[0]) } else { Err(exception::undefined(core, ctx)) }
}

fn write_sp_el0(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    if !core.pstate.sp_sel {
        return Err(exception::undefined(core, ctx));
    }
    core.sys.sp[0] = value;
    Ok(Flow::Next)
}

fn write_spsel(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    exception::set_level(core, core.pstate.el, value & 1 != 0);
    Ok(Flow::Next)
}

fn read_pan(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    if core.sys.features.pan {
        Ok(u64::from(core.pstate.pan) << 22)
    } else {
        Err(exception::undefined(core, ctx))
    }
}

fn write_pan(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    if !core.sys.features.pan {
        return Err(exception::undefined(core, ctx));
    }
    core.pstate.pan = value >> 22 & 1 != 0;
    core.mmu.set_view(&core.pstate);
    Ok(Flow::Next)
}

fn write_nzcv(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.nzcv = value as u32 & 0xf000_0000;
    Ok(Flow::Next)
}

/// Interrupts may be pending that a mask cleared now lets through.
fn write_daif(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    let old = core.pstate.daif;
    core.pstate.daif = value as u32 & daif::ALL;
    Ok(if old & !core.pstate.daif != 0 { Flow::Sync } else { Flow::Next })
}

fn read_fpcr(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    super::fp_enabled(core, ctx)?;
    Ok(u64::from(core.fpcr))
}

/// AHP, DN, FZ and RMode: no trapped exceptions, no half-precision arithmetic.
fn write_fpcr(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    super::fp_enabled(core, ctx)?;
    core.fpcr = value as u32 & 0x07c0_0000;
    Ok(Flow::Next)
}

fn read_fpsr(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    super::fp_enabled(core, ctx)?;
    Ok(u64::from(core.fpsr))
}

/// QC and the cumulative exception bits; NZCV there are AArch32's.
fn write_fpsr(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    super::fp_enabled(core, ctx)?;
    core.fpsr = value as u32 & 0x0800_009f;
    Ok(Flow::Next)
}

/// Pending interrupts, masked or not.
fn isr(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    let lines = ctx.platform.irq(core.index);
    Ok(u64::from(lines.irq) << 7 | u64::from(lines.fiq) << 6)
}

/// After a timer register was written: its outputs follow at once, and the platform asks for the deadline again.
fn timer_written(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<Flow, Fault> {
    timer::update_timers(core, ctx);
    ctx.shared.exit = Some(crate::shared::Exit::Yield);
    Ok(Flow::Sync)
}

fn write_cntkctl(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    timer::set_cntkctl(core, value);
    Ok(Flow::Next)
}

fn write_p_tval(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    let count = count(core);
    core.sys.timer.physical.set_tval(count, value);
    timer_written(core, ctx)
}

fn write_p_ctl(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.timer.physical.set_ctl(value);
    timer_written(core, ctx)
}

fn write_p_cval(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.timer.physical.cval = value;
    timer_written(core, ctx)
}

fn write_v_tval(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    let count = count(core);
    core.sys.timer.virtual_.set_tval(count, value);
    timer_written(core, ctx)
}

fn write_v_ctl(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.timer.virtual_.set_ctl(value);
    timer_written(core, ctx)
}

fn write_v_cval(core: &mut Core, ctx: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.timer.virtual_.cval = value;
    timer_written(core, ctx)
}

/// After a debug register was written.
fn debug_written(core: &mut Core) -> Flow {
    core.mmu.drop_all_keys();
    Flow::Sync
}

/// MDSCR_EL1: SS, TDCC, KDE, HDE, MDE. The rest belongs to external debug, which does not exist.
fn write_mdscr(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.mdscr_el1 = value & 0xf001;
    Ok(debug_written(core))
}

fn write_oslar(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.oslsr = core.sys.oslsr & !2 | (value & 1) << 1;
    Ok(Flow::Sync)
}

fn write_osdlr(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.osdlr = value & 1;
    Ok(Flow::Sync)
}

fn write_claim_set(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.dbgclaim |= value & 0xff;
    Ok(Flow::Next)
}

fn write_claim_clear(core: &mut Core, _: &mut Ctx<'_>, value: u64) -> Result<Flow, Fault> {
    core.sys.dbgclaim &= !(value & 0xff);
    Ok(Flow::Next)
}
