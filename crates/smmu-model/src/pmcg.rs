//! A performance monitor counter group (chapter 10): registers, counters, filters, overflow and its interrupt.
//!
//! The group belongs to an [`Smmu`](crate::Smmu), which counts what it does ([`PmuEvent`]). The machine gives it a window,
//! tells it the time, and delivers its interrupts:
//!
//! - [`Pmcg::advance`] before anything else: event 0 counts time, one cycle a nanosecond;
//! - [`Pmcg::mmio_read`], [`Pmcg::mmio_write`]: page 0 at offset 0, page 1 (counters, overflow, capture) at [`PAGE1`];
//! - [`Pmcg::next_overflow`]: when a cycle counter overflows next, if that interrupts;
//! - [`Pmcg::take_wired`], [`Pmcg::take_msi`], [`Pmcg::msi_aborted`]: the interrupt, an edge and an MSI.

use serde::{Deserialize, Serialize};

use crate::interrupts::attrs;
use crate::irq::{IrqSource, Msi};
use crate::registers::{IrqConfig, half, read_irq, set_half, write_irq};

/// Offset of page 1 in the group's window, in bytes.
pub const PAGE1: u64 = 0x1_0000;
/// Size of the group's window: two pages of 64 KiB, of which each has 4 KiB of registers.
pub const WINDOW: u64 = 0x2_0000;

/// Architected events (section 10.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum PmuEvent {
    /// Clock cycle: virtual time in nanoseconds. Not of any stream.
    Cycle = 0,
    /// A transaction, or an ATS Translation Request.
    Transaction = 1,
    /// One that the IOTLB did not answer.
    TlbMiss = 2,
    /// One whose STE or CD was not cached.
    ConfigMiss = 3,
    /// An access to a translation table.
    TableWalk = 4,
    /// An access to the stream table or a CD table.
    ConfigAccess = 5,
    /// An ATS Translation Request.
    AtsRequest = 6,
    /// An ATS Translated transaction.
    AtsTranslated = 7,
}

const CYCLE: u32 = PmuEvent::Cycle as u32;

/// Offsets within a page.
mod offset {
    pub(super) const EVCNTR: u64 = 0x000;
    pub(super) const EVTYPER: u64 = 0x400;
    pub(super) const SVR: u64 = 0x600;
    pub(super) const SMR: u64 = 0xa00;
    pub(super) const CNTENSET: u64 = 0xc00;
    pub(super) const CNTENCLR: u64 = 0xc20;
    pub(super) const INTENSET: u64 = 0xc40;
    pub(super) const INTENCLR: u64 = 0xc60;
    pub(super) const OVSCLR: u64 = 0xc80;
    pub(super) const OVSSET: u64 = 0xcc0;
    pub(super) const CAPR: u64 = 0xd88;
    pub(super) const CFGR: u64 = 0xe00;
    pub(super) const CR: u64 = 0xe04;
    pub(super) const IIDR: u64 = 0xe08;
    pub(super) const CEID0: u64 = 0xe20;
    pub(super) const IRQ_CTRL: u64 = 0xe50;
    pub(super) const IRQ_CTRLACK: u64 = 0xe54;
    pub(super) const IRQ_CFG0: u64 = 0xe58;
    pub(super) const IRQ_STATUS: u64 = 0xe68;
    pub(super) const AIDR: u64 = 0xe70;
}

/// EVTYPER: OVFCAP, FILTER_SID_SPAN and 16 bits of EVENT.
const EVTYPER_FIELDS: u32 = 1 << 31 | 1 << 29 | 0xffff;

/// What a group implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// 1 to 64.
    pub(crate) counters: u8,
    /// Bits of a counter: 32, 36, 40, 44, 48 or 64.
    pub(crate) bits: u8,
    /// Bits of a StreamID.
    pub(crate) sidsize: u8,
    pub(crate) msi: bool,
    /// ATS's events exist.
    pub(crate) ats: bool,
    pub(crate) oas: u8,
    pub(crate) iidr: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    value: u64,
    /// EVTYPER.
    kind: u32,
    /// SMR.
    stream: u32,
    /// SVR.
    shadow: u64,
}

/// A counter group with page 1, capture and a filter for each counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pmcg {
    shape: Shape,
    counters: Vec<Counter>,
    enabled: u64,
    interrupting: u64,
    overflowed: u64,
    /// CR.E.
    on: bool,
    irqen: bool,
    irq: IrqConfig,
    /// IRQ_STATUS.IRQ_ABT.
    aborted: bool,
    msi: Option<Msi>,
    wired: bool,
    /// Nanoseconds that event 0 has been counted up to.
    time: u64,
}

impl Pmcg {
    pub(crate) fn new(shape: Shape) -> Self {
        Pmcg {
            shape,
            counters: vec![Counter::default(); usize::from(shape.counters)],
            enabled: 0,
            interrupting: 0,
            overflowed: 0,
            on: false,
            irqen: false,
            irq: IrqConfig::default(),
            aborted: false,
            msi: None,
            wired: false,
            time: 0,
        }
    }

    /// Whether anything counts.
    #[must_use]
    #[inline]
    pub fn is_active(&self) -> bool {
        self.on && self.enabled != 0
    }

    /// Bits of all counters.
    fn present(&self) -> u64 {
        u64::MAX >> (64 - u32::from(self.shape.counters))
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - u32::from(self.shape.bits))
    }

    /// Something of a stream happened.
    pub fn count(&mut self, event: PmuEvent, sid: u32) {
        if !self.is_active() {
            return;
        }
        let mut captures = false;
        for n in 0..self.counters.len() {
            let Counter { kind, stream, .. } = self.counters[n];
            if self.enabled >> n & 1 == 1 && kind & 0xffff == event as u32 && self.matches(kind, stream, sid)
            {
                captures |= self.add(n, 1);
            }
        }
        self.capture_if(captures);
    }

    /// The filter of a counter (section 10.4).
    fn matches(&self, kind: u32, filter: u32, sid: u32) -> bool {
        let implemented = ones(self.shape.sidsize);
        if kind >> 29 & 1 == 0 {
            return filter == sid & implemented;
        }
        // The ones from bit 0 on and the zero above them need not match.
        let ignored = filter ^ filter.wrapping_add(1);
        (filter ^ sid) & implemented & !ignored == 0
    }

    /// Time has come to `now`, in nanoseconds: cycles are counted up to there.
    pub fn advance(&mut self, now: u64) {
        let cycles = now.saturating_sub(self.time);
        self.time = self.time.max(now);
        if cycles == 0 || !self.is_active() {
            return;
        }
        let mut captures = false;
        for n in 0..self.counters.len() {
            if self.enabled >> n & 1 == 1 && self.counters[n].kind & 0xffff == CYCLE {
                captures |= self.add(n, cycles);
            }
        }
        self.capture_if(captures);
    }

    /// When a counter of cycles overflows next, if that raises the interrupt.
    #[must_use]
    pub fn next_overflow(&self) -> Option<u64> {
        if !self.is_active() || !self.irqen {
            return None;
        }
        let counting = self.enabled & self.interrupting;
        let counters = self.counters.iter().enumerate().filter(|(n, _)| counting >> n & 1 == 1);
        let left = counters.filter(|(_, c)| c.kind & 0xffff == CYCLE).map(|(_, c)| self.mask() - c.value);
        left.min().map(|left| self.time.saturating_add(left).saturating_add(1))
    }

    /// Increments a counter, which may overflow (section 10.2.1). Says whether that captures all counters.
    fn add(&mut self, n: usize, by: u64) -> bool {
        let mask = self.mask();
        let (sum, carry) = self.counters[n].value.overflowing_add(by);
        self.counters[n].value = sum & mask;
        if !carry && sum <= mask {
            return false;
        }
        self.overflowed |= 1 << n;
        if self.interrupting >> n & 1 == 1 && self.irqen {
            self.wired = true;
            let IrqConfig { address, data, attrs: a } = self.irq;
            let address = address & (u64::MAX >> (64 - u32::from(self.shape.oas)));
            // One that has not gone out yet stands for this one, too.
            if self.shape.msi && address != 0 && self.msi.is_none() {
                let attrs = attrs(a as u8 & 15, (a >> 4) as u8);
                self.msi = Some(Msi { address, data, attrs, source: IrqSource::Pmcg });
            }
        }
        self.counters[n].kind >> 31 == 1
    }

    /// What all counters count at the same moment is counted before the capture.
    fn capture_if(&mut self, captures: bool) {
        if captures {
            self.capture();
        }
    }

    fn capture(&mut self) {
        for counter in &mut self.counters {
            counter.shadow = counter.value;
        }
    }

    /// Whether the interrupt waits to be delivered.
    #[must_use]
    pub fn irq_pending(&self) -> bool {
        self.wired || self.msi.is_some()
    }

    /// Takes the wired interrupt's edge, if there was one.
    pub fn take_wired(&mut self) -> bool {
        std::mem::take(&mut self.wired)
    }

    /// Takes the MSI; whoever takes it writes it.
    pub fn take_msi(&mut self) -> Option<Msi> {
        self.msi.take()
    }

    /// The write of an MSI got an abort.
    pub fn msi_aborted(&mut self) {
        self.aborted = true;
    }

    /// Reads a register. `None`: no access of this kind (not 4 or 8 bytes, unaligned, outside the window); RAZ.
    #[must_use]
    pub fn mmio_read(&self, offset: u64, size: u8) -> Option<u64> {
        match size {
            4 if offset & 3 == 0 && offset < WINDOW => Some(self.word(offset).into()),
            8 if offset & 7 == 0 && offset < WINDOW => {
                Some(u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32)
            }
            _ => None,
        }
    }

    /// Writes a register; what [`Pmcg::mmio_read`] answers with `None` is ignored here.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        match size {
            4 if offset & 3 == 0 && offset < WINDOW => self.write_word(offset, value as u32),
            8 if offset & 7 == 0 && offset < WINDOW => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    /// The counter that an offset of an array is of, and whether its upper half is meant.
    fn slot(&self, at: u64) -> (usize, bool) {
        match self.shape.bits {
            ..=32 => (at as usize / 4, false),
            _ => (at as usize / 8, at & 4 != 0),
        }
    }

    fn word(&self, at: u64) -> u32 {
        let high = at & 4 != 0;
        let counter = |n: usize| self.counters.get(n).copied().unwrap_or_default();
        if at >= PAGE1 {
            return match at - PAGE1 {
                at @ offset::EVCNTR..0x200 => {
                    let (n, high) = self.slot(at);
                    half(counter(n).value, high)
                }
                at @ offset::SVR..0x800 => {
                    let (n, high) = self.slot(at - offset::SVR);
                    half(counter(n).shadow, high)
                }
                offset::OVSCLR | 0xc84 | offset::OVSSET | 0xcc4 => half(self.overflowed, high),
                _ => 0,
            };
        }
        match at {
            offset::EVTYPER..0x500 => counter((at - offset::EVTYPER) as usize / 4).kind,
            offset::SMR..0xb00 => counter((at - offset::SMR) as usize / 4).stream,
            offset::CNTENSET | 0xc04 | offset::CNTENCLR | 0xc24 => half(self.enabled, high),
            offset::INTENSET | 0xc44 | offset::INTENCLR | 0xc64 => half(self.interrupting, high),
            offset::CFGR => {
                const CAPTURE: u32 = 1 << 22;
                const RELOC_CTRS: u32 = 1 << 20;
                let (size, counters) = (u32::from(self.shape.bits) - 1, u32::from(self.shape.counters) - 1);
                CAPTURE | u32::from(self.shape.msi) << 21 | RELOC_CTRS | size << 8 | counters
            }
            offset::CR => self.on.into(),
            offset::IIDR => self.shape.iidr,
            // CEID0: events 0 to 5, and of ATS 6 and 7.
            offset::CEID0 => {
                if self.shape.ats {
                    0xff
                } else {
                    0x3f
                }
            }
            offset::IRQ_CTRL => self.irqen.into(),
            // Not off before its MSI is out.
            offset::IRQ_CTRLACK => (self.irqen || self.msi.is_some()).into(),
            offset::IRQ_CFG0..offset::IRQ_STATUS => read_irq(&self.irq, at - offset::IRQ_CFG0),
            offset::IRQ_STATUS => self.aborted.into(),
            // SMMUv3.3.
            offset::AIDR => 3,
            _ => 0,
        }
    }

    fn write_word(&mut self, at: u64, value: u32) {
        let high = at & 4 != 0;
        let (present, mask) = (self.present(), self.mask());
        let bits = u64::from(value) << if high { 32 } else { 0 } & present;
        if at >= PAGE1 {
            match at - PAGE1 {
                at @ offset::EVCNTR..0x200 => {
                    let (n, high) = self.slot(at);
                    if let Some(counter) = self.counters.get_mut(n) {
                        set_half(&mut counter.value, high, value, mask);
                    }
                }
                offset::OVSCLR | 0xc84 => self.overflowed &= !bits,
                offset::OVSSET | 0xcc4 => self.overflowed |= bits,
                offset::CAPR if value & 1 == 1 => self.capture(),
                _ => {}
            }
            return;
        }
        match at {
            offset::EVTYPER..0x500 => {
                if let Some(counter) = self.counters.get_mut((at - offset::EVTYPER) as usize / 4) {
                    counter.kind = value & EVTYPER_FIELDS;
                }
            }
            offset::SMR..0xb00 => {
                let implemented = ones(self.shape.sidsize);
                if let Some(counter) = self.counters.get_mut((at - offset::SMR) as usize / 4) {
                    counter.stream = value & implemented;
                }
            }
            offset::CNTENSET | 0xc04 => self.enabled |= bits,
            offset::CNTENCLR | 0xc24 => self.enabled &= !bits,
            offset::INTENSET | 0xc44 => self.interrupting |= bits,
            offset::INTENCLR | 0xc64 => self.interrupting &= !bits,
            offset::CR => self.on = value & 1 == 1,
            offset::IRQ_CTRL => {
                let irqen = value & 1 == 1;
                self.aborted &= self.irqen || !irqen;
                self.irqen = irqen;
            }
            offset::IRQ_CFG0..offset::IRQ_STATUS if self.shape.msi && !self.irqen && self.msi.is_none() => {
                write_irq(&mut self.irq, at - offset::IRQ_CFG0, value);
            }
            _ => {}
        }
    }
}

/// The low `bits` bits.
fn ones(bits: u8) -> u32 {
    ((1u64 << bits) - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { counters: 4, bits: 64, sidsize: 16, msi: true, ats: false, oas: 44, iidr: 0 };
    const ALL: u32 = 1 << 29;

    /// Counter 0 counts `event` of the streams that `kind` and `smr` say.
    fn counting(event: PmuEvent, kind: u32, smr: u32) -> Pmcg {
        let mut p = Pmcg::new(SHAPE);
        p.mmio_write(offset::EVTYPER, 4, (kind | event as u32).into());
        p.mmio_write(offset::SMR, 4, smr.into());
        p.mmio_write(offset::CNTENSET, 8, 1);
        p.mmio_write(offset::CR, 4, 1);
        p
    }

    #[test]
    fn identification() {
        let p = Pmcg::new(SHAPE);
        assert_eq!(p.mmio_read(offset::CFGR, 4), Some(1 << 22 | 1 << 21 | 1 << 20 | 63 << 8 | 3));
        assert_eq!(p.mmio_read(offset::CEID0, 8), Some(0x3f));
        assert_eq!(p.mmio_read(offset::CEID0 + 8, 8), Some(0));
        assert_eq!((p.mmio_read(WINDOW, 4), p.mmio_read(2, 4), p.mmio_read(4, 8)), (None, None, None));
    }

    /// 10.4, with the manual's examples.
    #[test]
    fn streams_are_filtered() {
        let matches = |kind, smr: u32, sid| {
            let shape = Shape { sidsize: 32, ..SHAPE };
            let mut p = Pmcg { shape, ..counting(PmuEvent::TlbMiss, kind, 0) };
            p.mmio_write(offset::SMR, 4, smr.into());
            p.count(PmuEvent::TlbMiss, sid);
            p.count(PmuEvent::Transaction, sid);
            p.mmio_read(PAGE1, 8) == Some(1)
        };
        assert!(matches(0, 5, 5) && !matches(0, 5, 4), "exact");
        assert!(matches(ALL, u32::MAX, 0x1234_5678), "all");
        assert!(matches(ALL, u32::MAX >> 1, 0x9234_5678), "all of one security state");
        let prefix = 0x001b_f7f7;
        assert!(matches(ALL, prefix, 0x001b_f7f3) && matches(ALL, prefix, 0x001b_f7ff));
        assert!(!matches(ALL, prefix, 0x001b_f7e7));
        assert!(matches(ALL, 0x001b_f7f6, 0x001b_f7f7) && !matches(ALL, 0x001b_f7f6, 0x001b_f7f5));
    }

    #[test]
    fn enables() {
        let mut p = counting(PmuEvent::Transaction, ALL, u32::MAX);
        p.count(PmuEvent::Transaction, 1);
        p.mmio_write(offset::CR, 4, 0);
        p.count(PmuEvent::Transaction, 1);
        p.mmio_write(offset::CR, 4, 1);
        p.mmio_write(offset::CNTENCLR, 4, 1);
        p.count(PmuEvent::Transaction, 1);
        assert_eq!(p.mmio_read(PAGE1, 8), Some(1));
        p.mmio_write(offset::CNTENSET, 8, u64::MAX);
        assert_eq!(p.mmio_read(offset::CNTENSET, 8), Some(0xf), "no more counters than there are");
    }

    /// 10.2.1: overflow sets its status, captures, and interrupts by wire and MSI.
    #[test]
    fn overflow() {
        let mut p = counting(PmuEvent::Transaction, ALL | 1 << 31, u32::MAX);
        p.mmio_write(PAGE1, 8, u64::MAX);
        p.mmio_write(PAGE1 + 8, 8, 77);
        p.mmio_write(offset::IRQ_CFG0, 8, 0x0808_0040);
        p.mmio_write(offset::IRQ_CFG0 + 8, 4, 9);
        p.mmio_write(offset::INTENSET, 8, 1);
        p.mmio_write(offset::IRQ_CTRL, 4, 1);
        p.mmio_write(offset::IRQ_CFG0, 8, 0x1000);
        p.count(PmuEvent::Transaction, 3);
        assert_eq!(p.mmio_read(PAGE1, 8), Some(0));
        assert_eq!(p.mmio_read(PAGE1 + offset::OVSSET, 8), Some(1));
        assert_eq!(p.mmio_read(PAGE1 + offset::SVR + 8, 8), Some(77), "captured");
        p.mmio_write(offset::IRQ_CTRL, 4, 0);
        assert_eq!(p.mmio_read(offset::IRQ_CTRLACK, 4), Some(1), "its MSI is not out");
        let msi = p.take_msi().unwrap();
        assert_eq!((msi.address, msi.data), (0x0808_0040, 9), "guarded while enabled");
        assert!(p.take_wired() && !p.irq_pending());
        assert_eq!(p.mmio_read(offset::IRQ_CTRLACK, 4), Some(0));
        p.msi_aborted();
        assert_eq!(p.mmio_read(offset::IRQ_STATUS, 4), Some(1));
        p.mmio_write(offset::IRQ_CTRL, 4, 1);
        assert_eq!(p.mmio_read(offset::IRQ_STATUS, 4), Some(0));
        p.mmio_write(PAGE1 + offset::OVSCLR, 8, 1);
        assert_eq!(p.mmio_read(PAGE1 + offset::OVSSET, 8), Some(0));
    }

    #[test]
    fn cycles_follow_time() {
        let mut p = counting(PmuEvent::Cycle, 0, 0);
        p.advance(100);
        assert_eq!(p.mmio_read(PAGE1, 8), Some(100));
        assert_eq!(p.next_overflow(), None);
        p.mmio_write(PAGE1, 8, u64::MAX - 9);
        p.mmio_write(offset::INTENSET, 4, 1);
        p.mmio_write(offset::IRQ_CTRL, 4, 1);
        assert_eq!(p.next_overflow(), Some(110));
        p.advance(109);
        assert!(!p.irq_pending());
        p.advance(112);
        assert!(p.irq_pending());
        assert_eq!(p.mmio_read(PAGE1, 8), Some(2));
    }

    /// Counters of 32 bits are 4 bytes apart.
    #[test]
    fn narrow_counters() {
        let mut p =
            Pmcg { shape: Shape { bits: 32, ..SHAPE }, ..counting(PmuEvent::Transaction, ALL, u32::MAX) };
        p.mmio_write(PAGE1, 4, 0xffff_ffff);
        p.mmio_write(PAGE1 + 4, 4, 5);
        p.count(PmuEvent::Transaction, 0);
        assert_eq!((p.mmio_read(PAGE1, 4), p.mmio_read(PAGE1 + 4, 4)), (Some(0), Some(5)));
        assert_eq!(p.mmio_read(PAGE1 + offset::OVSSET, 4), Some(1));
    }
}
