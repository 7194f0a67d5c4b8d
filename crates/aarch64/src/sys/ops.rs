//! System instructions: AT, DC, IC, TLBI (DDI 0487 C5.3 to C5.5).

use super::sctlr;
use crate::core::{Core, Ctx, Flow};
use crate::exception::{self, Fault};
use crate::mmu::{self, Maintenance};
use crate::platform::SysKey;
use crate::shared::Broadcast;

/// What a system instruction does.
#[derive(Clone, Copy)]
enum Action {
    /// AT: EL0's permissions, and a write.
    At { user: bool, write: bool },
    /// Cache maintenance by VA.
    Maintain(Maintenance),
    /// DC ZVA.
    Zero,
    /// Cache maintenance that has nothing to check and nothing to do.
    Nothing,
    /// IC IALLU and IALLUIS: likewise, but what is fetched next may differ.
    Refetch,
    /// TLBI, on this vCPU alone or on all.
    Invalidate { everywhere: bool },
}

/// The instruction of an encoding, and the SCTLR_EL1 bit that lets EL0 execute it, 0 where none does.
fn find(key: SysKey) -> Option<(Action, u64)> {
    let k = key.0;
    let (op1, crn, crm, op2) = (k >> 11 & 7, k >> 7 & 15, k >> 3 & 15, k & 7);
    #[rustfmt::skip]
    let found = match (op1, crn, crm, op2) {
        (0, 7, 1, 0) => (Action::Refetch, 0),                                  // IC IALLUIS
        (0, 7, 5, 0) => (Action::Refetch, 0),                                  // IC IALLU
        (3, 7, 5, 1) => (Action::Maintain(Maintenance::Clean), sctlr::UCI),    // IC IVAU
        (0, 7, 6, 1) => (Action::Maintain(Maintenance::Invalidate), 0),        // DC IVAC
        (0, 7, 6, 2) => (Action::Nothing, 0),                                  // DC ISW
        (0, 7, 10, 2) => (Action::Nothing, 0),                                 // DC CSW
        (0, 7, 14, 2) => (Action::Nothing, 0),                                 // DC CISW
        (3, 7, 4, 1) => (Action::Zero, sctlr::DZE),                            // DC ZVA
        (3, 7, 10, 1) => (Action::Maintain(Maintenance::Clean), sctlr::UCI),   // DC CVAC
        (3, 7, 11, 1) => (Action::Maintain(Maintenance::Clean), sctlr::UCI),   // DC CVAU
        (3, 7, 14, 1) => (Action::Maintain(Maintenance::Clean), sctlr::UCI),   // DC CIVAC
        (0, 7, 8, 0) => (Action::At { user: false, write: false }, 0),         // AT S1E1R
        (0, 7, 8, 1) => (Action::At { user: false, write: true }, 0),          // AT S1E1W
        (0, 7, 8, 2) => (Action::At { user: true, write: false }, 0),          // AT S1E0R
        (0, 7, 8, 3) => (Action::At { user: true, write: true }, 0),           // AT S1E0W
        // VMALLE1, VAE1, ASIDE1, VAAE1, VALE1, VAALE1
        (0, 8, 3, 0..=3 | 5 | 7) => (Action::Invalidate { everywhere: true }, 0),
        (0, 8, 7, 0..=3 | 5 | 7) => (Action::Invalidate { everywhere: false }, 0),
        _ => return None,
    };
    Some(found)
}

/// Executes the system instruction with encoding `key`, whose operand, in register `rt`, is `value`.
///
/// # Errors
/// The exception that was taken.
pub fn system_instruction(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    key: SysKey,
    rt: u32,
    value: u64,
) -> Result<Flow, Fault> {
    let Some((action, enable)) = find(key) else { return Err(exception::undefined(core, ctx)) };
    if core.pstate.el == 0 {
        if enable == 0 {
            return Err(exception::undefined(core, ctx));
        }
        if core.sys.sctlr_el1 & enable == 0 {
            return Err(exception::system_trap(core, ctx, key, rt, false));
        }
    }
    match action {
        Action::At { user, write } => mmu::address_translate(core, ctx, value, user, write)?,
        Action::Maintain(what) => mmu::maintain(core, ctx, value, what)?,
        Action::Zero => mmu::zero_block(core, ctx, value)?,
        Action::Nothing => {}
        Action::Refetch => return Ok(Flow::Sync),
        Action::Invalidate { everywhere } => {
            if everywhere {
                ctx.shared.broadcast.push(Broadcast::Tlbi(key, value));
            }
            core.mmu.invalidate(&core.sys, key, value);
            return Ok(Flow::Sync);
        }
    }
    Ok(Flow::Next)
}
