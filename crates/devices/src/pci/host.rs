//! The generic ECAM host bridge of the `virt` machine, with one root bus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smmu_model::{AtcInvalidation, PageResponse};

use super::{ConfigSpace, FunctionState, Ids, PciFunction, StateError};
use crate::agent::{Agent, Time, earliest};
use crate::bus::size_mask;
use crate::dma::{DmaPort, Fabric};

/// Where the `virt` machine has PCI Express: (base, size).
pub mod layout {
    /// Enhanced configuration space, 256 buses.
    pub const ECAM: (u64, u64) = (0x40_1000_0000, 0x1000_0000);
    /// 32-bit memory window.
    pub const MMIO32: (u64, u64) = (0x1000_0000, 0x2eff_0000);
    /// Port I/O window. No function here has I/O BARs: reads are all ones.
    pub const PIO: (u64, u64) = (0x3eff_0000, 0x1_0000);
    /// 64-bit memory window.
    pub const MMIO64: (u64, u64) = (0x80_0000_0000, 0x80_0000_0000);
}

/// Device and function number on bus 0: the low byte of a requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot(pub u8);

impl Slot {
    /// Function 0 of a device (0 to 31).
    pub fn device(number: u8) -> Self {
        Self((number & 31) << 3)
    }

    /// Requester ID, which is also StreamID and ITS DeviceID.
    pub fn requester_id(self) -> u16 {
        u16::from(self.0)
    }
}

/// What the next step would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Time,
    slot: Slot,
    lane: usize,
}

/// The host bridge and the functions behind it.
///
/// As an [`Agent`] it is all its functions': the earliest step is next, ties go to the lower slot, then lane.
pub struct PciHost {
    fabric: Fabric,
    functions: BTreeMap<Slot, Box<dyn PciFunction>>,
    /// Decoded windows of all functions, in slot order.
    windows: Vec<Window>,
    next: Option<Due>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    base: u64,
    size: u64,
    slot: Slot,
    bar: usize,
}

/// The state of the host bridge and everything behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    functions: Vec<(Slot, FunctionState)>,
}

impl PciHost {
    /// A bus with the host bridge's own function in slot 0.
    pub fn new(fabric: Fabric) -> Self {
        let mut this = Self { fabric, functions: BTreeMap::new(), windows: Vec::new(), next: None };
        this.add(Slot(0), |_| Box::new(HostBridge::new()));
        this
    }

    /// What is behind the functions.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Puts a function into a slot, replacing what was there. `make` gets the slot's port.
    pub fn add(&mut self, slot: Slot, make: impl FnOnce(DmaPort) -> Box<dyn PciFunction>) {
        if let Some(old) = self.functions.remove(&slot).as_ref().and_then(|f| f.port()) {
            old.set_enabled(false);
        }
        let function = make(self.fabric.port(slot.requester_id()));
        self.functions.insert(slot, function);
        self.refresh();
    }

    /// The device in a slot, if it is a `T`. Afterwards the schedule is worked out anew, so that input may be given.
    pub fn with_device<T: 'static, R>(&mut self, slot: Slot, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let device = self.functions.get_mut(&slot)?.device_mut().downcast_mut::<T>()?;
        let result = f(device);
        self.reschedule();
        Some(result)
    }

    /// The functions and their slots, in slot order.
    pub fn functions(&self) -> impl Iterator<Item = (Slot, &dyn PciFunction)> {
        self.functions.iter().map(|(&slot, f)| (slot, f.as_ref()))
    }

    /// Reads the ECAM: `offset` from its start. What no function answers is all ones.
    pub fn config_read(&mut self, at: Time, offset: u64, size: u8) -> u64 {
        let Some((slot, register)) = target(offset, size) else { return size_mask(size) };
        match self.functions.get_mut(&slot) {
            Some(function) => u64::from(function.config_read(at, register, size)),
            None => size_mask(size),
        }
    }

    /// Writes the ECAM.
    pub fn config_write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        let Some((slot, register)) = target(offset, size) else { return };
        if let Some(function) = self.functions.get_mut(&slot) {
            function.config_write(at, register, size, value as u32);
            self.refresh();
        }
    }

    fn find(&self, pa: u64, size: u8) -> Option<(Window, u64)> {
        let last = pa.checked_add(u64::from(size.max(1)) - 1)?;
        let covers = |w: &&Window| pa >= w.base && last - w.base < w.size;
        self.windows.iter().find(covers).map(|w| (*w, pa - w.base))
    }

    /// Reads the memory windows at a physical address. What no BAR claims is all ones.
    pub fn mmio_read(&mut self, at: Time, pa: u64, size: u8) -> u64 {
        let Some((window, offset)) = self.find(pa, size) else { return size_mask(size) };
        let Some(function) = self.functions.get_mut(&window.slot) else { return size_mask(size) };
        let value = function.bar_read(at, window.bar, offset, size) & size_mask(size);
        self.reschedule();
        value
    }

    /// Writes the memory windows at a physical address.
    pub fn mmio_write(&mut self, at: Time, pa: u64, size: u8, value: u64) {
        let Some((window, offset)) = self.find(pa, size) else { return };
        if let Some(function) = self.functions.get_mut(&window.slot) {
            function.bar_write(at, window.bar, offset, size, value & size_mask(size));
            self.reschedule();
        }
    }

    /// Resets every function, as PERST# does.
    pub fn reset(&mut self, now: Time) {
        self.functions.values_mut().for_each(|f| f.reset(now));
        self.refresh();
    }

    /// The state of all functions.
    pub fn save(&self) -> PciHostState {
        PciHostState { functions: self.functions.iter().map(|(&slot, f)| (slot, f.save())).collect() }
    }

    /// Takes over a state saved from a host with the same functions.
    ///
    /// # Errors
    /// When slots or functions differ; the machine is not usable then.
    pub fn restore(&mut self, state: PciHostState) -> Result<(), StateError> {
        if state.functions.len() != self.functions.len() {
            return Err(StateError);
        }
        for (slot, state) in state.functions {
            self.functions.get_mut(&slot).ok_or(StateError)?.restore(state)?;
        }
        self.refresh();
        Ok(())
    }

    /// Brings an ATS Invalidate Request to the function that makes requests as its StreamID. Answers whether there is one;
    /// if not, the root complex knows that nobody will confirm it.
    pub fn atc_invalidation(&mut self, now: Time, what: &AtcInvalidation) -> bool {
        let Some(port) = self.port(what.sid) else { return false };
        port.atc_invalidation(now, what);
        self.reschedule();
        true
    }

    /// Brings a PRG response to the function that makes requests as its StreamID.
    pub fn page_response(&mut self, response: &PageResponse) {
        if let Some(port) = self.port(response.sid) {
            port.page_response(response);
        }
    }

    /// The port of a StreamID.
    fn port(&self, sid: u32) -> Option<&DmaPort> {
        self.functions.values().filter_map(|f| f.port()).find(|port| port.requester().sid == sid)
    }

    /// Works out windows and schedule after a change of configuration.
    fn refresh(&mut self) {
        self.windows.clear();
        for (&slot, function) in &self.functions {
            for bar in 0..6 {
                if let Some((base, size)) = function.window(bar) {
                    self.windows.push(Window { base, size, slot, bar });
                }
            }
        }
        self.reschedule();
    }

    fn reschedule(&mut self) {
        let due = |slot, (at, lane)| Due { at, slot, lane };
        let first = self.functions.iter().filter_map(|(&slot, f)| Some(due(slot, f.next_lane()?)));
        self.next = first.min();
    }

    /// All agents that have a step to do: slot, lane, and when. For schedulers that choose among them.
    pub fn agents(&self) -> impl Iterator<Item = (Slot, usize, Time)> {
        self.functions.iter().flat_map(|(&slot, f)| {
            (0..f.lanes()).filter_map(move |lane| f.next_step(lane).map(|at| (slot, lane, at)))
        })
    }

    /// Does one step of one agent.
    pub fn step_agent(&mut self, slot: Slot, lane: usize, now: Time) {
        if let Some(function) = self.functions.get_mut(&slot) {
            function.step(lane, now);
            self.reschedule();
        }
    }
}

impl Agent for PciHost {
    fn next_step(&self) -> Option<Time> {
        earliest(self.next.map(|due| due.at), None)
    }

    fn step(&mut self, now: Time) {
        if let Some(due) = self.next {
            self.step_agent(due.slot, due.lane, now);
        }
    }
}

/// Splits an ECAM offset: bus 20, device 15, function 12, register. `None` for accesses that no function can answer.
fn target(offset: u64, size: u8) -> Option<(Slot, u16)> {
    let register = (offset & 0xfff) as u16;
    let aligned = matches!(size, 1 | 2 | 4) && register.is_multiple_of(u16::from(size));
    (aligned && offset < 1 << 20).then_some((Slot((offset >> 12) as u8), register))
}

/// The host bridge's own function.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// The identity that QEMU's generic host bridge has.
    pub fn new() -> Self {
        let config = ConfigSpace::new(Ids {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        Self { config }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, _at: Time, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, _at: Time, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
    }

    fn window(&self, _bar: usize) -> Option<(u64, u64)> {
        None
    }

    fn bar_read(&mut self, _at: Time, _bar: usize, _offset: u64, size: u8) -> u64 {
        size_mask(size)
    }

    fn bar_write(&mut self, _at: Time, _bar: usize, _offset: u64, _size: u8, _value: u64) {}

    fn reset(&mut self, _now: Time) {
        self.config.reset();
    }

    fn save(&self) -> FunctionState {
        FunctionState::Plain(self.config.clone())
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::Plain(config) = state else { return Err(StateError) };
        self.config = config;
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
