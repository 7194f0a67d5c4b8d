//! A machine that can be put to any instruction of its run.

use std::collections::BTreeSet;

use devices::lab::Mark;
use guest_ram::PAGE_SIZE;

use crate::machine::{Machine, Stop};
use crate::schedule::Schedule;
use crate::state::MachineState;
use crate::touch::{self, Touch, Witness};

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
    /// The mark that the guest wrote with it.
    marked: Option<Mark>,
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
        Self { machine, state, schedule, pages, begin, stop: None, cpu: 0, marked: None }
    }

    /// Instructions executed since the beginning.
    pub fn position(&self) -> u64 {
        self.machine.retired() - self.begin
    }

    /// The vCPU that executed the last instruction.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// Tells from now on, by [`Timeless::touches`], of accesses to these pages of RAM, by number.
    pub fn trace(&mut self, pages: &BTreeSet<usize>) {
        touch::trace_none(&self.machine.board.ram);
        touch::trace(&self.machine.board.ram, pages.iter().copied());
        self.machine.board.witness = (!pages.is_empty()).then(|| Box::new(Witness::Log(Vec::new())));
    }

    /// The accesses to traced pages that the last step made.
    pub fn touches(&self) -> &[Touch] {
        match self.machine.board.witness.as_deref() {
            Some(Witness::Log(log)) => log,
            _ => &[],
        }
    }

    /// The mark that the guest wrote with the last instruction.
    pub fn marked(&self) -> Option<Mark> {
        self.marked
    }

    /// Executes one instruction, and all agents' steps that are due before it.
    pub fn step(&mut self) -> Stepped {
        let before = self.machine.retired();
        let by_cpu: Vec<u64> = self.retired();
        if let Some(Witness::Log(log)) = self.machine.board.witness.as_deref_mut() {
            log.clear();
        }
        loop {
            if let Some(stop) = self.stop {
                return Stepped::Over(stop);
            }
            let stop = self.machine.run(self.machine.now() + 1);
            self.marked = if let Stop::Marked(mark, _) = stop { Some(mark) } else { None };
            match stop {
                Stop::Until | Stop::Marked(Mark::Begin | Mark::Snapshot, _) => {}
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
        (self.stop, self.cpu, self.marked) = (None, 0, None);
    }

    /// Goes to where so many instructions have been executed.
    pub fn go_to(&mut self, position: u64) {
        if position < self.position() {
            self.begin_again();
        }
        while self.position() < position && self.step() == Stepped::Executed {}
    }
}
