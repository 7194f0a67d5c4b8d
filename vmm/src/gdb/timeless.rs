//! A machine that can be put to any instruction of its run.

use crate::machine::{Machine, Stop};
use crate::schedule::Schedule;
use crate::state::MachineState;
use guest_ram::PAGE_SIZE;

/// A machine, and all that it takes to begin again.
pub struct Timeless {
    /// The machine, where the run is now.
    pub machine: Machine,
    state: MachineState,
    schedule: Option<Schedule>,
    pages: Vec<(u64, Box<[u8]>)>,
    /// Instructions that had been executed at the beginning.
    begin: u64,
    /// What stopped the run, if something has.
    stop: Option<Stop>,
    /// The vCPU that executed the last instruction.
    cpu: usize,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// An instruction was executed.
    Executed,
    /// The run is over.
    Over(Stop),
}

impl Timeless {
    /// Begins where the machine is.
    pub fn new(mut machine: Machine) -> Self {
        // Idle time is skipped here, not inside the machine: a step is one instruction.
        machine.real_time_idle = true;
        let mut pages = Vec::new();
        machine.board.ram.for_each_nonzero_page(|offset, page| pages.push((offset, page.into())));
        let schedule = machine.schedule().cloned();
        let (state, begin) = (MachineState::save(&machine), machine.retired());
        Self { machine, state, schedule, pages, begin, stop: None, cpu: 0 }
    }

    /// Instructions executed since the beginning.
    pub fn position(&self) -> u64 {
        self.machine.retired() - self.begin
    }

    /// The vCPU that executed the last instruction.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// Executes one instruction, and all agents' steps that are due before it.
    pub fn step(&mut self) -> Stepped {
        let before = self.machine.retired();
        let by_cpu: Vec<u64> = self.retired();
        loop {
            if let Some(stop) = self.stop {
                return Stepped::Over(stop);
            }
            let stop = self.machine.run(self.machine.now() + 1);
            match stop {
                Stop::Until => {}
                Stop::Sleep(time) => self.machine.sleep_until(time),
                stop => self.stop = Some(stop),
            }
            self.machine.board.uart.take_output();
            crate::run::take_virtio_console(&mut self.machine);
            if self.machine.retired() != before {
                let moved = self.retired().iter().zip(&by_cpu).position(|(now, then)| now != then);
                self.cpu = moved.unwrap_or(self.cpu);
                return Stepped::Executed;
            }
        }
    }

    fn retired(&self) -> Vec<u64> {
        (0..self.machine.cluster.cpus()).map(|cpu| self.machine.cluster.core(cpu).retired()).collect()
    }

    /// Goes back to the beginning.
    pub fn begin_again(&mut self) {
        let ram = self.machine.board.ram.clone();
        let mut there = Vec::new();
        ram.for_each_nonzero_page(|offset, _| there.push(offset));
        for offset in there {
            ram.write(ram.base() + offset, &[0; PAGE_SIZE]);
        }
        for (offset, page) in &self.pages {
            ram.write(ram.base() + offset, page);
        }
        // The machine is the one that the state was saved from.
        let restored = self.state.clone().restore(&mut self.machine);
        debug_assert!(restored.is_ok());
        self.machine.resume(self.schedule.clone());
        (self.stop, self.cpu) = (None, 0);
    }

    /// Goes to where so many instructions have been executed.
    pub fn go_to(&mut self, position: u64) {
        if position < self.position() {
            self.begin_again();
        }
        while self.position() < position && self.step() == Stepped::Executed {}
    }
}
