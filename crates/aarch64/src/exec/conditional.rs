//! Conditional select.

use super::chain::{Runs, simple};
use super::{by_bool, cond_field, holds, sf, three, trunc};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::bit;

fn run_select<const SF: bool, const INVERT: bool, const INCREMENT: bool>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let otherwise = core.r[op.m as usize];
    let otherwise = if INVERT { !otherwise } else { otherwise };
    let otherwise = if INCREMENT { otherwise.wrapping_add(1) } else { otherwise };
    // Without a branch: what the condition will be is hard to predict.
    let mask = u64::from(holds(core.nzcv, u32::from(op.a))).wrapping_neg();
    let value = otherwise ^ (otherwise ^ core.r[op.n as usize]) & mask;
    core.r[op.d as usize] = trunc::<SF>(value);
    Flow::Next
}

/// CSEL, CSINC, CSINV, CSNEG.
pub(crate) fn select(word: u32, _: &Features) -> Option<Op> {
    let (invert, increment) = (bit(word, 30), bit(word, 10));
    let run: Runs = by_bool!(sf(word), SF => by_bool!(invert, INVERT =>
        by_bool!(increment, INCREMENT => simple(run_select::<SF, INVERT, INCREMENT>))));
    Some(Op { a: cond_field(word) as u8, ..three(run, word) })
}
