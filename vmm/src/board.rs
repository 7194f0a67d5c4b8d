//! Everything outside the vCPUs: buses, devices, interrupt wiring, and whose step comes next.

use aarch64::platform::{At, BusFault, IrqLines, Platform, SysKey, Traced};
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
use smmu_model::{IrqSource, pmcg};

use crate::actor::{Actor, SmmuAgent};
use crate::check::Checkers;
use crate::its_agent::ItsAgent;
use crate::layout as at;
use crate::plug::Script;
use crate::pools::Pools;
use crate::smmu_agents::{Effect, SmmuAgents};
use crate::touch::{self, Witness};

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
    /// The SMMUs, at most [`at::MAX_SMMUS`].
    pub smmus: Vec<SmmuAgents>,
    /// When the ITS steps next.
    pub its: ItsAgent,
    /// What is plugged and unplugged, and when.
    pub script: Script,
    /// MSIs on their way to the ITS.
    pub inbox: ItsInbox,
    /// The lab device, if there is one.
    pub lab: Option<Lab>,
    /// What checks the guest, if anything does. It is no part of the machine's state.
    pub checkers: Checkers,
    /// Virtual time at which the running vCPU's slice ends.
    slice_end: Time,
    yield_asked: bool,
    /// What registers the vCPU that runs reached for and when, if somebody wants to know.
    accesses: Option<Vec<(Time, u64)>>,
    /// Who is told of accesses to memory, if anybody. It is no part of the machine's state.
    pub witness: Option<Box<Witness>>,
    /// The SMMU sent an event to all vCPUs (CMD_SYNC with CS=SIG_SEV).
    event: bool,
}

impl Board {
    /// Wires the parts together.
    pub fn new(
        ram: GuestRam,
        gic: Gic,
        rtc: Pl031,
        pci: PciHost,
        platform: Vec<PlatformEngine>,
        smmus: Vec<SmmuAgents>,
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
            smmus,
            its: ItsAgent::default(),
            script: Script::default(),
            inbox,
            lab: None,
            checkers: Checkers::default(),
            slice_end: 0,
            yield_asked: false,
            accesses: None,
            witness: None,
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
        let smmu = self.smmus.iter_mut().filter_map(|s| s.next_step(now)).min();
        let its = self.its.next_step(&self.gic, now);
        let pci = self.pci.next_step();
        let uart = self.uart.next_step();
        let rtc = self.rtc.next_step();
        let script = self.script.next_step();
        [pci, self.next_engine().map(|(at, ..)| at), its, uart, rtc, script].into_iter().fold(smmu, earliest)
    }

    /// Does one step that is due: the agent with the earliest time, ties in the fixed order SMMUs, PCIe, platform
    /// devices, ITS, UART, RTC, plugging. Returns whether there was one.
    pub fn step(&mut self, now: Time) -> bool {
        let Some(first) = self.next_step(now).filter(|&t| t <= now) else { return false };
        self.check(now);
        let due = |t: Option<Time>| t == Some(first);
        let smmus = self.smmus.iter_mut().enumerate();
        let of_smmu = |(index, smmu): (usize, &mut SmmuAgents)| {
            due(smmu.next_step(now)).then(|| smmu.first_due().map(|agent| (index, agent)))?
        };
        if let Some((index, agent)) = smmus.filter_map(of_smmu).next() {
            self.step_smmu(index, agent, now);
        } else if due(self.pci.next_step()) {
            self.pci.step(now);
            self.smmu_wires();
        } else if let Some((_, index, lane)) = self.next_engine().filter(|&(at, ..)| at == first) {
            self.step_engine(index, lane, now);
        } else if due(self.its.next_step(&self.gic, now)) {
            self.its.step(&mut self.gic);
        } else if due(self.uart.next_step()) {
            self.uart.step(now);
            self.uart_line();
        } else if due(self.rtc.next_step()) {
            self.rtc.step(now);
            self.rtc_line();
        } else {
            self.script.step(&mut self.pci, now);
        }
        self.check(now);
        true
    }

    /// Tells the checkers, if there are any, what time it is and what devices wrote.
    #[inline]
    fn check(&mut self, now: Time) {
        self.look(now, None);
    }

    /// Tells the checkers and the witness, if there are any, what was done to memory; by `who`, if that is known.
    #[inline]
    fn look(&mut self, now: Time, who: Option<Actor>) {
        if self.checkers.is_empty() && self.witness.is_none() {
            return;
        }
        self.checkers.set_time(now);
        match (&mut self.witness, who) {
            (Some(witness), Some(who)) => witness.read(&self.ram, who, now),
            _ => self.ram.watch().drop_reads(),
        }
        if self.ram.watch().has_traced() {
            self.look_at_writes(now, who);
        }
    }

    #[inline(never)]
    fn look_at_writes(&mut self, now: Time, who: Option<Actor>) {
        let mut witness = self.witness.as_mut().zip(who);
        for hit in self.ram.watch().take_traced() {
            self.checkers.device_wrote(&self.ram, hit);
            if let Some((witness, who)) = &mut witness {
                witness.wrote(&self.ram, *who, now, hit.offset, hit.len.into());
            }
        }
    }

    /// Whose registers are at an address, as far as it is one of the devices that schedules know.
    pub fn registers_of(&self, pa: u64) -> Option<Actor> {
        if at::SMMU_ALL.offset(pa).is_some() {
            return Some(Actor::Smmu(0, SmmuAgent::Command));
        }
        if let Some(offset) = at::MORE_SMMUS.offset(pa) {
            return Some(Actor::Smmu(1 + (offset / at::SMMU_SPAN) as usize, SmmuAgent::Command));
        }
        if let Some(offset) = at::ENGINES.offset(pa) {
            return Some(Actor::Engine((offset / PlatformEngine::WINDOW) as usize, 0));
        }
        if let Some(slot) = self.pci.claims(pa) {
            return Some(Actor::Pci(slot, 0));
        }
        let others = [(at::UART, Actor::Uart), (at::RTC, Actor::Rtc), (at::ITS, Actor::Its)];
        others.into_iter().find_map(|(window, actor)| window.offset(pa).map(|_| actor))
    }

    /// Everything outside the vCPUs that has a step to do, and when, given that what became pending did so at `now`.
    pub fn agents(&mut self, now: Time) -> Vec<(Actor, Time)> {
        let mut agents = Vec::new();
        for (index, smmu) in self.smmus.iter_mut().enumerate() {
            smmu.next_step(now);
            agents.extend(smmu.due().map(|(agent, at)| (Actor::Smmu(index, agent), at)));
        }
        agents.extend(self.pci.agents().map(|(slot, lane, at)| (Actor::Pci(slot, lane), at)));
        for (index, engine) in self.platform.iter().enumerate() {
            agents.extend(engine.lanes_due().map(|(at, lane)| (Actor::Engine(index, lane), at)));
        }
        let others = [
            (Actor::Its, self.its.next_step(&self.gic, now)),
            (Actor::Uart, self.uart.next_step()),
            (Actor::Rtc, self.rtc.next_step()),
            (Actor::Plug, self.script.next_step()),
        ];
        agents.extend(others.into_iter().filter_map(|(actor, at)| Some((actor, at?))));
        agents
    }

    /// Does one step of one of [`Board::agents`].
    pub fn step_agent(&mut self, actor: Actor, now: Time) {
        self.check(now);
        match actor {
            Actor::Smmu(index, agent) => self.step_smmu(index, agent, now),
            Actor::Pci(slot, lane) => {
                self.pci.step_agent(slot, lane, now);
                self.smmu_wires();
            }
            Actor::Engine(index, lane) => self.step_engine(index, lane, now),
            Actor::Its => self.its.step(&mut self.gic),
            Actor::Uart => {
                self.uart.step(now);
                self.uart_line();
            }
            Actor::Rtc => {
                self.rtc.step(now);
                self.rtc_line();
            }
            Actor::Plug => self.script.step(&mut self.pci, now),
            Actor::Cpu(_) => {}
        }
        self.look(now, Some(actor));
    }

    /// The platform device, and its lane, that steps next.
    fn next_engine(&self) -> Option<(Time, usize, usize)> {
        let lanes = self.platform.iter().enumerate();
        lanes.filter_map(|(index, engine)| engine.next_lane().map(|(at, lane)| (at, index, lane))).min()
    }

    fn step_engine(&mut self, index: usize, lane: usize, now: Time) {
        let edge = self.platform.get_mut(index).and_then(|engine| engine.step_lane(lane, now));
        self.smmu_wires();
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

    fn step_smmu(&mut self, index: usize, agent: SmmuAgent, now: Time) {
        let Some(smmu) = self.smmus.get_mut(index) else { return };
        if smmu.sends(agent, now) && self.inbox.is_full() {
            return smmu.hold(agent, now);
        }
        match smmu.step_agent(agent, now) {
            Effect::None => {}
            Effect::Pmu { wired, msi } => {
                if wired {
                    self.pulse(at::PMCG_SPI + index as u32);
                }
                if let Some(msi) = msi {
                    self.smmu_msi(index, &msi);
                }
            }
            Effect::Msi(msi) => self.smmu_msi(index, &msi),
            Effect::Invalidate(invalidation) => {
                // A StreamID of nobody's is answered with UR, which is no error (IHI 0070 §3.9.1.5).
                let has = smmu.has(invalidation.sid, self.pci.fabric());
                if !(has && self.pci.atc_invalidation(now, &invalidation)) {
                    smmu.smmu().atc_invalidation_done(invalidation.id);
                }
            }
            Effect::Response(response) => {
                if smmu.has(response.sid, self.pci.fabric()) {
                    self.pci.page_response(&response);
                }
            }
        }
        self.smmu_wires();
    }

    /// The SMMUs' wired interrupts, and events to the vCPUs.
    fn smmu_wires(&mut self) {
        for index in 0..self.smmus.len() {
            let wired = self.smmus[index].smmu().take_wired();
            self.event |= wired.sev;
            let edges = [wired.eventq, wired.priq, wired.cmdq_sync, wired.gerror];
            for (line, _) in edges.into_iter().enumerate().filter(|&(_, edge)| edge) {
                self.pulse(at::smmu_spi(index) + line as u32);
            }
        }
    }

    /// An SMMU's MSIs are writes to physical addresses (IHI 0070 §3.18): to RAM or to the ITS.
    fn smmu_msi(&mut self, index: usize, msi: &smmu_model::Msi) {
        let arrived = if msi.address == at::GITS_TRANSLATER {
            let first = match msi.source {
                IrqSource::Pmcg => at::PMCG_DEVICE_ID,
                _ => at::SMMU_DEVICE_ID,
            };
            self.inbox.post(Message { device_id: first + index as u32, event_id: msi.data })
        } else {
            self.ram.write(msi.address, &msi.data.to_le_bytes())
        };
        if !arrived && let Some(smmu) = self.smmus.get(index) {
            smmu.smmu().msi_aborted(msi);
        }
    }

    /// The SMMU whose performance monitors are at an address, and the offset within.
    fn pmcg_at(&self, pa: u64) -> Option<(&SmmuAgents, u64)> {
        let offset = at::PMCGS.offset(pa)?;
        let smmu = self.smmus.get((offset / pmcg::WINDOW) as usize)?;
        smmu.smmu().pmcg().is_some().then_some((smmu, offset % pmcg::WINDOW))
    }

    /// The SMMU at an address, and the offset within.
    fn smmu_at(&self, pa: u64) -> Option<(&SmmuAgents, u64)> {
        let (index, offset) = match at::SMMU_ALL.offset(pa) {
            Some(offset) => (0, offset),
            None => {
                let offset = at::MORE_SMMUS.offset(pa)?;
                (1 + (offset / at::SMMU_SPAN) as usize, offset % at::SMMU_SPAN)
            }
        };
        Some((self.smmus.get(index)?, offset))
    }

    /// Begins or ends a record of what registers vCPUs reach for.
    pub fn note_accesses(&mut self, on: bool) {
        self.accesses = on.then(Vec::new);
    }

    /// The record since the last call: when, and at which address.
    pub fn take_accesses(&mut self) -> std::vec::IntoIter<(Time, u64)> {
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
            accesses.push((now, pa));
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
        if let Some((smmu, offset)) = self.smmu_at(pa) {
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
        if let Some((smmu, offset)) = self.pmcg_at(pa) {
            let mut smmu = smmu.smmu();
            let Some(pmcg) = smmu.pmcg() else { return Err(BusFault) };
            pmcg.advance(now);
            return Ok(pmcg.mmio_read(offset, size).unwrap_or(0));
        }
        if let Some((engine, offset)) = self.engine_at(pa) {
            return Ok(engine.read(now, offset, size));
        }
        Err(BusFault)
    }

    fn mmio_write(&mut self, who: At, pa: u64, size: u8, value: u64) -> Result<(), BusFault> {
        let now = who.now;
        if let Some(accesses) = &mut self.accesses {
            accesses.push((now, pa));
        }
        if let Some(offset) = at::UART.offset(pa) {
            self.uart.write(now, offset, size, value);
            self.uart_line();
        } else if let Some(offset) = at::GICR.offset(pa) {
            self.gic.gicr_write(offset, size, value);
        } else if let Some(offset) = at::GICD.offset(pa) {
            self.gic.gicd_write(offset, size, value);
        } else if self.smmu_at(pa).is_some() {
            self.check(now);
            if let Some((smmu, offset)) = self.smmu_at(pa) {
                smmu.smmu().mmio_write(offset, size, value);
            }
            self.smmu_wires();
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
        } else if let Some((smmu, offset)) = self.pmcg_at(pa) {
            if let Some(pmcg) = smmu.smmu().pmcg() {
                pmcg.advance(now);
                pmcg.mmio_write(offset, size, value);
            }
        } else if let Some((engine, offset)) = self.engine_at(pa) {
            engine.write(now, offset, size, value);
        } else {
            return Err(BusFault);
        }
        self.settle(now);
        Ok(())
    }

    fn icc_read(&mut self, who: At, reg: SysKey) -> Option<u64> {
        let value = self.gic.icc_read(who.cpu, reg.0);
        if let Some((witness, value)) = self.witness.as_mut().zip(value) {
            witness.icc(who, reg, value);
        }
        value
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

    fn traced(&mut self, access: &Traced<'_>) {
        self.checkers.accessed(access);
        if access.flags & touch::FLAGS != 0
            && let Some(witness) = &mut self.witness
        {
            witness.cpu(access);
        }
    }
}
