//! Branches, exception generation and system instructions: DDI 0487 C4.1.94.

use super::Row;
use crate::exec::{branch, system};

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // Conditional branch.
    Row::new("B_only_condbranch", "01010100 iiiiiiiiiiiiiiiiiii 0 cccc", branch::conditional),
    // Exception generation.
    Row::new("SVC_EX_exception", "11010100000 iiiiiiiiiiiiiiii 00001", system::svc),
    Row::new("HVC_EX_exception", "11010100000 iiiiiiiiiiiiiiii 00010", system::hvc),
    Row::new("SMC_EX_exception", "11010100000 iiiiiiiiiiiiiiii 00011", system::not_here),
    Row::new("BRK_EX_exception", "11010100001 iiiiiiiiiiiiiiii 00000", system::brk),
    Row::new("HLT_EX_exception", "11010100010 iiiiiiiiiiiiiiii 00000", system::not_here),
    Row::new("DCPS1_DC_exception", "11010100101 iiiiiiiiiiiiiiii 00001", system::not_here),
    Row::new("DCPS2_DC_exception", "11010100101 iiiiiiiiiiiiiiii 00010", system::not_here),
    Row::new("DCPS3_DC_exception", "11010100101 iiiiiiiiiiiiiiii 00011", system::not_here),
    // Hints. Those of later architectures are no-operations, under the name of the whole space.
    Row::new("NOP_HI_hints", "11010101000000110010000000011111", system::hint),
    Row::new("YIELD_HI_hints", "11010101000000110010000000111111", system::hint),
    Row::new("WFE_HI_hints", "11010101000000110010000001011111", system::wfe),
    Row::new("WFI_HI_hints", "11010101000000110010000001111111", system::wfi),
    Row::new("SEV_HI_hints", "11010101000000110010000010011111", system::sev),
    Row::new("SEVL_HI_hints", "11010101000000110010000010111111", system::sevl),
    Row::new("HINT_HM_hints", "11010101000000110010 mmmm qqq 11111", system::hint),
    // Barriers.
    Row::new("CLREX_BN_barriers", "11010101000000110011 mmmm 01011111", system::clrex),
    Row::new("DSB_BO_barriers", "11010101000000110011 mmmm 10011111", system::barrier),
    Row::new("DMB_BO_barriers", "11010101000000110011 mmmm 10111111", system::barrier),
    Row::new("ISB_BI_barriers", "11010101000000110011 mmmm 11011111", system::isb),
    // PSTATE.
    Row::new("MSR_SI_pstate", "1101010100000 ppp 0100 mmmm qqq 11111", system::msr_immediate),
    // System instructions.
    Row::new("SYS_CR_systeminstrs", "1101010100001 ppp nnnn mmmm qqq ttttt", system::sys),
    Row::new("SYSL_RC_systeminstrs", "1101010100101 ppp nnnn mmmm qqq ttttt", system::sys),
    // System register moves.
    Row::new("MSR_SR_systemmove", "110101010001 o ppp nnnn mmmm qqq ttttt", system::msr),
    Row::new("MRS_RS_systemmove", "110101010011 o ppp nnnn mmmm qqq ttttt", system::mrs),
    // Unconditional branch (register).
    Row::new("BR_64_branch_reg", "1101011000011111000000 nnnnn 00000", branch::register),
    Row::new("BLR_64_branch_reg", "1101011000111111000000 nnnnn 00000", branch::register),
    Row::new("RET_64R_branch_reg", "1101011001011111000000 nnnnn 00000", branch::register),
    Row::new("ERET_64E_branch_reg", "11010110100111110000001111100000", system::eret),
    Row::new("DRPS_64E_branch_reg", "11010110101111110000001111100000", system::not_here),
    // Unconditional branch (immediate).
    Row::new("B_only_branch_imm", "000101 iiiiiiiiiiiiiiiiiiiiiiiiii", branch::direct),
    Row::new("BL_only_branch_imm", "100101 iiiiiiiiiiiiiiiiiiiiiiiiii", branch::direct),
    // Compare and branch.
    Row::new("CBZ_32_compbranch", "00110100 iiiiiiiiiiiiiiiiiii ttttt", branch::compare),
    Row::new("CBNZ_32_compbranch", "00110101 iiiiiiiiiiiiiiiiiii ttttt", branch::compare),
    Row::new("CBZ_64_compbranch", "10110100 iiiiiiiiiiiiiiiiiii ttttt", branch::compare),
    Row::new("CBNZ_64_compbranch", "10110101 iiiiiiiiiiiiiiiiiii ttttt", branch::compare),
    // Test and branch.
    Row::new("TBZ_only_testbranch", "b 0110110 bbbbb iiiiiiiiiiiiii ttttt", branch::test),
    Row::new("TBNZ_only_testbranch", "b 0110111 bbbbb iiiiiiiiiiiiii ttttt", branch::test),
];
