//! What happens in a case, and to which SMMU.

use proptest::prelude::*;
use smmu_model::{Config, Replace, Unaligned};

use crate::tables::{Stage, stage};
use crate::{SPACES, STREAMS};

/// What a space's entry becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Nothing,
    Table,
    Leaf { read_only: bool, global: bool, contiguous: bool, to: (u8, u8) },
}

/// A command that is right for a unit, and what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shot {
    pub(crate) operation: u8,
    pub(crate) ranged: bool,
    pub(crate) leaf: bool,
    /// TTL: the unit's level, none, or another.
    pub(crate) ttl: u8,
    /// How the number of granules is put into NUM and SCALE; and one more or less.
    pub(crate) split: u8,
    pub(crate) more: i8,
    /// TG, VMID, ASID of something else; an address within the unit.
    pub(crate) wrong: u8,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Write(usize, (u8, u8), What, Option<Shot>),
    Forget(usize, (u8, u8), Shot),
    Access {
        stream: usize,
        unit: (u8, u8),
        offset: u64,
        write: bool,
    },
    /// One that stays under way.
    Begin {
        stream: usize,
        unit: (u8, u8),
        steps: u8,
    },
    Configuration(usize, u8),
    /// Stage 2 has a page of CDs or tables of stage 1 no more, for one access, with a command or without.
    Blink {
        second: bool,
        page: u8,
        unit: (u8, u8),
        shot: Option<Shot>,
    },
    /// Two neighbours that are mapped, used, changed, forgotten with one command of the first, and used again.
    Round {
        stream: usize,
        of_vm: bool,
        unit: (u8, u8),
        other: (u8, u8),
        near: u8,
        /// The first is only so far, if its walk takes longer, when things change.
        steps: u8,
        leaf: What,
        what: What,
        shot: Shot,
    },
}

pub(crate) fn leaf() -> impl Strategy<Value = What> {
    (any::<[bool; 3]>(), 0..8u8, any::<(u8, u8)>()).prop_map(|([read_only, global, contiguous], rare, to)| {
        What::Leaf { read_only: read_only && rare < 4, global: global && rare % 4 == 0, contiguous, to }
    })
}

pub(crate) fn what() -> impl Strategy<Value = What> {
    prop_oneof![2 => Just(What::Nothing), 1 => Just(What::Table), 8 => leaf()]
}

pub(crate) fn shot() -> impl Strategy<Value = Shot> {
    let more = prop_oneof![6 => Just(0i8), 1 => Just(-1), 1 => Just(1)];
    let offset = prop_oneof![Just(0u64), any::<u64>()];
    let wrong = prop_oneof![4 => Just(0u8), 1 => 1..4u8];
    (any::<u8>(), any::<bool>(), any::<bool>(), 0..8u8, 0..6u8, more, wrong, offset).prop_map(
        |(operation, ranged, leaf, ttl, split, more, wrong, offset)| Shot {
            operation,
            ranged,
            leaf,
            ttl,
            split,
            more,
            wrong,
            offset,
        },
    )
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let pick = || (0..6u8, 0..10u8);
    let offset = || prop_oneof![Just(0u64), any::<u64>()];
    prop_oneof![
        6 => (0..SPACES, pick(), what(), proptest::option::of(shot())).prop_map(|(s, u, w, c)| Op::Write(s, u, w, c)),
        4 => (0..SPACES, pick(), shot()).prop_map(|(s, u, c)| Op::Forget(s, u, c)),
        12 => (0..STREAMS, pick(), offset(), any::<bool>())
            .prop_map(|(stream, unit, offset, write)| Op::Access { stream, unit, offset, write }),
        2 => (0..STREAMS, pick(), 0..30u8).prop_map(|(stream, unit, steps)| Op::Begin { stream, unit, steps }),
        1 => (0..STREAMS, 0..3u8).prop_map(|(s, how)| Op::Configuration(s, how)),
        2 => (any::<bool>(), 0..8u8, pick(), proptest::option::of(shot()))
            .prop_map(|(second, page, unit, shot)| Op::Blink { second, page, unit, shot }),
        8 => (0..STREAMS, any::<bool>(), [pick(), pick()], (0..6u8, 0..40u8), leaf(), what(), shot()).prop_map(
            |(stream, of_vm, [unit, other], (near, steps), leaf, what, shot)| Op::Round {
                stream, of_vm, unit, other, near, steps, leaf, what, shot
            }
        ),
    ]
}

pub(crate) fn config() -> impl Strategy<Value = Config> {
    let sizes = || proptest::sample::select(vec![0u32, 4, 16, 4096, Config::UNLIMITED]);
    let unaligned = prop_oneof![Just(Unaligned::Granule), Just(Unaligned::Block), Just(Unaligned::Nothing)];
    (sizes(), sizes(), sizes(), sizes(), any::<[bool; 7]>(), unaligned, any::<u64>()).prop_map(
        |(
            tlb,
            s2,
            walks,
            configs,
            [contiguous, combined, split_fetch, ds, random, keep, xnx],
            unaligned,
            seed,
        )| {
            // In half of the cases that keep all, some does not fit.
            let (keep_all, unlimited) = (keep, keep && seed % 2 == 0);
            let size = |size: u32| if unlimited { Config::UNLIMITED } else { size };
            Config {
                tlb: size(tlb),
                s2_cache: size(s2),
                walk_cache: size(walks),
                ste_cache: size(configs),
                cd_cache: size(configs),
                l1std_cache: size(configs),
                l1cd_cache: size(configs),
                replace: if random { Replace::Random } else { Replace::Lru },
                seed,
                keep_all,
                combined,
                contiguous,
                split_fetch,
                xnx,
                ds,
                tlbi_unaligned: unaligned,
                hyp: true,
                stt: true,
                oas: 52,
                vax52: true,
                ..Config::linux()
            }
        },
    )
}

pub(crate) fn stages(ds: bool) -> impl Strategy<Value = [Stage; SPACES]> {
    let first = || stage(false, false, ds);
    (first(), first(), first(), first(), first(), stage(true, true, ds), stage(true, false, ds))
        .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g])
}
