//! From an STE in memory to what it means, or C_BAD_STE (section 5.2).

use pgtable::{Granule, Stage2, output_bits};
use serde::{Deserialize, Serialize};

use super::context::Context;
use crate::cache::{Regime, World};
use crate::config::{Config, StallModel};
use crate::spec::keep;
use crate::spec::ste::Ste;
use crate::transaction::{MemAttrs, Shareability, Transaction};

/// STE.Config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Path {
    /// Every transaction is terminated, and nothing recorded.
    #[default]
    Abort,
    /// C_BAD_STE: an invalid STE, where those are cached.
    Invalid,
    /// Both stages are bypassed.
    Bypass,
    /// Stage 1 only.
    Stage1,
    /// Stage 2 only.
    Stage2,
    /// Stage 1, then stage 2.
    Nested,
}

impl Path {
    pub(crate) fn has_stage1(self) -> bool {
        matches!(self, Path::Stage1 | Path::Nested)
    }

    pub(crate) fn has_stage2(self) -> bool {
        matches!(self, Path::Stage2 | Path::Nested)
    }
}

/// Where a stream's CDs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CdTable {
    /// S1ContextPtr.
    pub(crate) base: u64,
    /// log2 of the CDs that a level 2 table has; `None` for a linear table.
    pub(crate) split: Option<u8>,
    /// S1CDMax: log2 of the number of CDs.
    pub(crate) max: u8,
}

/// What an STE, or GBPA, replaces in incoming transactions (section 13.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overrides {
    pub(crate) privcfg: u8,
    pub(crate) instcfg: u8,
    pub(crate) shcfg: u8,
    /// MemAttr, if MTCFG says so.
    pub(crate) memattr: Option<u8>,
}

/// Stage 2 of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage2Config {
    pub(crate) tables: Stage2,
    /// S2FWB.
    pub(crate) fwb: bool,
    /// S2PTW: stage 1 tables must not be in Device memory.
    pub(crate) ptw: bool,
    /// S2S: faults stall.
    pub(crate) stall: bool,
    /// S2R: faults are recorded.
    pub(crate) record: bool,
    /// S2HAFT: table descriptors have access flags, which hardware sets.
    pub(crate) haft: bool,
}

/// STE.EATS: what a device may do with ATS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Eats {
    /// Nothing.
    #[default]
    Off,
    /// Have addresses translated by all stages, and use them untranslated.
    Full,
    /// Have addresses translated by stage 1; their use is translated by stage 2.
    Split,
}

/// A decoded, valid STE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) path: Path,
    pub(crate) world: World,
    pub(crate) cds: CdTable,
    /// S1DSS.
    pub(crate) dss: u8,
    pub(crate) vmid: u16,
    pub(crate) stall_disabled: bool,
    /// MEV: events may be merged.
    pub(crate) mev: bool,
    pub(crate) stage2: Stage2Config,
    pub(crate) overrides: Overrides,
    pub(crate) eats: Eats,
    /// PPAR: automatic responses to page requests have their PASID.
    pub(crate) ppar: bool,
}

/// C_BAD_STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadSte;

impl Stream {
    /// Whose translations those of stage 1, or of both stages, are.
    #[inline]
    pub(super) fn regime(&self, context: &Context) -> Regime {
        Regime { world: self.world, vmid: self.vmid, asid: context.asid, aset: context.aset }
    }

    /// Whose those of stage 2 alone are.
    #[inline]
    pub(super) fn stage2_regime(&self) -> Regime {
        Regime { world: World::NsEl1Stage2, vmid: self.vmid, ..Regime::default() }
    }

    /// Decodes an STE. `e2h` is CR2.E2H.
    pub(crate) fn decode(ste: &Ste, config: &Config, e2h: bool) -> Result<Self, BadSte> {
        let require = |holds: bool| if holds { Ok(()) } else { Err(BadSte) };
        require(ste.v())?;
        let path = match ste.config() {
            0..=3 => return Ok(Stream { ppar: config.pri && ste.ppar(), ..Stream::default() }),
            4 => Path::Bypass,
            5 => Path::Stage1,
            6 => Path::Stage2,
            _ => Path::Nested,
        };
        require(config.s1p || !path.has_stage1())?;
        require(config.s2p || !path.has_stage2())?;
        let mut stream = Stream {
            path,
            overrides: Overrides {
                privcfg: ste.privcfg() as u8,
                instcfg: ste.instcfg() as u8,
                shcfg: ste.shcfg() as u8,
                memattr: ste.mtcfg().then(|| ste.memattr() as u8),
            },
            stall_disabled: ste.s1stalld(),
            mev: ste.mev(),
            ppar: config.pri && ste.ppar(),
            ..Stream::default()
        };
        if config.s2p {
            // NS-EL1 streams are tagged with a VMID even where stage 2 is bypassed.
            stream.vmid = ste.s2vmid() as u16;
            require(config.vmid16 || stream.vmid <= 0xff)?;
        }
        if path.has_stage1() {
            stream.decode_stage1(ste, config, e2h)?;
        }
        if path.has_stage2() {
            stream.decode_stage2(ste, config)?;
        }
        // Ignored without ATS, and with both stages bypassed.
        if config.ats && path != Path::Bypass {
            let stalls = path.has_stage2() && ste.s2s();
            stream.eats = match ste.eats() {
                1 => Eats::Full,
                2 => Eats::Split,
                // 3 is reserved without a DPT.
                _ => Eats::Off,
            };
            require(stream.eats == Eats::Off || !stalls)?;
            require(stream.eats != Eats::Split || path == Path::Nested && config.ats_split)?;
        }
        Ok(stream)
    }

    /// Every transaction is terminated.
    pub(crate) fn aborts(&self) -> bool {
        self.path == Path::Abort
    }

    fn decode_stage1(&mut self, ste: &Ste, config: &Config, e2h: bool) -> Result<(), BadSte> {
        let require = |holds: bool| if holds { Ok(()) } else { Err(BadSte) };
        // With stage 2 as well, or without EL2, the StreamWorld is NS-EL1 and STRW is ignored.
        self.world = match ste.strw() {
            _ if self.path == Path::Nested || !config.hyp => World::NsEl1,
            0 => World::NsEl1,
            2 if e2h => World::El2E2h,
            2 => World::El2,
            _ => return Err(BadSte),
        };
        if self.world != World::NsEl1 {
            self.vmid = 0;
        }
        require(!ste.s1stalld() || config.stall == StallModel::Both)?;
        let max = if config.ssidsize == 0 { 0 } else { ste.s1cdmax() as u8 };
        require(max <= config.ssidsize)?;
        let split = match (max, ste.s1fmt()) {
            (0, _) | (_, 0) => None,
            _ if !config.cd2l => return Err(BadSte),
            (_, 1) => Some(6),
            (_, 2) => Some(10),
            // Reserved, behaves as linear.
            _ => None,
        };
        // Section 3.4.3. An IPA is left to stage 2.
        let left = self.path == Path::Nested && !config.cd_ipa_check;
        require(left || ste.s1contextptr() >> config.oas == 0)?;
        self.cds = CdTable { base: ste.s1contextptr(), split, max };
        // The reserved value terminates, too.
        self.dss = if ste.s1dss() == 3 { 0 } else { ste.s1dss() as u8 };
        Ok(())
    }

    fn decode_stage2(&mut self, ste: &Ste, config: &Config) -> Result<(), BadSte> {
        let require = |holds: bool| if holds { Ok(()) } else { Err(BadSte) };
        require(ste.s2aa64() && !ste.s2endi())?;
        require((!ste.s2ha() || config.httu >= 1) && (!ste.s2hd() || config.httu >= 2))?;
        // Without IDR0.HTTU 0b11, S2HAFT is RES0.
        require(config.httu < 3 || !ste.s2haft() || ste.s2ha())?;
        let granule = granule(Granule::from_tg0(ste.s2tg() as u8), config).ok_or(BadSte)?;
        let oas = output_bits(ste.s2ps() as u8).min(config.oas);
        let wide = if granule == Granule::G64K { oas == 52 } else { config.ds && ste.s2ds() };
        let sl0_2 = config.ds && granule == Granule::G4K && wide && ste.s2sl0_2();
        // With 52 bits of output, tables are aligned to 64 bytes at least.
        let ttb = keep(ste.s2ttb(), 51, if oas == 52 { 6 } else { 4 });
        let tables = Stage2 {
            granule,
            tsz: ste.s2t0sz() as u8,
            sl0: ste.s2sl0() as u8 | u8::from(sl0_2) << 2,
            ttb,
            oas,
            affd: ste.s2affd(),
            ttst: config.stt,
            ha: ste.s2ha(),
            hd: ste.s2hd(),
            pa52: wide,
            sh: ste.s2sh0() as u8,
        };
        require(tables.fits(config.oas))?;
        // Without 52-bit descriptors, addresses end at 48 bits.
        require(ste.s2ttb() >> if wide { oas } else { oas.min(48) } == 0)?;
        require(match config.stall {
            StallModel::Both => true,
            StallModel::None => !ste.s2s(),
            StallModel::Forced => ste.s2s(),
        })?;
        let fwb = config.fwb && ste.s2fwb();
        self.stage2 = Stage2Config {
            tables,
            fwb,
            ptw: ste.s2ptw(),
            stall: ste.s2s(),
            record: ste.s2r(),
            haft: config.httu == 3 && ste.s2haft(),
        };
        Ok(())
    }
}

/// A granule, if it is implemented.
pub(crate) fn granule(granule: Option<Granule>, config: &Config) -> Option<Granule> {
    granule.filter(|granule| match granule {
        Granule::G4K => config.gran4k,
        Granule::G16K => config.gran16k,
        Granule::G64K => config.gran64k,
    })
}

impl Overrides {
    /// The transaction with the privilege and the instruction flag that the stream gives it. Writes are always data.
    #[inline]
    pub(crate) fn access(&self, t: &Transaction) -> Transaction {
        let privileged = match self.privcfg {
            2 => false,
            3 => true,
            _ => t.privileged,
        };
        let instruction = match self.instcfg {
            2 => false,
            3 => true,
            _ => t.instruction,
        };
        Transaction { privileged, instruction: instruction && t.kind.is_read(), ..*t }
    }

    /// The attributes of a transaction that stage 1 does not translate.
    pub(crate) fn attrs(&self, incoming: MemAttrs) -> MemAttrs {
        let mair = self.memattr.map_or(incoming.mair, super::attrs::mair_of_memattr);
        let shareability = match self.shcfg {
            1 => incoming.shareability,
            sh => Shareability::from_sh(sh),
        };
        MemAttrs { mair, shareability }.normalised()
    }
}
