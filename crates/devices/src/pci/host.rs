//! The generic ECAM host bridge of the `virt` machine, with one root bus, and root ports with a link each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smmu_model::{AtcInvalidation, PageResponse};

use super::{ConfigSpace, FunctionState, Ids, PciFunction, RootPort, StateError};
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

/// Where a function sits: device and function number in bits 7:0, and in bits 15:8 those of the root port that it is
/// behind, or 0 (the host bridge's) for the root bus. Bus numbers are the software's to choose and no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot(pub u16);

impl Slot {
    /// Function 0 of a device (0 to 31).
    pub fn device(number: u8) -> Self {
        Self(u16::from(number & 31) << 3)
    }

    /// Function 0 of the device behind a root port.
    pub fn behind(port: Self) -> Self {
        Self(port.0 << 8)
    }

    /// The root port in front of it.
    pub fn root_port(self) -> Option<Self> {
        (self.0 >> 8 != 0).then_some(Self(self.0 >> 8))
    }

    /// Device number on its bus.
    pub fn device_number(self) -> u8 {
        (self.0 as u8) >> 3
    }

    /// Function number.
    pub fn function_number(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Requester ID, which is also StreamID and ITS DeviceID, on a bus of this number.
    pub fn requester_id(self, bus: u8) -> u16 {
        u16::from(bus) << 8 | self.0 & 0xff
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
    /// What of the BAR the window begins with.
    offset: u64,
}

/// The state of the host bridge and everything behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    functions: Vec<(Slot, FunctionState)>,
    /// The requester IDs that functions behind root ports captured.
    captured: Vec<(Slot, u16)>,
}

impl PciHostState {
    /// Whether there is a function in a slot.
    pub fn occupied(&self, slot: Slot) -> bool {
        self.functions.iter().any(|&(of, _)| of == slot)
    }
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
        self.remove(slot, 0);
        let function = make(self.fabric.port(slot.requester_id(0)));
        self.functions.insert(slot, function);
        self.refresh();
    }

    /// Takes a function out: its transactions in progress are given up, and its port is worth nothing from then on.
    fn remove(&mut self, slot: Slot, now: Time) {
        let Some(mut old) = self.functions.remove(&slot) else { return };
        old.suspend();
        // It loses its power, and a bounced one all that it had mapped.
        old.reset(now);
        if let Some(port) = old.port() {
            port.set_enabled(false);
            port.set_forwarded(false);
            // Invalidations that it has not confirmed are answered with UR by whatever is above it.
            port.reset_ats();
        }
    }

    /// Puts a root port with an empty slot on the root bus. Its number is the slot's physical number.
    pub fn add_root_port(&mut self, slot: Slot, number: u16) {
        self.add(slot, |port| Box::new(RootPort::new(port, number)));
    }

    /// Whether somebody is in the slot of a root port.
    pub fn occupied(&mut self, port: Slot) -> bool {
        self.root_port(port).is_some_and(|port| port.occupied())
    }

    fn root_port(&mut self, slot: Slot) -> Option<&mut RootPort> {
        self.functions.get_mut(&slot)?.root_port()
    }

    fn insert_behind(&mut self, port: Slot, make: impl FnOnce(DmaPort) -> Box<dyn PciFunction>) {
        let mut function = make(self.fabric.port(0));
        function.put_behind_link();
        if let Some(port) = function.port() {
            port.set_forwarded(false);
        }
        self.functions.insert(Slot::behind(port), function);
    }

    /// Puts a function behind a root port before the machine is switched on. Answers whether that was possible.
    pub fn plug_cold(&mut self, port: Slot, make: impl FnOnce(DmaPort) -> Box<dyn PciFunction>) -> bool {
        match self.root_port(port) {
            Some(root_port) if !root_port.occupied() => root_port.plug_cold(),
            _ => return false,
        }
        self.insert_behind(port, make);
        self.refresh();
        true
    }

    /// Takes back what [`PciHost::plug_cold`] did, before the machine is switched on.
    pub fn empty_cold(&mut self, port: Slot) {
        if let Some(root_port) = self.root_port(port) {
            root_port.empty_cold();
            self.remove(Slot::behind(port), 0);
            self.refresh();
        }
    }

    /// Puts a function into the hot-plug slot of a root port. Answers whether that was possible: the port is there, and
    /// nobody in its slot.
    pub fn plug(
        &mut self,
        now: Time,
        port: Slot,
        make: impl FnOnce(DmaPort) -> Box<dyn PciFunction>,
    ) -> bool {
        match self.root_port(port) {
            Some(root_port) if !root_port.occupied() => root_port.plug(now),
            _ => return false,
        }
        self.insert_behind(port, make);
        self.refresh_at(now);
        true
    }

    /// Takes the function behind a root port out: at once, or (the attention button) when software has let go of it and
    /// switched its power off. Answers whether there was one.
    pub fn unplug(&mut self, now: Time, port: Slot, surprise: bool) -> bool {
        match self.root_port(port) {
            Some(root_port) if root_port.occupied() => root_port.unplug(surprise, now),
            _ => return false,
        }
        self.refresh_at(now);
        true
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
        let Some((bus, function, register)) = target(offset, size) else { return size_mask(size) };
        let slot = self.route(bus, function);
        match slot.and_then(|slot| self.functions.get_mut(&slot)) {
            Some(function) => u64::from(function.config_read(at, register, size)),
            None => size_mask(size),
        }
    }

    /// Writes the ECAM.
    pub fn config_write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        let Some((bus, function, register)) = target(offset, size) else { return };
        let Some(slot) = self.route(bus, function) else { return };
        if let Some(function) = self.functions.get_mut(&slot) {
            // A function captures its bus number from every configuration write (PCI Express 4.0 §2.2.6.2).
            let id = slot.requester_id(bus);
            if function.port().is_some_and(|port| port.requester().sid != u32::from(id)) {
                function.suspend();
                if let Some(port) = function.port() {
                    port.set_requester_id(id);
                }
            }
            function.config_write(at, register, size, value as u32);
            self.refresh_at(at);
        }
    }

    /// The slot that a bus, device and function number lead to. Of several ports that claim a bus the lowest has it. A link
    /// has one device, number 0.
    fn route(&mut self, bus: u8, function: u8) -> Option<Slot> {
        if bus == 0 {
            return Some(Slot(u16::from(function)));
        }
        let mut functions = self.functions.iter_mut();
        let port = functions.find_map(|(&slot, f)| (f.root_port()?.bus()? == bus).then_some(slot))?;
        (function < 8).then_some(Slot(Slot::behind(port).0 | u16::from(function)))
    }

    fn find(&self, pa: u64, size: u8) -> Option<(Window, u64)> {
        let last = pa.checked_add(u64::from(size.max(1)) - 1)?;
        let covers = |w: &&Window| pa >= w.base && last - w.base < w.size;
        self.windows.iter().find(covers).map(|w| (*w, pa - w.base + w.offset))
    }

    /// The function, one of whose windows an address is in.
    pub fn claims(&self, pa: u64) -> Option<Slot> {
        self.find(pa, 1).map(|(window, _)| window.slot)
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
        self.refresh_at(now);
    }

    /// The state of all functions.
    pub fn save(&self) -> PciHostState {
        let functions = self.functions.iter().map(|(&slot, f)| (slot, f.save())).collect();
        let behind = self.functions.iter().filter(|(slot, _)| slot.root_port().is_some());
        let captured = behind.filter_map(|(&slot, f)| Some((slot, f.port()?.requester().sid as u16)));
        PciHostState { functions, captured: captured.collect() }
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
        for (slot, id) in state.captured {
            if let Some(port) = self.functions.get(&slot).and_then(|f| f.port()) {
                port.set_requester_id(id);
            }
        }
        // Nothing that the time matters to is left to follow: that was done before the state was saved.
        self.refresh_at(0);
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

    /// Follows what root ports did, then works out windows and schedule.
    fn refresh_at(&mut self, now: Time) {
        let ports: Vec<Slot> = self.functions.keys().copied().filter(|s| s.root_port().is_none()).collect();
        for slot in ports {
            let Some(port) = self.root_port(slot) else { continue };
            let (gone, reset, forwards) = (port.take_gone(), port.take_reset(), port.forwards());
            let behind = Slot::behind(slot);
            if gone {
                self.remove(behind, now);
            }
            let Some(function) = self.functions.get_mut(&behind) else { continue };
            if reset {
                function.reset(now);
            }
            if !forwards {
                function.suspend();
            }
            if let Some(port) = function.port() {
                port.set_forwarded(forwards);
            }
        }
        self.refresh();
    }

    /// Works out windows and schedule after a change of configuration. A BAR behind a root port is reached as far as
    /// the port forwards its addresses.
    fn refresh(&mut self) {
        self.windows.clear();
        let mut forwarded = BTreeMap::new();
        for (&slot, function) in &mut self.functions {
            if let Some(port) = function.root_port() {
                forwarded.insert(slot, port.windows());
            }
        }
        const ALL: [Option<(u64, u64)>; 2] = [Some((0, u64::MAX)), None];
        for (&slot, function) in &self.functions {
            let through =
                slot.root_port().map_or(ALL, |port| forwarded.get(&port).copied().unwrap_or_default());
            for bar in 0..6 {
                let Some((base, size)) = function.window(bar) else { continue };
                let last = base.saturating_add(size - 1);
                for (first, end) in through.into_iter().flatten() {
                    let (from, to) = (base.max(first), last.min(end));
                    if from <= to {
                        let (size, offset) = ((to - from).saturating_add(1), from - base);
                        self.windows.push(Window { base: from, size, slot, bar, offset });
                    }
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
        self.functions
            .iter()
            .flat_map(|(&slot, f)| f.lanes_due().into_iter().map(move |(at, lane)| (slot, lane, at)))
    }

    /// Does one step of one agent.
    pub fn step_agent(&mut self, slot: Slot, lane: usize, now: Time) {
        if let Some(function) = self.functions.get_mut(&slot) {
            function.step(lane, now);
            if function.root_port().is_some() {
                self.refresh_at(now);
            } else {
                self.reschedule();
            }
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

/// Splits an ECAM offset into bus (from bit 20), device (15) with function (12), and register. `None` for accesses that
/// no function can answer.
fn target(offset: u64, size: u8) -> Option<(u8, u8, u16)> {
    let register = (offset & 0xfff) as u16;
    let aligned = matches!(size, 1 | 2 | 4) && register.is_multiple_of(u16::from(size));
    (aligned && offset < 1 << 28).then_some(((offset >> 20) as u8, (offset >> 12) as u8, register))
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
