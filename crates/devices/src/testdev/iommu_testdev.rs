//! QEMU's `iommu-testdev` (its docs/specs/iommu-testdev.rst): a DMA write of a known pattern to a device address, and a
//! comparison with what is at the physical address that the test expects.

use std::any::Any;

use serde::{Deserialize, Serialize};

use super::Timing;
use crate::agent::Time;
use crate::dma::{Attributes, DmaError, DmaPort, Inspector, Poll, Stats, Transfer};
use crate::pci::{Bar, ConfigSpace, FunctionState, Ids, PciFunction, StateError};

const BAR: usize = 0;
const BAR_SIZE: u32 = 0x1000;

/// Register offsets. All are 32 bits wide.
mod reg {
    pub(super) const TRIGGERING: u64 = 0x00;
    pub(super) const GVA_LO: u64 = 0x04;
    pub(super) const GVA_HI: u64 = 0x08;
    pub(super) const LEN: u64 = 0x0c;
    pub(super) const RESULT: u64 = 0x10;
    pub(super) const DBELL: u64 = 0x14;
    pub(super) const ATTRS: u64 = 0x18;
    pub(super) const GPA_LO: u64 = 0x1c;
    pub(super) const GPA_HI: u64 = 0x20;
}

/// Values of RESULT; zero is success.
mod result {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const IDLE: u32 = 0xffff_ffff;
    pub(super) const BUSY: u32 = 0xffff_fffe;
    pub(super) const BAD_LEN: u32 = 0xdead_0001;
    pub(super) const TX_FAIL: u32 = 0xdead_0002;
    pub(super) const RD_FAIL: u32 = 0xdead_0003;
    pub(super) const MISMATCH: u32 = 0xdead_0004;
    pub(super) const NOT_ARMED: u32 = 0xdead_0005;
    pub(super) const BAD_ATTRS: u32 = 0xdead_0006;
}

/// What is written, over and over, in little-endian order.
const PATTERN: [u8; 4] = 0x1234_5678u32.to_le_bytes();
/// Largest beat, and most that is compared in a step.
const CHUNK: usize = 4096;

/// Fields of ATTRS. QEMU has the first three; its reserved bits carry what an SMMU sees beside the address.
mod attrs {
    /// Secure.
    pub(super) const SECURE: u32 = 1 << 0;
    /// The space, if SPACE_VALID: 0 Secure, 1 Non-secure, 2 Root, 3 Realm.
    pub(super) const SPACE: u32 = 3 << 1;
    pub(super) const SPACE_NON_SECURE: u32 = 1 << 1;
    pub(super) const SPACE_VALID: u32 = 1 << 3;
    /// Extension: privileged.
    pub(super) const PRIVILEGED: u32 = 1 << 8;
    /// Extension: the write carries SubstreamID ATTRS\[31:12\].
    pub(super) const SSV: u32 = 1 << 9;
    pub(super) const SSID_SHIFT: u32 = 12;
}

/// A `iommu-testdev` as a PCI function.
pub struct IommuTestdev {
    config: ConfigSpace,
    port: DmaPort,
    inspector: Inspector,
    timing: Timing,
    regs: Registers,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuTestdevState {
    config: ConfigSpace,
    stats: Stats,
    regs: Registers,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    gva: u64,
    gpa: u64,
    len: u32,
    result: u32,
    attrs: u32,
    armed: bool,
    run: Option<Run>,
}

/// A triggered request, with the registers' values of that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    due: Time,
    gpa: u64,
    len: u32,
    phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Write(Transfer),
    /// Compares memory from that many bytes on.
    Compare(u32),
}

impl Registers {
    fn new() -> Self {
        Self {
            gva: 0,
            gpa: 0,
            len: 0,
            result: result::IDLE,
            attrs: attrs::SPACE_NON_SECURE,
            armed: false,
            run: None,
        }
    }
}

fn set_low(register: &mut u64, value: u64) {
    *register = *register & !0xffff_ffff | value & 0xffff_ffff;
}

fn set_high(register: &mut u64, value: u64) {
    *register = *register & 0xffff_ffff | value << 32;
}

/// The first `len` bytes of the pattern that begins `offset` bytes in.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..).take(len).map(|i| PATTERN[(i % 4) as usize]).collect()
}

impl IommuTestdev {
    /// A device that reaches memory through `port`, and compares what is there by `inspector`.
    pub fn new(port: DmaPort, inspector: Inspector, timing: Timing) -> Self {
        let mut config = ConfigSpace::new(Ids {
            vendor: 0x1b36,
            device: 0x0005,
            revision: 0,
            class: 0x00_ff00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(BAR, Bar::Memory32(BAR_SIZE));
        port.set_enabled(false);
        Self { config, port, inspector, timing, regs: Registers::new() }
    }

    /// TRIGGERING was read: what does not even begin is refused at once.
    fn trigger(&mut self, at: Time) {
        let regs = &mut self.regs;
        if regs.run.is_some() {
            return;
        }
        if !std::mem::take(&mut regs.armed) {
            regs.result = result::NOT_ARMED;
            return;
        }
        if regs.len == 0 {
            regs.result = result::BAD_LEN;
            return;
        }
        match self.attributes() {
            Ok(attributes) => {
                let Registers { gva, gpa, len, .. } = self.regs;
                match self.port.begin_as(gva, u64::from(len), true, attributes) {
                    Ok(transfer) => {
                        let due = at + self.timing.start;
                        self.regs.run = Some(Run { due, gpa, len, phase: Phase::Write(transfer) });
                    }
                    Err(_) => self.regs.result = result::TX_FAIL,
                }
            }
            Err(code) => self.regs.result = code,
        }
    }

    /// What ATTRS asks for, or the result that it leads to.
    fn attributes(&self) -> Result<Attributes, u32> {
        let bits = self.regs.attrs;
        let secure = bits & attrs::SECURE != 0;
        if bits & attrs::SPACE_VALID != 0 {
            match (bits & attrs::SPACE, secure) {
                (0, false) | (attrs::SPACE_NON_SECURE, true) => return Err(result::BAD_ATTRS),
                (attrs::SPACE_NON_SECURE, false) => {}
                // There is nothing behind the other spaces.
                _ => return Err(result::TX_FAIL),
            }
        }
        Ok(Attributes {
            ssid: (bits & attrs::SSV != 0).then_some(bits >> attrs::SSID_SHIFT),
            privileged: bits & attrs::PRIVILEGED != 0,
            ..self.port.attributes()
        })
    }

    /// Gives up what is in progress.
    fn cancel(&mut self) -> bool {
        match self.regs.run.take() {
            Some(Run { phase: Phase::Write(mut transfer), .. }) => {
                self.port.cancel(&mut transfer);
                true
            }
            Some(_) => true,
            None => false,
        }
    }
}

impl Run {
    /// One step. Answers the result when that is known.
    fn step(&mut self, port: &DmaPort, inspector: &Inspector, timing: &Timing, now: Time) -> Option<u32> {
        match &mut self.phase {
            Phase::Write(transfer) => match write(port, transfer, self.len) {
                Ok(Some(Poll::Stalled)) => self.due = now + timing.retry,
                Ok(Some(Poll::Walking(fetch))) => self.due = now + timing.translate + fetch,
                Ok(Some(_)) => self.due = now + timing.translate,
                Ok(None) => {
                    self.due = now + timing.beat;
                    if transfer.left() == 0 {
                        self.phase = Phase::Compare(0);
                    }
                }
                Err(_) => return Some(result::TX_FAIL),
            },
            Phase::Compare(done) => {
                self.due = now + timing.beat;
                let last = self.gpa.checked_add(u64::from(self.len.saturating_sub(1)));
                // RAM is in one piece: both ends of the range are in it, or not all of the range is.
                if !last
                    .is_some_and(|last| inspector.read(self.gpa, &mut [0]) && inspector.read(last, &mut [0]))
                {
                    return Some(result::RD_FAIL);
                }
                let n = (self.len.saturating_sub(*done) as usize).min(CHUNK);
                let mut found = vec![0; n];
                if !inspector.read(self.gpa.wrapping_add(u64::from(*done)), &mut found) {
                    return Some(result::RD_FAIL);
                }
                if found != pattern(u64::from(*done), n) {
                    return Some(result::MISMATCH);
                }
                *done = done.saturating_add(n as u32);
                if *done >= self.len {
                    return Some(result::SUCCESS);
                }
            }
        }
        None
    }
}

/// A step of the write: towards the translation, or a beat (`None`).
fn write(port: &DmaPort, transfer: &mut Transfer, len: u32) -> Result<Option<Poll>, DmaError> {
    if !transfer.ready() {
        return port.poll(transfer).map(Some);
    }
    let done = u64::from(len).saturating_sub(transfer.left());
    let data = pattern(done, CHUNK.min(transfer.left() as usize));
    port.beat_write(transfer, &data).map(|_| None)
}

impl PciFunction for IommuTestdev {
    fn config_read(&mut self, _at: Time, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, _at: Time, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        let master = self.config.may_master();
        self.port.set_enabled(master);
        if !master {
            self.suspend();
        }
    }

    fn window(&self, bar: usize) -> Option<(u64, u64)> {
        self.config.window(bar)
    }

    fn bar_read(&mut self, at: Time, _bar: usize, offset: u64, size: u8) -> u64 {
        if size != 4 {
            return 0;
        }
        let regs = &self.regs;
        match offset {
            reg::TRIGGERING => {
                self.trigger(at);
                0
            }
            reg::GVA_LO => regs.gva & 0xffff_ffff,
            reg::GVA_HI => regs.gva >> 32,
            reg::GPA_LO => regs.gpa & 0xffff_ffff,
            reg::GPA_HI => regs.gpa >> 32,
            reg::LEN => u64::from(regs.len),
            reg::RESULT => u64::from(regs.result),
            reg::ATTRS => u64::from(regs.attrs),
            _ => 0,
        }
    }

    fn bar_write(&mut self, _at: Time, _bar: usize, offset: u64, size: u8, value: u64) {
        if size != 4 {
            return;
        }
        let regs = &mut self.regs;
        match offset {
            reg::GVA_LO => set_low(&mut regs.gva, value),
            reg::GVA_HI => set_high(&mut regs.gva, value),
            reg::GPA_LO => set_low(&mut regs.gpa, value),
            reg::GPA_HI => set_high(&mut regs.gpa, value),
            reg::LEN => regs.len = value as u32,
            reg::RESULT => regs.result = value as u32,
            reg::ATTRS => regs.attrs = value as u32,
            reg::DBELL if value & 1 != 0 => {
                regs.armed = true;
                regs.result = result::BUSY;
            }
            reg::DBELL => {
                self.cancel();
                self.regs.armed = false;
                self.regs.result = result::IDLE;
            }
            _ => {}
        }
    }

    fn lanes(&self) -> usize {
        1
    }

    fn next_step(&self, lane: usize) -> Option<Time> {
        self.regs.run.as_ref().filter(|_| lane == 0).map(|run| run.due)
    }

    fn step(&mut self, lane: usize, now: Time) {
        if lane != 0 {
            return;
        }
        if let Some(run) = &mut self.regs.run
            && let Some(code) = run.step(&self.port, &self.inspector, &self.timing, now)
        {
            self.regs.result = code;
            self.regs.run = None;
        }
    }

    fn reset(&mut self, _now: Time) {
        self.cancel();
        self.regs = Registers::new();
        self.config.reset();
        self.port.set_enabled(false);
    }

    fn suspend(&mut self) {
        if self.cancel() {
            self.regs.result = result::TX_FAIL;
        }
    }

    fn port(&self) -> Option<&DmaPort> {
        Some(&self.port)
    }

    fn save(&self) -> FunctionState {
        FunctionState::IommuTestdev(Box::new(IommuTestdevState {
            config: self.config.clone(),
            stats: self.port.stats(),
            regs: self.regs.clone(),
        }))
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::IommuTestdev(state) = state else { return Err(StateError) };
        if !state.config.same_shape(&self.config) {
            return Err(StateError);
        }
        (self.config, self.regs) = (state.config, state.regs);
        self.port.restore_stats(&state.stats);
        self.port.set_enabled(self.config.may_master());
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn Any {
        self
    }
}
