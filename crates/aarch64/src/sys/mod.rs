//! System registers: their state, one table that says how each is accessed, and the system instructions.

pub mod debug;
mod id;
mod ops;
mod table;
#[cfg(test)]
mod tests;
pub mod timer;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Features};
use crate::core::{Core, Ctx};
use crate::exception::{self, Fault};

pub use id::{Identity, PA_BITS, ZVA_BYTES};
pub use ops::system_instruction;
pub use table::{Row, TABLE, mrs, msr, msr_immediate, sys, sysl};

/// SCTLR_EL1 fields.
pub mod sctlr {
    /// MMU enable.
    pub const M: u64 = 1 << 0;
    /// Alignment check enable.
    pub const A: u64 = 1 << 1;
    /// Data accesses are cacheable.
    pub const C: u64 = 1 << 2;
    /// SP alignment check at EL1.
    pub const SA: u64 = 1 << 3;
    /// SP alignment check at EL0.
    pub const SA0: u64 = 1 << 4;
    /// EL0 may access DAIF.
    pub const UMA: u64 = 1 << 9;
    /// Instruction accesses are cacheable.
    pub const I: u64 = 1 << 12;
    /// EL0 may execute DC ZVA.
    pub const DZE: u64 = 1 << 14;
    /// EL0 may read CTR_EL0.
    pub const UCT: u64 = 1 << 15;
    /// WFI at EL0 is not trapped.
    pub const N_TWI: u64 = 1 << 16;
    /// WFE at EL0 is not trapped.
    pub const N_TWE: u64 = 1 << 18;
    /// Writable implies execute-never.
    pub const WXN: u64 = 1 << 19;
    /// Exceptions leave PAN as it is.
    pub const SPAN: u64 = 1 << 23;
    /// EL0 data accesses are big-endian.
    pub const E0E: u64 = 1 << 24;
    /// EL1 data accesses and table walks are big-endian.
    pub const EE: u64 = 1 << 25;
    /// EL0 may execute cache maintenance by VA.
    pub const UCI: u64 = 1 << 26;
}

/// The system registers of one vCPU that hold state. Names are the manual's; arrays are banked by exception level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysRegs {
    /// Options that show in the ID registers.
    pub features: Features,
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// SP_EL0 to SP_EL3, except the selected one, which is in [`Core::r`].
    pub sp: [u64; 4],
    /// SPSR_ELx.
    pub spsr: [u64; 4],
    /// ELR_ELx.
    pub elr: [u64; 4],
    /// ESR_ELx.
    pub esr: [u64; 4],
    /// FAR_ELx.
    pub far: [u64; 4],
    /// VBAR_ELx.
    pub vbar: [u64; 4],
    /// SCTLR_EL1.
    pub sctlr_el1: u64,
    /// CPACR_EL1.
    pub cpacr_el1: u64,
    /// TCR_EL1.
    pub tcr_el1: u64,
    /// TTBR0_EL1.
    pub ttbr0_el1: u64,
    /// TTBR1_EL1.
    pub ttbr1_el1: u64,
    /// MAIR_EL1.
    pub mair_el1: u64,
    /// PAR_EL1.
    pub par_el1: u64,
    /// CONTEXTIDR_EL1.
    pub contextidr_el1: u64,
    /// TPIDR_EL0.
    pub tpidr_el0: u64,
    /// TPIDRRO_EL0.
    pub tpidrro_el0: u64,
    /// TPIDR_EL1.
    pub tpidr_el1: u64,
    /// CSSELR_EL1.
    pub csselr_el1: u64,
    /// MDSCR_EL1.
    pub mdscr_el1: u64,
    /// MDCCINT_EL1.
    pub mdccint_el1: u64,
    /// OSLSR_EL1: OSLM and OSLK.
    pub oslsr: u64,
    /// OSDLR_EL1.
    pub osdlr: u64,
    /// OSECCR_EL1.
    pub oseccr: u64,
    /// OSDTRRX_EL1 and OSDTRTX_EL1.
    pub osdtr: [u64; 2],
    /// DBGCLAIM bits.
    pub dbgclaim: u64,
    /// DBGPRCR_EL1.
    pub dbgprcr: u64,
    /// DBGBVRn_EL1 and DBGBCRn_EL1.
    pub breakpoints: [[u64; 2]; id::BREAKPOINTS],
    /// DBGWVRn_EL1 and DBGWCRn_EL1.
    pub watchpoints: [[u64; 2]; id::WATCHPOINTS],
    /// The instruction stepped last was a load-exclusive: ESR_ELx.EX of the Software Step exception.
    pub stepped_exclusive: bool,
    /// The generic timer.
    pub timer: timer::Timer,
}

impl SysRegs {
    /// Reset state of vCPU `index`, which runs from [`Core::pc`] at EL1. Registers that reset to an UNKNOWN value are 0.
    pub fn new(index: usize, config: &Config) -> Self {
        let features = config.features;
        Self {
            features,
            mpidr: id::mpidr(index),
            sp: [0; 4],
            spsr: [0; 4],
            elr: [0; 4],
            esr: [0; 4],
            far: [0; 4],
            vbar: [0; 4],
            sctlr_el1: table::sctlr_res1(&features),
            cpacr_el1: 0,
            tcr_el1: 0,
            ttbr0_el1: 0,
            ttbr1_el1: 0,
            mair_el1: 0,
            par_el1: 0,
            contextidr_el1: 0,
            tpidr_el0: 0,
            tpidrro_el0: 0,
            tpidr_el1: 0,
            csselr_el1: 0,
            mdscr_el1: 0,
            mdccint_el1: 0,
            // The OS Lock is implemented (OSLM = 0b10) and set by reset.
            oslsr: 0b1010,
            osdlr: 0,
            oseccr: 0,
            osdtr: [0; 2],
            dbgclaim: 0,
            dbgprcr: 0,
            breakpoints: [[0; 2]; id::BREAKPOINTS],
            watchpoints: [[0; 2]; id::WATCHPOINTS],
            stepped_exclusive: false,
            timer: timer::Timer::default(),
        }
    }
}

/// Whether SIMD and floating-point instructions may execute (CPACR_EL1.FPEN).
///
/// # Errors
/// The trap to EL1, EC 0x07.
#[inline(always)]
pub fn fp_enabled(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<(), Fault> {
    match core.sys.cpacr_el1 >> 20 & 3 {
        3 => Ok(()),
        1 if core.pstate.el != 0 => Ok(()),
        _ => Err(exception::fp_trap(core, ctx)),
    }
}

/// Whether WFI (`event` false) or WFE may execute at the present level (SCTLR_EL1.nTWI, nTWE). A trapped WFI or WFE
/// that would not have waited is not trapped: to be called only when it would wait.
///
/// # Errors
/// The trap to EL1, EC 0x01.
pub fn wfx_allowed(core: &mut Core, ctx: &mut Ctx<'_>, event: bool) -> Result<(), Fault> {
    let allow = if event { sctlr::N_TWE } else { sctlr::N_TWI };
    if core.pstate.el == 0 && core.sys.sctlr_el1 & allow == 0 {
        return Err(exception::wfx_trap(core, ctx, event));
    }
    Ok(())
}
