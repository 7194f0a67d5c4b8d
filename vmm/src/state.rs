//! All of a machine's state but RAM, as plain data (design contract 7): what is saved, restored and hashed.

use aarch64::State;
use devices::gic::GicState;
use devices::lab::Lab;
use devices::pci::PciHostState;
use devices::pl011::Pl011;
use devices::pl031::Pl031;
use devices::testdev::{PlatformEngine, PlatformEngineState};
use serde::{Deserialize, Serialize};
use smmu_model::Smmu;

use crate::its_agent::ItsAgent;
use crate::machine::{Machine, Turns};
use crate::plug::Progress;
use crate::pools::PoolsState;
use crate::smmu_agents::{Due, SmmuAgents};

/// The state of vCPUs, scheduler and devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    vcpus: State,
    turns: Turns,
    gic: GicState,
    uart: Pl011,
    rtc: Pl031,
    pci: PciHostState,
    pools: PoolsState,
    platform: Vec<PlatformEngineState>,
    smmus: Vec<(Smmu, Due)>,
    its: ItsAgent,
    /// How far the plug script is.
    plugged: Progress,
    event: bool,
    lab: Option<Lab>,
}

/// A state does not belong to the machine that was to take it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is of another machine")]
pub struct OtherMachine;

impl MachineState {
    /// The state of a machine that does not run just now.
    pub fn save(machine: &Machine) -> Self {
        let board = &machine.board;
        Self {
            vcpus: machine.cluster.state().clone(),
            turns: machine.turns(),
            gic: board.gic.save(),
            uart: board.uart.clone(),
            rtc: board.rtc.clone(),
            pci: board.pci.save(),
            pools: board.pools.save(),
            platform: board.platform.iter().map(PlatformEngine::save).collect(),
            smmus: board.smmus.iter().map(SmmuAgents::save).collect(),
            its: board.its,
            plugged: board.script.progress(),
            event: board.event(),
            lab: board.lab.clone(),
        }
    }

    /// Gives a machine built from the same options this state. Its RAM has to hold what it held.
    ///
    /// # Errors
    /// When the state does not fit; the machine is not usable then.
    pub fn restore(self, machine: &mut Machine) -> Result<(), OtherMachine> {
        if !machine.restore_turns(self.turns) {
            return Err(OtherMachine);
        }
        machine.cluster.restore(self.vcpus);
        let board = &mut machine.board;
        board.gic.restore(self.gic).map_err(|_| OtherMachine)?;
        board.uart = self.uart;
        board.rtc = self.rtc;
        if !board.script.resume(self.plugged, &mut board.pci, &self.pci) {
            return Err(OtherMachine);
        }
        board.pci.restore(self.pci).map_err(|_| OtherMachine)?;
        if !board.pools.restore(&self.pools) {
            return Err(OtherMachine);
        }
        if board.platform.len() != self.platform.len() {
            return Err(OtherMachine);
        }
        for (engine, state) in board.platform.iter_mut().zip(self.platform) {
            engine.restore(state).map_err(|_| OtherMachine)?;
        }
        if board.smmus.len() != self.smmus.len() {
            return Err(OtherMachine);
        }
        for (smmu, state) in board.smmus.iter_mut().zip(self.smmus) {
            smmu.restore(state);
        }
        board.its = self.its;
        if board.lab.is_some() != self.lab.is_some() {
            return Err(OtherMachine);
        }
        board.lab = self.lab;
        board.set_event(self.event);
        Ok(())
    }
}
