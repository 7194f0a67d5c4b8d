//! From a CD in memory to what it means, or C_BAD_CD (section 5.4).

use pgtable::{Controls, Fault, FaultKind, Granule, Half, Ranges, Stage1, output_bits};
use serde::{Deserialize, Serialize};

use super::stream::{Stream, granule};
use crate::cache::World;
use crate::config::{Config, StallModel};
use crate::spec::align;
use crate::spec::cd::Cd;
use crate::transaction::Transaction;

/// A decoded, valid CD, as its stream sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// C_BAD_CD: an invalid CD, where those are cached. Nothing else of it counts.
    pub(crate) bad: bool,
    pub(crate) asid: u16,
    pub(crate) aset: bool,
    pub(crate) ranges: Ranges,
    pub(crate) lower: Stage1,
    pub(crate) upper: Stage1,
    pub(crate) controls: Controls,
    /// HAFT: table descriptors have access flags, which hardware sets.
    pub(crate) haft: bool,
    /// E0PD0 and E0PD1.
    pub(crate) e0pd: [bool; 2],
    /// MAIR0 and MAIR1.
    pub(crate) mair: u64,
    /// R: faults are recorded.
    pub(crate) record: bool,
    /// A: a terminated transaction aborts.
    pub(crate) abort: bool,
    /// S: faults stall.
    pub(crate) stall: bool,
}

/// C_BAD_CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadCd;

impl Context {
    /// The half of the addresses that a transaction belongs to, or a translation fault.
    #[inline]
    pub(crate) fn select(&self, t: &Transaction) -> Result<Half, Fault> {
        let half = self.ranges.select(t.address)?;
        match self.e0pd[usize::from(half == Half::Upper)] && !t.privileged {
            false => Ok(half),
            true => Err(Fault::new(FaultKind::Translation, 0)),
        }
    }

    /// Whether an address that [`Ranges::select`] accepts is TTB1's.
    pub(crate) fn is_upper(&self, address: u64) -> bool {
        self.ranges.select(address) == Ok(Half::Upper)
    }

    /// Decodes a CD that `stream` points at.
    pub(crate) fn decode(cd: &Cd, stream: &Stream, config: &Config) -> Result<Self, BadCd> {
        let require = |holds: bool| if holds { Ok(()) } else { Err(BadCd) };
        require(cd.v() && cd.aa64())?;
        require((!cd.ha() || config.httu >= 1) && (!cd.hd() || config.httu >= 2))?;
        // Without IDR0.HTTU 0b11, HAFT is RES0.
        require(config.httu < 3 || !cd.haft() || cd.ha())?;
        require(match config.stall {
            StallModel::Both => !(cd.s() && stream.stall_disabled),
            StallModel::None => !cd.s(),
            StallModel::Forced => cd.s(),
        })?;
        require(cd.a() || config.term_razwi)?;
        // EL2 without E2H has TTB0 only and no ASID.
        let single = stream.world == World::El2;
        let (epd0, epd1) = (cd.epd0() && !single, cd.epd1() || single);
        // Without any walk, their endianness does not matter.
        require(!cd.endi() || epd0 && epd1)?;
        let asid = if single { 0 } else { cd.asid() as u16 };
        require(config.asid16 || asid <= 0xff)?;
        // In front of stage 2 the output is an IPA of IAS bits; IAS is OAS without AArch32.
        let oas = output_bits(cd.ips() as u8).min(config.oas);
        let table = |upper: bool, tg: Option<Granule>, tsz: u64, ttb: u64, sh: u64, had: bool| {
            let granule = granule(tg, config).ok_or(BadCd)?;
            let wide = granule == Granule::G64K;
            // With 52 bits of output, tables are aligned to 64 bytes at least.
            let ttb = if oas == 52 { align(ttb, 6) } else { ttb };
            let table = Stage1 {
                granule,
                tsz: tsz as u8,
                ttb,
                oas,
                upper,
                hpd: had && config.had,
                affd: cd.affd(),
                ha: cd.ha(),
                hd: cd.hd(),
                single,
                pa52: if wide { oas == 52 } else { config.ds && cd.ds() },
                lva: wide && config.vax52,
                ttst: config.stt,
                sh: sh as u8,
            };
            require(table.start_level().is_some())?;
            // Without 52-bit descriptors, addresses end at 48 bits.
            require(ttb >> if table.pa52 { oas } else { oas.min(48) } == 0)?;
            Ok(table)
        };
        let (tg0, tg1) = (Granule::from_tg0(cd.tg0() as u8), Granule::from_tg1(cd.tg1() as u8));
        // A disabled table's fields are ignored.
        let lower = match epd0 {
            true => Stage1::default(),
            false => table(false, tg0, cd.t0sz(), cd.ttb0(), cd.sh0(), cd.had0())?,
        };
        let upper = match epd1 {
            true => Stage1::default(),
            false => table(true, tg1, cd.t1sz(), cd.ttb1(), cd.sh1(), cd.had1())?,
        };
        Ok(Context {
            bad: false,
            asid,
            aset: cd.aset() && !single,
            ranges: Ranges {
                t0sz: cd.t0sz() as u8,
                t1sz: cd.t1sz() as u8,
                tbi0: cd.tbi0(),
                tbi1: cd.tbi1(),
                epd0,
                epd1,
                single,
            },
            lower,
            upper,
            controls: Controls { wxn: cd.wxn(), pan: cd.pan() && !single, epan: false, xnx: config.xnx },
            haft: config.httu == 3 && cd.haft(),
            e0pd: [cd.e0pd0(), cd.e0pd1()].map(|e0pd| e0pd && config.e0pd && !single),
            mair: cd.mair(),
            record: cd.r(),
            abort: cd.a(),
            stall: cd.s(),
        })
    }
}
