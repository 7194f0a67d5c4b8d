//! What one SMMU implements: its ID registers' content, sizes of its caches, IMPLEMENTATION DEFINED choices.

mod text;

use serde::{Deserialize, Serialize};

pub use self::text::{ConfigError, KEYS};
use crate::spec::registers as r;

/// IDR0.STALL_MODEL: which fault models exist (section 6.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StallModel {
    /// Stall and Terminate, as the CD or STE says.
    Both,
    /// Terminate only: CD.S, STE.S1STALLD and STE.S2S must be 0.
    None,
    /// Stall only: CD.S and STE.S2S must be 1.
    Forced,
}

/// Which entry of a full cache gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replace {
    /// The least recently used.
    Lru,
    /// Any: the seed says which.
    Random,
}

/// What a TLBI by range removes whose address is not aligned as TTL wants (section 4.4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unaligned {
    /// A range from the granule that the address is in.
    Granule,
    /// A range from the block that the address is in.
    Block,
    /// Nothing.
    Nothing,
}

/// The implementation. [`Config::linux`] is the default; [`Config::parse`] reads the command line's form.
///
/// Only what works is offered here: a feature has a field once its behaviour is complete and tested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// IDR0.S1P: stage 1.
    pub s1p: bool,
    /// IDR0.S2P: stage 2, and both stages nested.
    pub s2p: bool,
    /// IDR0.COHACC: table walks, queues and structures are coherent with the CPUs' caches.
    pub cohacc: bool,
    /// IDR0.ASID16: 16-bit ASIDs, else 8.
    pub asid16: bool,
    /// IDR0.VMID16: 16-bit VMIDs, else 8.
    pub vmid16: bool,
    /// IDR0.STALL_MODEL.
    pub stall: StallModel,
    /// IDR0.TERM_MODEL is 0: CD.A=0 is legal and terminates as RAZ/WI.
    pub term_razwi: bool,
    /// IDR0.ST_LEVEL: two-level stream tables beside linear ones.
    pub st2l: bool,
    /// IDR0.CD2L: two-level CD tables beside linear ones.
    pub cd2l: bool,
    /// IDR0.HTTU: 0, or hardware sets access flags (1), dirty state (2), and access flags of tables (3).
    pub httu: u8,
    /// IDR0.HYP: EL2 stream worlds.
    pub hyp: bool,
    /// IDR0.ATS: Translation Requests, Translated transactions, ATC_INV.
    pub ats: bool,
    /// IDR0.NS1ATS is 0: split-stage ATS, of streams with both stages.
    pub ats_split: bool,
    /// IDR0.ATSRECERR: CR2.REC_CFG_ATS has errors of the configuration recorded for ATS, too.
    pub atsrecerr: bool,
    /// IDR0.PRI: page requests.
    pub pri: bool,
    /// IDR3.PPS: the SMMU's own responses to page requests have their PASID, whatever STE.PPAR says.
    pub pps: bool,
    /// IDR0.ATOS: software asks for translations through registers.
    pub atos: bool,
    /// IDR0.VATOS: a virtual machine does, through a page of its own.
    pub vatos: bool,
    /// IDR0.VMW: VMID wildcards.
    pub vmw: bool,
    /// IDR0.SEV: CMD_SYNC can signal an event to the CPUs.
    pub sev: bool,
    /// IDR0.MSI: the SMMU's own interrupts can be MSIs.
    pub msi: bool,
    /// IDR1.SIDSIZE, 0 to 32.
    pub sidsize: u8,
    /// IDR1.SSIDSIZE, 0 to 20.
    pub ssidsize: u8,
    /// IDR1.CMDQS: log2 of the largest command queue, 0 to 19.
    pub cmdqs: u8,
    /// Enhanced command queues of the control page: 0 for none (IDR1.ECMDQ), or a power of two to 256.
    pub ecmdq: u16,
    /// IDR1.EVENTQS: log2 of the largest event queue, 0 to 19.
    pub eventqs: u8,
    /// IDR1.PRIQS: log2 of the largest PRI queue, 0 to 19.
    pub priqs: u8,
    /// IDR3.HAD: hierarchical attributes can be disabled.
    pub had: bool,
    /// IDR3.XNX: stage-2 execute-never by privilege.
    pub xnx: bool,
    /// IDR3.FWB: stage 2 can say the memory type by itself.
    pub fwb: bool,
    /// IDR3.STT: small tables, TxSZ up to 48.
    pub stt: bool,
    /// IDR3.E0PD: unprivileged accesses can be kept from one half of the addresses.
    pub e0pd: bool,
    /// IDR3.MTEPERM: the stage 2 encodings of NoTagAccess are write-back, not reserved.
    pub mteperm: bool,
    /// IDR3.RIL: range invalidation and level hints.
    pub ril: bool,
    /// IDR3.BBML: how table changes without break-before-make are taken, 0 to 2.
    pub bbml: u8,
    /// IDR5.GRAN4K.
    pub gran4k: bool,
    /// IDR5.GRAN16K.
    pub gran16k: bool,
    /// IDR5.GRAN64K.
    pub gran64k: bool,
    /// IDR5.OAS in bits: 32, 36, 40, 42, 44, 48 or 52.
    pub oas: u8,
    /// IDR5.VAX: 52-bit virtual addresses, with the 64 KiB granule or with `ds`.
    pub vax52: bool,
    /// IDR5.DS: 52-bit addresses with the 4 and 16 KiB granules.
    pub ds: bool,
    /// IIDR: who made it. Drivers match errata on this.
    pub iidr: u32,
    /// AIDR: architecture version, 0 to 4 for SMMUv3.0 to 3.4.
    pub aidr: u8,

    /// Entries of the IOTLB, rounded up to a power of two; 0 for none, [`Config::UNLIMITED`]. So are the other caches'.
    pub tlb: u32,
    /// Cached stage 2 translations, of nested walks as well.
    pub s2_cache: u32,
    /// Cached tables of each level.
    pub walk_cache: u32,
    /// Cached STEs.
    pub ste_cache: u32,
    /// Cached level 1 stream table descriptors.
    pub l1std_cache: u32,
    /// Cached CDs.
    pub cd_cache: u32,
    /// Cached level 1 CD table descriptors.
    pub l1cd_cache: u32,
    /// Which entry of a full cache gives way.
    pub replace: Replace,
    /// Seed of `replace=random`.
    pub seed: u64,
    /// Retention: what no command has to remove is kept. Set by the option of the same name, which makes all caches
    /// unlimited, too.
    pub keep_all: bool,
    /// The IOTLB holds nested translations as one, from VA to PA; else from VA to IPA, and stage 2 apart.
    pub combined: bool,
    /// STEs, CDs and level 1 descriptors that are not valid are cached, too (section 3.21.3).
    pub cache_invalid: bool,
    /// Counters of the performance monitors' group, 0 for none to 64.
    pub pmcg: u8,
    /// Bits of those counters: 32, 36, 40, 44, 48 or 64.
    pub pmcg_bits: u8,
    /// Event records that say the same, and have not been written yet, are merged where that is allowed (section 7.3.1).
    pub merge: bool,
    /// Stalls for what a transaction of the same stream stalls for already are not recorded (section 3.12.2.1).
    pub stall_suppress: bool,
    /// A stalled transaction is tried again whenever its device asks, whether or not software has answered (section
    /// 3.12.2.2).
    pub stall_retry: bool,
    /// Registers hold address bits above OAS; else those are RES0. They are not used in either case (section 6.3).
    pub wide_addresses: bool,
    /// Addresses of STEs beyond OAS are truncated; else they give F_STE_FETCH (section 3.4.3).
    pub ste_truncate: bool,
    /// Addresses of CDs beyond IAS are faults of the configuration; else stage 2 does not translate them (section 3.4.3).
    pub cd_ipa_check: bool,
    /// A field of CR0 that is written again before its update is complete has the last value; else the first (section
    /// 6.3.9).
    pub cr0_last: bool,
    /// What an unaligned range removes (section 4.4.1.1).
    pub tlbi_unaligned: Unaligned,
    /// Entries of several sizes for one address give F_TLB_CONFLICT, not the translation of the smallest (section
    /// 3.21.1).
    pub tlb_conflict: bool,
    /// Prefetch commands fill the caches, one fetch a step; else they do nothing (section 4.2).
    pub prefetch: bool,
    /// Commands with a reserved field that is not 0 are illegal (section 4.1.5).
    pub strict_commands: bool,
    /// The wired interrupt of a source is raised beside its MSI, not only instead of it (section 3.18).
    pub wires: bool,
    /// Nanoseconds from CMDQ_PROD's write, or from the last command, to a command's effect. The model knows no time: the
    /// latencies are for whoever steps it.
    pub lat_cmd: u32,
    /// Nanoseconds that one fetch of a walk takes, on top of the device's own step.
    pub lat_walk: u32,
    /// Nanoseconds until an event or page request record is written.
    pub lat_event: u32,
    /// Nanoseconds until an MSI is written.
    pub lat_msi: u32,
    /// Event records that wait for their turn to be written; more are dropped as if the queue were full.
    pub event_fifo: u32,
    /// The Contiguous hint makes one IOTLB entry of its pages.
    pub contiguous: bool,
    /// STEs and CDs are fetched in eight 8-byte steps, not one of 64 bytes.
    pub split_fetch: bool,
    /// GBPA.ABORT resets to 1.
    pub gbpa_abort: bool,
    /// EVENTQ_PROD and CONS answer at their offsets in page 0 as well (CONSTRAINED UNPREDICTABLE, section 6.2).
    pub page0_alias: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config::linux()
    }
}

impl Config {
    /// The size of a cache that forgets nothing until it has a great many entries (docs/smmu-model.md, Caches).
    pub const UNLIMITED: u32 = u32::MAX;

    /// What Linux makes best use of: both stages, two-level stream tables, MSIs, range invalidation.
    #[must_use]
    pub fn linux() -> Self {
        Config {
            s1p: true,
            s2p: true,
            cohacc: true,
            asid16: true,
            vmid16: true,
            stall: StallModel::None,
            stall_suppress: false,
            stall_retry: false,
            wide_addresses: true,
            ste_truncate: false,
            cd_ipa_check: false,
            cr0_last: false,
            tlbi_unaligned: Unaligned::Granule,
            term_razwi: false,
            st2l: true,
            cd2l: false,
            httu: 0,
            hyp: false,
            vmw: false,
            atos: false,
            vatos: false,
            ats: false,
            ats_split: false,
            atsrecerr: false,
            pri: false,
            pps: false,
            sev: true,
            msi: true,
            sidsize: 16,
            ssidsize: 0,
            cmdqs: 16,
            ecmdq: 0,
            eventqs: 16,
            priqs: 16,
            had: true,
            xnx: false,
            fwb: false,
            stt: false,
            e0pd: false,
            mteperm: false,
            ril: true,
            bbml: 0,
            gran4k: true,
            gran16k: true,
            gran64k: true,
            oas: 44,
            vax52: false,
            ds: false,
            iidr: 0,
            aidr: 2,
            tlb: 4096,
            s2_cache: 1024,
            walk_cache: 256,
            ste_cache: 256,
            l1std_cache: 64,
            cd_cache: 256,
            l1cd_cache: 64,
            replace: Replace::Lru,
            seed: 0,
            keep_all: false,
            combined: true,
            cache_invalid: false,
            pmcg: 0,
            pmcg_bits: 64,
            merge: false,
            tlb_conflict: false,
            prefetch: false,
            strict_commands: false,
            wires: true,
            lat_cmd: 100,
            lat_walk: 0,
            lat_event: 100,
            lat_msi: 50,
            event_fifo: 64,
            contiguous: true,
            split_fetch: false,
            gbpa_abort: false,
            page0_alias: false,
        }
    }

    /// The ID registers of QEMU's model, stage 1.
    #[must_use]
    pub fn qemu() -> Self {
        Config {
            s2p: false,
            sev: false,
            msi: false,
            cmdqs: 19,
            eventqs: 19,
            bbml: 2,
            walk_cache: 0,
            l1std_cache: 0,
            aidr: 1,
            page0_alias: true,
            ..Config::linux()
        }
    }

    /// Everything the model has.
    #[must_use]
    pub fn full() -> Self {
        Config {
            stall: StallModel::Both,
            term_razwi: true,
            cd2l: true,
            httu: 3,
            hyp: true,
            vmw: true,
            atos: true,
            vatos: true,
            ats: true,
            ats_split: true,
            atsrecerr: true,
            pri: true,
            sidsize: 24,
            ssidsize: 20,
            cmdqs: 19,
            eventqs: 19,
            priqs: 19,
            xnx: true,
            fwb: true,
            stt: true,
            e0pd: true,
            mteperm: true,
            oas: 52,
            vax52: true,
            ds: true,
            aidr: 4,
            pmcg: 8,
            ecmdq: 16,
            ..Config::linux()
        }
    }

    /// The bits of registers with addresses that are stored.
    pub(crate) fn stored(&self) -> u64 {
        let beyond = u64::MAX >> 8 & !((1 << self.oas) - 1);
        if self.wide_addresses { u64::MAX } else { !beyond }
    }

    /// Bytes of the register pages, from page 0 on (section 6.1).
    #[must_use]
    pub fn window(&self) -> u64 {
        match (self.vatos, self.ecmdq) {
            (true, _) => r::VATOS_END,
            (false, 0) => r::WINDOW,
            (false, _) => r::ECMDQ_END,
        }
    }

    pub(crate) fn pmcg_shape(&self) -> Option<crate::pmcg::Shape> {
        (self.pmcg != 0).then_some(crate::pmcg::Shape {
            counters: self.pmcg,
            bits: self.pmcg_bits,
            sidsize: self.sidsize,
            msi: self.msi,
            ats: self.ats,
            oas: self.oas,
            iidr: self.iidr,
        })
    }

    /// Whether an implementation like this can exist.
    ///
    /// # Errors
    /// Says what contradicts.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fits = |entries, most| entries <= most || entries == Config::UNLIMITED;
        let rules = [
            (self.s1p || self.s2p, "neither stage 1 (s1p) nor stage 2 (s2p) is on"),
            (self.sidsize <= 32, "sidsize is at most 32"),
            (self.ssidsize <= 20, "ssidsize is at most 20"),
            (
                self.cmdqs <= 19 && self.eventqs <= 19 && self.priqs <= 19,
                "cmdqs, eventqs and priqs are at most 19",
            ),
            (
                self.ats || !self.ats_split && !self.atsrecerr && !self.pri,
                "ats_split, atsrecerr and pri need ats",
            ),
            (!self.ats_split || self.s1p && self.s2p, "ats_split needs s1p and s2p"),
            (self.pri || !self.pps, "pps needs pri"),
            (
                self.ecmdq == 0 || self.ecmdq.is_power_of_two() && self.ecmdq <= 256,
                "ecmdq is 0 or a power of two up to 256",
            ),
            (self.ecmdq == 0 || self.cohacc && self.msi, "ecmdq needs cohacc and msi"),
            (!self.cr0_last || self.aidr <= 1, "cr0_last needs aidr 0 or 1"),
            (
                self.stall != StallModel::None || !self.stall_suppress && !self.stall_retry,
                "stall_suppress and stall_retry need stall",
            ),
            (self.bbml <= 2, "bbml is 0, 1 or 2"),
            (!self.tlb_conflict || self.bbml < 2, "with bbml=2 there is no TLB conflict"),
            (self.httu <= 3, "httu is 0 to 3"),
            (matches!(self.oas, 32 | 36 | 40 | 42 | 44 | 48 | 52), "oas is 32, 36, 40, 42, 44, 48 or 52"),
            (self.gran4k || self.gran16k || self.gran64k, "no granule is on"),
            (self.oas < 52 || self.gran64k || self.ds, "oas=52 needs gran64k or ds"),
            (!self.vax52 || self.gran64k || self.ds, "vax52 needs gran64k or ds"),
            (
                !self.ds || self.vax52 && (self.gran4k || self.gran16k),
                "ds needs vax52, and gran4k or gran16k",
            ),
            (self.atos || !self.vatos, "vatos needs atos"),
            (self.s1p && self.s2p || !self.vatos, "vatos needs s1p and s2p"),
            (self.s1p || self.ssidsize == 0, "ssidsize needs s1p"),
            (self.ssidsize > 0 || !self.cd2l, "cd2l needs ssidsize"),
            (self.sidsize <= 16 || self.st2l, "sidsize above 16 needs st2l"),
            (self.s2p || !self.vmw, "vmw needs s2p"),
            (self.s2p || !self.xnx && !self.fwb && !self.mteperm, "xnx, fwb and mteperm need s2p"),
            (self.aidr <= 4, "aidr is at most 4"),
            (
                [self.tlb, self.s2_cache, self.walk_cache].into_iter().all(|n| fits(n, 1 << 24)),
                "tlb, s2_cache and walk_cache are at most 16777216, or unlimited",
            ),
            (
                [self.ste_cache, self.l1std_cache, self.cd_cache, self.l1cd_cache]
                    .into_iter()
                    .all(|n| fits(n, 1 << 20)),
                "ste_cache, l1std_cache, cd_cache and l1cd_cache are at most 1048576, or unlimited",
            ),
            (self.pmcg <= 64, "pmcg is at most 64"),
            (matches!(self.pmcg_bits, 32 | 36 | 40 | 44 | 48 | 64), "pmcg_bits is 32, 36, 40, 44, 48 or 64"),
            ((1..=1 << 16).contains(&self.event_fifo), "event_fifo is 1 to 65536"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(ConfigError::Inconsistent(rule)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid() {
        for preset in [Config::linux(), Config::qemu(), Config::full()] {
            assert_eq!(preset.validate(), Ok(()));
        }
    }
}
