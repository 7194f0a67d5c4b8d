//! What the leaves of a walk say, in the form of the IOTLB.

use pgtable::{Controls, Leaf, Permissions};

use super::context::Context;
use super::stream::Stage2Config;
use crate::cache::{Mapping, World};
use crate::config::Config;
use crate::transaction::MemAttrs;

impl Mapping {
    /// Of a leaf of stage 1, which permits `possible`.
    #[inline]
    pub(super) fn stage1(
        leaf: &Leaf,
        possible: Permissions,
        context: &Context,
        world: World,
        config: &Config,
    ) -> Self {
        let shift = entry_shift(leaf, config);
        Mapping {
            output: leaf.pa >> shift << shift,
            shift,
            span: shift,
            granule: leaf.granule(),
            level: leaf.level,
            global: !leaf.ng() && world != World::El2,
            uncached: is_uncached(leaf, config),
            permissions: so_far(leaf, possible),
            possible,
            attrs: MemAttrs::stage1(leaf, context.mair),
            fwb: None,
        }
    }

    /// Of a leaf of stage 2, which permits `possible`.
    #[inline]
    pub(super) fn stage2(leaf: &Leaf, possible: Permissions, stage2: &Stage2Config, config: &Config) -> Self {
        let shift = entry_shift(leaf, config);
        Mapping {
            output: leaf.pa >> shift << shift,
            shift,
            span: shift,
            granule: stage2.tables.granule,
            level: leaf.level,
            global: false,
            uncached: is_uncached(leaf, config),
            permissions: so_far(leaf, possible),
            possible,
            attrs: MemAttrs::stage2(leaf, stage2.fwb, config.mteperm),
            fwb: stage2.fwb.then(|| leaf.mem_attr()),
        }
    }

    /// Both stages together: this one is of stage 1, whose output `second` puts at `pa`.
    #[inline]
    pub(super) fn through(&self, second: &Mapping, pa: u64) -> Self {
        let shift = self.shift.min(second.shift);
        Mapping {
            output: pa >> shift << shift,
            shift,
            uncached: self.uncached || second.uncached,
            permissions: self.permissions & second.permissions,
            attrs: second.over(self.attrs),
            ..*self
        }
    }
}

/// What a stage 2 leaf permits.
#[inline(always)]
pub(super) fn stage2_permissions(leaf: &Leaf, config: &Config) -> Permissions {
    leaf.permissions(&Controls { xnx: config.xnx, ..Controls::default() })
}

/// log2 of the bytes that one entry for the leaf covers.
#[inline]
fn entry_shift(leaf: &Leaf, config: &Config) -> u8 {
    let size = if config.contiguous { leaf.span() } else { leaf.size };
    (size.trailing_zeros() & 63) as u8
}

/// A block with nT set: with BBML 1 it is translated by, and not cached (section 3.21.1.2).
/// So is a leaf whose access flag a lookup has left clear (chapter 9).
#[inline]
fn is_uncached(leaf: &Leaf, config: &Config) -> bool {
    config.bbml == 1 && leaf.level < 3 && leaf.descriptor >> 16 & 1 == 1 || leaf.needs_af()
}

/// What a leaf permits before hardware marks it dirty.
#[inline]
fn so_far(leaf: &Leaf, possible: Permissions) -> Permissions {
    if leaf.needs_dirty() { possible - (Permissions::PRIV_WRITE | Permissions::USER_WRITE) } else { possible }
}
