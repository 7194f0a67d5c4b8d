//! Everything outside the vCPUs: buses, devices, interrupt wiring, and whose step comes next.

use aarch64::platform::{At, BusFault, IrqLines, Platform, SysKey};
use devices::agent::earliest;
use devices::dma::{ItsInbox, Message};
use devices::gic::Gic;
use devices::lab::Lab;
use devices::pci::PciHost;
use devices::pl011::Pl011;
use devices::pl031::Pl031;
use devices::testdev::PlatformEngine;
use devices::{Agent, MmioDevice, Time};
use guest_ram::GuestRam;

use crate::actor::Actor;
use crate::layout as at;
use crate::pools::Pools;
use crate::smmu_agents::{Effect, SmmuAgents};

/// The machine without its vCPUs.
pub struct Board {
    /// Guest RAM.
    pub ram: GuestRam,
    /// Interrupt controller and ITS.
    pub gic: Gic,
    /// Console UART.
    pub uart: Pl011,
    /// Real-time clock.
    pub rtc: Pl031,
    /// PCIe and all that sits on it.
    pub pci: PciHost,
    /// What bounced devices are bounced through.
    pub pools: Pools,
    /// Devices of the device tree that make DMA.
    pub platform: Vec<PlatformEngine>,
    /// The SMMU, if there is one.
    pub smmu: Option<SmmuAgents>,
    /// MSIs on their way to the ITS.
    pub inbox: ItsInbox,
    /// The lab device, if there is one.
    pub lab: Option<Lab>,
    /// Virtual time at which the running vCPU's slice ends.
    slice_end: Time,
    yield_asked: bool,
    /// When the vCPU that runs reached for a device, if somebody wants to know.
    accesses: Option<Vec<Time>>,
    /// The SMMU sent an event to all vCPUs (CMD_SYNC with CS=SIG_SEV).
    event: bool,
}

/// DeviceID with which the SMMU's own MSIs reach the ITS: past all of PCI.
pub const SMMU_DEVICE_ID: u32 = 0x1_0000;

impl Board {
    /// Wires the parts together.
    pub fn new(
        ram: GuestRam,
        gic: Gic,
        rtc: Pl031,
        pci: PciHost,
        platform: Vec<PlatformEngine>,
        smmu: Option<SmmuAgents>,
        inbox: ItsInbox,
    ) -> Self {
        Self {
            ram,
            gic,
            uart: Pl011::new(),
            rtc,
            pci,
            pools: Pools::default(),
            platform,
            smmu,
            inbox,
            lab: None,
            slice_end: 0,
            yield_asked: false,
            accesses: None,
            event: false,
        }
    }

    /// Tells the board until when the vCPU that runs next may run.
    pub fn begin_slice(&mut self, end: Time) {
        self.slice_end = end;
        self.yield_asked = false;
    }

    /// Earliest step of any agent, given that what became pending did so at `now`.
    pub fn next_step(&mut self, now: Time) -> Option<Time> {
        let smmu = self.smmu.as_mut().and_then(|s| s.next_step(now));
        let pci = self.pci.next_step();
        let uart = self.uart.next_step();
        let rtc = self.rtc.next_step();
        [pci, self.next_engine().map(|(at, ..)| at), self.gic.next_step(), uart, rtc]
            .into_iter()
            .fold(smmu, earliest)
    }

    /// Does one step that is due: the agent with the earliest time, ties in the fixed order SMMU, PCIe, platform
    /// devices, ITS, UART, RTC. Returns whether there was one.
    pub fn step(&mut self, now: Time) -> bool {
        let Some(first) = self.next_step(now).filter(|&t| t <= now) else { return false };
        let due = |t: Option<Time>| t == Some(first);
        if due(self.smmu.as_mut().and_then(|s| s.next_step(now))) {
            self.step_smmu(now);
        } else if due(self.pci.next_step()) {
            self.pci.step(now);
        } else if let Some((_, index, lane)) = self.next_engine().filter(|&(at, ..)| at == first) {
            self.step_engine(index, lane, now);
        } else if due(self.gic.next_step()) {
            self.gic.step(now);
        } else if due(self.uart.next_step()) {
            self.uart.step(now);
            self.uart_line();
        } else {
            self.rtc.step(now);
            self.rtc_line();
        }
        true
    }

    /// Everything outside the vCPUs that has a step to do, and when, given that what became pending did so at `now`.
    pub fn agents(&mut self, now: Time) -> Vec<(Actor, Time)> {
        let mut agents = Vec::new();
        if let Some(smmu) = &mut self.smmu {
            smmu.next_step(now);
            agents.extend(smmu.due().map(|(agent, at)| (Actor::Smmu(agent), at)));
        }
        agents.extend(self.pci.agents().map(|(slot, lane, at)| (Actor::Pci(slot, lane), at)));
        for (index, engine) in self.platform.iter().enumerate() {
            agents.extend(engine.lanes_due().map(|(at, lane)| (Actor::Engine(index, lane), at)));
        }
        let others = [
            (Actor::Its, self.gic.next_step()),
            (Actor::Uart, self.uart.next_step()),
            (Actor::Rtc, self.rtc.next_step()),
        ];
        agents.extend(others.into_iter().filter_map(|(actor, at)| Some((actor, at?))));
        agents
    }

    /// Does one step of one of [`Board::agents`].
    pub fn step_agent(&mut self, actor: Actor, now: Time) {
        match actor {
            Actor::Smmu(agent) => {
                let effect = self.smmu.as_mut().map_or(Effect::None, |smmu| smmu.step_agent(agent, now));
                self.smmu_effect(effect, now);
            }
            Actor::Pci(slot, lane) => self.pci.step_agent(slot, lane, now),
            Actor::Engine(index, lane) => self.step_engine(index, lane, now),
            Actor::Its => self.gic.step(now),
            Actor::Uart => {
                self.uart.step(now);
                self.uart_line();
            }
            Actor::Rtc => {
                self.rtc.step(now);
                self.rtc_line();
            }
            Actor::Cpu(_) => {}
        }
    }

    /// The platform device, and its lane, that steps next.
    fn next_engine(&self) -> Option<(Time, usize, usize)> {
        let lanes = self.platform.iter().enumerate();
        lanes.filter_map(|(index, engine)| engine.next_lane().map(|(at, lane)| (at, index, lane))).min()
    }

    fn step_engine(&mut self, index: usize, lane: usize, now: Time) {
        let edge = self.platform.get_mut(index).and_then(|engine| engine.step_lane(lane, now));
        if let Some(wire) = edge {
            self.pulse(at::ENGINE_SPI + index as u32 * u32::from(PlatformEngine::WIRES) + u32::from(wire));
        }
    }

    /// An edge on the wire of a shared peripheral interrupt.
    fn pulse(&mut self, spi: u32) {
        self.gic.set_spi(at::SPI_BASE + spi, true);
        self.gic.set_spi(at::SPI_BASE + spi, false);
    }

    /// The platform device at an address, and the offset within.
    fn engine_at(&mut self, pa: u64) -> Option<(&mut PlatformEngine, u64)> {
        let offset = at::ENGINES.offset(pa)?;
        let engine = self.platform.get_mut((offset / PlatformEngine::WINDOW) as usize)?;
        Some((engine, offset % PlatformEngine::WINDOW))
    }

    fn step_smmu(&mut self, now: Time) {
        let effect = self.smmu.as_mut().map_or(Effect::None, |smmu| smmu.step(now));
        self.smmu_effect(effect, now);
    }

    fn smmu_effect(&mut self, effect: Effect, now: Time) {
        match effect {
            Effect::None => {}
            Effect::Msi(msi) => self.smmu_msi(msi),
            Effect::Invalidate(invalidation) => {
                // A StreamID of nobody's is answered with UR, which is no error (IHI 0070 §3.9.1.5).
                if !self.pci.atc_invalidation(now, &invalidation)
                    && let Some(smmu) = &self.smmu
                {
                    smmu.smmu().atc_invalidation_done(invalidation.id);
                }
            }
            Effect::Response(response) => self.pci.page_response(&response),
        }
        let wired = self.smmu.as_ref().map(|s| s.smmu().take_wired()).unwrap_or_default();
        self.event |= wired.sev;
        for (line, edge) in [wired.eventq, wired.priq, wired.cmdq_sync, wired.gerror].into_iter().enumerate()
        {
            if edge {
                self.pulse(at::SMMU_SPI + line as u32);
            }
        }
    }

    /// The SMMU's MSIs are writes to physical addresses (IHI 0070 §3.18): to RAM or to the ITS.
    fn smmu_msi(&mut self, msi: smmu_model::Msi) {
        if msi.address == at::GITS_TRANSLATER {
            self.inbox.post(Message { device_id: SMMU_DEVICE_ID, event_id: msi.data });
        } else if !self.ram.write(msi.address, &msi.data.to_le_bytes())
            && let Some(smmu) = &self.smmu
        {
            smmu.smmu().msi_aborted(&msi);
        }
    }

    /// Begins or ends a record of when vCPUs reach for devices.
    pub fn note_accesses(&mut self, on: bool) {
        self.accesses = on.then(Vec::new);
    }

    /// The record since the last call.
    pub fn take_accesses(&mut self) -> std::vec::IntoIter<Time> {
        self.accesses.as_mut().map(std::mem::take).unwrap_or_default().into_iter()
    }

    /// Whether an event for all vCPUs is on its way.
    pub fn event(&self) -> bool {
        self.event
    }

    /// Sets whether one is, when a state is restored.
    pub fn set_event(&mut self, event: bool) {
        self.event = event;
    }

    /// Whether an event for all vCPUs came since the last call.
    pub fn take_event(&mut self) -> bool {
        std::mem::take(&mut self.event)
    }

    /// Console input. Answers how many bytes there was room for.
    pub fn type_in(&mut self, now: Time, bytes: &[u8]) -> usize {
        let taken = self.uart.push_input(now, bytes);
        self.uart_line();
        taken
    }

    fn uart_line(&mut self) {
        self.gic.set_spi(at::SPI_BASE + at::UART_SPI, self.uart.irq());
    }

    fn rtc_line(&mut self) {
        self.gic.set_spi(at::SPI_BASE + at::RTC_SPI, self.rtc.irq());
    }

    /// After an access that may have made an agent runnable: whether the slice has to end early for it.
    fn settle(&mut self, now: Time) {
        if self.next_step(now).is_some_and(|t| t < self.slice_end) {
            self.yield_asked = true;
        }
    }
}

impl Platform for Board {
    fn mmio_read(&mut self, who: At, pa: u64, size: u8) -> Result<u64, BusFault> {
        let now = who.now;
        if let Some(accesses) = &mut self.accesses {
            accesses.push(now);
        }
        if let Some(offset) = at::GICR.offset(pa) {
            return Ok(self.gic.gicr_read(offset, size));
        }
        if let Some(offset) = at::GICD.offset(pa) {
            return Ok(self.gic.gicd_read(offset, size));
        }
        if let Some(offset) = at::UART.offset(pa) {
            let value = self.uart.read(now, offset, size);
            self.uart_line();
            self.settle(now);
            return Ok(value);
        }
        if let Some(offset) = at::SMMU.offset(pa)
            && let Some(smmu) = &self.smmu
        {
            return Ok(smmu.smmu().mmio_read(offset, size).unwrap_or(0));
        }
        if let Some(offset) = at::PCI_ECAM.offset(pa) {
            return Ok(self.pci.config_read(now, offset, size));
        }
        if at::PCI_MMIO.offset(pa).is_some() || at::PCI_MMIO64.offset(pa).is_some() {
            let value = self.pci.mmio_read(now, pa, size);
            self.settle(now);
            return Ok(value);
        }
        if at::PCI_PIO.offset(pa).is_some() {
            return Ok(devices::bus::size_mask(size));
        }
        if let Some(offset) = at::ITS.offset(pa) {
            return Ok(self.gic.gits_read(offset, size));
        }
        if let Some(offset) = at::RTC.offset(pa) {
            return Ok(self.rtc.read(now, offset, size));
        }
        if let Some(offset) = at::LAB.offset(pa)
            && let Some(lab) = &mut self.lab
        {
            return Ok(lab.read(now, offset, size));
        }
        if let Some((engine, offset)) = self.engine_at(pa) {
            return Ok(engine.read(now, offset, size));
        }
        Err(BusFault)
    }

    fn mmio_write(&mut self, who: At, pa: u64, size: u8, value: u64) -> Result<(), BusFault> {
        let now = who.now;
        if let Some(accesses) = &mut self.accesses {
            accesses.push(now);
        }
        if let Some(offset) = at::UART.offset(pa) {
            self.uart.write(now, offset, size, value);
            self.uart_line();
        } else if let Some(offset) = at::GICR.offset(pa) {
            self.gic.gicr_write(offset, size, value);
        } else if let Some(offset) = at::GICD.offset(pa) {
            self.gic.gicd_write(offset, size, value);
        } else if let Some(offset) = at::SMMU.offset(pa)
            && let Some(smmu) = &self.smmu
        {
            smmu.smmu().mmio_write(offset, size, value);
        } else if at::PCI_MMIO.offset(pa).is_some() || at::PCI_MMIO64.offset(pa).is_some() {
            self.pci.mmio_write(now, pa, size, value);
        } else if let Some(offset) = at::PCI_ECAM.offset(pa) {
            self.pci.config_write(now, offset, size, value);
        } else if at::PCI_PIO.offset(pa).is_some() {
            // No device has an I/O BAR: the write is dropped, as on a PCI bus where nobody claims it.
        } else if let Some(offset) = at::ITS.offset(pa) {
            self.gic.gits_write(offset, size, value);
        } else if let Some(offset) = at::RTC.offset(pa) {
            self.rtc.write(now, offset, size, value);
            self.rtc_line();
        } else if let Some(offset) = at::LAB.offset(pa)
            && let Some(lab) = &mut self.lab
        {
            lab.write(now, offset, size, value);
            self.yield_asked |= lab.marked();
        } else if let Some((engine, offset)) = self.engine_at(pa) {
            engine.write(now, offset, size, value);
        } else {
            return Err(BusFault);
        }
        self.settle(now);
        Ok(())
    }

    fn icc_read(&mut self, who: At, reg: SysKey) -> Option<u64> {
        self.gic.icc_read(who.cpu, reg.0)
    }

    fn icc_write(&mut self, who: At, reg: SysKey, value: u64) -> Option<()> {
        self.gic.icc_write(who.cpu, reg.0, value)
    }

    fn irq(&self, cpu: usize) -> IrqLines {
        let (irq, fiq) = self.gic.irq(cpu);
        IrqLines { irq, fiq }
    }

    fn set_ppi(&mut self, who: At, intid: u32, level: bool) {
        self.gic.set_ppi(who.cpu, intid, level);
    }

    fn take_yield(&mut self) -> bool {
        std::mem::take(&mut self.yield_asked)
    }
}
