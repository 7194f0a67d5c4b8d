//! What gdb may ask of a run: gdbstub's traits.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::num::NonZeroUsize;

use gdbstub::arch::Arch;
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::ConnectionExt;
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target as GdbTarget, TargetError, TargetResult};
use gdbstub_arch::aarch64::AArch64;
use gdbstub_arch::aarch64::reg::AArch64CoreRegs;

use guest_ram::PAGE_SIZE;

use super::iova;
use super::timeless::{Stepped, Timeless};
use crate::machine::Stop;
use crate::touch::Touch;

type StopReason = MultiThreadStopReason<u64>;

/// What `monitor` can do.
const HELP: &str = "\
monitor where                                    how many instructions have been executed, and the virtual time;
                                                 behind a read watchpoint also who touched what
monitor iova STREAM[:SUBSTREAM] ADDRESS [BYTES]  memory as a device sees it, through its SMMU";

/// Steps between two looks at whether gdb wants to interrupt.
const PATIENCE: u32 = 20_000;

/// How the run is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    Continue,
    Step,
    Back,
    StepBack,
}

/// Memory that stops the run when it is changed, or read, or either, whoever does it: a vCPU, a device, the SMMU.
struct Watched {
    va: u64,
    kind: WatchKind,
    /// Where it is in RAM.
    pa: u64,
    content: Vec<u8>,
}

impl Watched {
    /// Whether an access is to some of it, and of the kind that is looked for. Changes are seen by what is there.
    fn is_touched(&self, touch: &Touch, base: u64) -> bool {
        let (first, end) = (base + touch.offset, base + touch.offset + touch.len);
        let overlaps = first < self.pa + self.content.len() as u64 && self.pa < end;
        overlaps
            && match self.kind {
                WatchKind::Write => false,
                WatchKind::Read => !touch.write,
                WatchKind::ReadWrite => true,
            }
    }
}

/// A run under gdb.
pub(super) struct Target {
    run: Timeless,
    breakpoints: BTreeSet<u64>,
    watched: Vec<Watched>,
    /// Who touched watched memory last, if that stopped the run.
    toucher: Option<Touch>,
    resume: Resume,
}

impl Target {
    pub(super) fn new(run: Timeless) -> Self {
        Self {
            run,
            breakpoints: BTreeSet::new(),
            watched: Vec::new(),
            toucher: None,
            resume: Resume::Continue,
        }
    }

    fn cpu(&self, tid: Tid) -> usize {
        (tid.get() - 1).min(self.run.machine.cluster.cpus() - 1)
    }

    fn tid(&self) -> Tid {
        NonZeroUsize::MIN.saturating_add(self.run.cpu())
    }

    /// Each byte's address in RAM, by a vCPU's tables.
    fn physical(&self, cpu: usize, va: u64) -> Option<u64> {
        let machine = &self.run.machine;
        machine.cluster.core(cpu).physical(&machine.board.ram, va)
    }

    /// Whether a breakpoint or a change of watched memory stops the run here.
    fn caught(&mut self) -> Option<StopReason> {
        let tid = self.tid();
        let ram = &self.run.machine.board.ram;
        let mut seen = None;
        self.toucher = None;
        for watched in &mut self.watched {
            let touch = self.run.touches().iter().find(|touch| watched.is_touched(touch, ram.base()));
            if let Some(touch) = touch {
                self.toucher = Some(*touch);
                seen = Some((watched.va, watched.kind));
            }
            let mut now = vec![0; watched.content.len()];
            ram.read(watched.pa, &mut now);
            if now != watched.content {
                watched.content = now;
                if watched.kind == WatchKind::Write {
                    seen = Some((watched.va, watched.kind));
                }
            }
        }
        if let Some((addr, kind)) = seen {
            return Some(StopReason::Watch { tid, kind, addr });
        }
        let cluster = &self.run.machine.cluster;
        let hit = (0..cluster.cpus()).find(|&cpu| {
            // One that did not move has been there before.
            cpu == self.run.cpu() && self.breakpoints.contains(&cluster.core(cpu).pc)
        })?;
        Some(StopReason::SwBreak(NonZeroUsize::MIN.saturating_add(hit)))
    }

    /// Lets the run tell of accesses to all memory that is watched for reads.
    fn trace(&mut self) {
        let base = self.run.machine.board.ram.base();
        let page = |pa: u64| ((pa - base) / PAGE_SIZE as u64) as usize;
        let reads = self.watched.iter().filter(|watched| watched.kind != WatchKind::Write);
        let pages = reads.flat_map(|w| page(w.pa)..=page(w.pa + w.content.len() as u64 - 1));
        let pages = pages.collect();
        self.run.trace(&pages);
    }

    /// Forgets what watched memory held, when the run was put elsewhere.
    fn look_again(&mut self) {
        let ram = &self.run.machine.board.ram;
        for watched in &mut self.watched {
            ram.read(watched.pa, &mut watched.content);
        }
    }

    fn forward(&mut self) -> Option<StopReason> {
        match self.run.step() {
            Stepped::Over(Stop::PowerOff) => Some(StopReason::Exited(0)),
            Stepped::Over(_) => {
                Some(StopReason::ReplayLog { tid: Some(self.tid()), pos: ReplayLogPosition::End })
            }
            Stepped::Executed => self.caught(),
        }
    }

    /// A step is done, by the vCPU whose turn it was.
    fn stepped(&self) -> StopReason {
        StopReason::SignalWithThread { tid: self.tid(), signal: Signal::SIGTRAP }
    }

    fn step_back(&mut self) -> StopReason {
        let position = self.run.position();
        self.run.go_to(position.saturating_sub(1));
        self.look_again();
        match position {
            0 => StopReason::ReplayLog { tid: Some(self.tid()), pos: ReplayLogPosition::Begin },
            _ => self.stepped(),
        }
    }

    /// The last stop before here: the run goes by once to find it and once to get there.
    fn back(&mut self) -> StopReason {
        let here = self.run.position();
        self.run.begin_again();
        self.look_again();
        let mut last = None;
        while self.run.position() + 1 < here && self.run.step() == Stepped::Executed {
            if let Some(reason) = self.caught() {
                last = Some((self.run.position(), reason));
            }
        }
        let (position, reason) =
            last.unwrap_or((0, StopReason::ReplayLog { tid: None, pos: ReplayLogPosition::Begin }));
        self.run.go_to(position);
        self.look_again();
        reason
    }
}

/// Lets the run go on until it stops or gdb has something to say.
pub(super) enum Events {}

impl BlockingEventLoop for Events {
    type Target = Target;
    type Connection = TcpStream;
    type StopReason = StopReason;

    fn wait_for_stop_reason(
        target: &mut Target,
        connection: &mut TcpStream,
    ) -> Result<Event<StopReason>, WaitForStopReasonError<anyhow::Error, std::io::Error>> {
        match target.resume {
            Resume::Back => return Ok(Event::TargetStopped(target.back())),
            Resume::StepBack => return Ok(Event::TargetStopped(target.step_back())),
            Resume::Step => {
                let reason = target.forward().unwrap_or_else(|| target.stepped());
                return Ok(Event::TargetStopped(reason));
            }
            Resume::Continue => {}
        }
        loop {
            for _ in 0..PATIENCE {
                if let Some(reason) = target.forward() {
                    return Ok(Event::TargetStopped(reason));
                }
            }
            if connection.peek().map_err(WaitForStopReasonError::Connection)?.is_some() {
                let byte = ConnectionExt::read(connection).map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    fn on_interrupt(target: &mut Target) -> Result<Option<StopReason>, anyhow::Error> {
        Ok(Some(StopReason::SignalWithThread { tid: target.tid(), signal: Signal::SIGINT }))
    }
}

impl GdbTarget for Target {
    type Arch = AArch64;
    type Error = anyhow::Error;

    fn base_ops(&mut self) -> BaseOps<'_, AArch64, anyhow::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    // The run is a recording: breakpoints never change memory.
    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }
}

impl MultiThreadBase for Target {
    fn read_registers(&mut self, regs: &mut AArch64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let core = self.run.machine.cluster.core(self.cpu(tid));
        regs.x.copy_from_slice(&core.r[..31]);
        regs.sp = core.r[usize::from(aarch64::core::SP)];
        regs.pc = core.pc;
        regs.cpsr = aarch64::exception::spsr(core) as u32;
        regs.v = core.v;
        regs.fpcr = core.fpcr;
        regs.fpsr = core.fpsr;
        Ok(())
    }

    fn write_registers(&mut self, _regs: &AArch64CoreRegs, _tid: Tid) -> TargetResult<(), Self> {
        // A recording cannot be changed.
        Err(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let cpu = self.cpu(tid);
        for (done, byte) in data.iter_mut().enumerate() {
            let pa = self.physical(cpu, start.wrapping_add(done as u64));
            let mut one = [0];
            if !pa.is_some_and(|pa| self.run.machine.board.ram.read(pa, &mut one)) {
                return if done == 0 { Err(TargetError::NonFatal) } else { Ok(done) };
            }
            *byte = one[0];
        }
        Ok(data.len())
    }

    fn write_addrs(&mut self, _start: u64, _data: &[u8], _tid: Tid) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), anyhow::Error> {
        (0..self.run.machine.cluster.cpus()).for_each(|cpu| register(NonZeroUsize::MIN.saturating_add(cpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Target {
    fn resume(&mut self) -> Result<(), anyhow::Error> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), anyhow::Error> {
        self.resume = Resume::Continue;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        _tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), anyhow::Error> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Target {
    /// The schedule says which vCPU is next: a step is the run's, whatever thread gdb looks at.
    fn set_resume_action_step(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), anyhow::Error> {
        self.resume = Resume::Step;
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target {
    /// Who runs is the schedule's to say.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), anyhow::Error> {
        Ok(())
    }
}

impl ReverseStep<Tid> for Target {
    fn reverse_step(&mut self, _tid: Tid) -> Result<(), anyhow::Error> {
        self.resume = Resume::StepBack;
        Ok(())
    }
}

impl ReverseCont<Tid> for Target {
    fn reverse_cont(&mut self) -> Result<(), anyhow::Error> {
        self.resume = Resume::Back;
        Ok(())
    }
}

impl Breakpoints for Target {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target {
    fn add_sw_breakpoint(
        &mut self,
        addr: u64,
        _kind: <AArch64 as Arch>::BreakpointKind,
    ) -> TargetResult<bool, Self> {
        self.breakpoints.insert(addr);
        Ok(true)
    }

    fn remove_sw_breakpoint(
        &mut self,
        addr: u64,
        _kind: <AArch64 as Arch>::BreakpointKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.remove(&addr))
    }
}

impl HwWatchpoint for Target {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let cpu = self.run.cpu();
        let Some(pa) = self.physical(cpu, addr).filter(|_| (1..=4096).contains(&len)) else {
            return Ok(false);
        };
        let mut content = vec![0; len as usize];
        let there = self.run.machine.board.ram.read(pa, &mut content);
        if there {
            self.watched.push(Watched { va: addr, kind, pa, content });
            self.trace();
        }
        Ok(there)
    }

    fn remove_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let before = self.watched.len();
        self.watched
            .retain(|watched| (watched.va, watched.content.len() as u64, watched.kind) != (addr, len, kind));
        self.trace();
        Ok(self.watched.len() < before)
    }
}

impl MonitorCmd for Target {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), anyhow::Error> {
        let command = String::from_utf8_lossy(command);
        let machine = &self.run.machine;
        let (command, rest) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
        match command {
            "where" => {
                outputln!(out, "instruction {} of the run, at {} ns", self.run.position(), machine.now());
                if let Some(touch) = self.toucher {
                    let did = if touch.write { "wrote" } else { "read" };
                    let address = machine.board.ram.base() + touch.offset;
                    outputln!(
                        out,
                        "{} {did} {} bytes at physical address {address:#x}",
                        touch.who,
                        touch.len
                    );
                }
            }
            "iova" => match iova::Request::parse(rest).and_then(|request| iova::look(machine, request)) {
                Ok(text) => text.lines().for_each(|line| outputln!(out, "{line}")),
                Err(e) => outputln!(out, "{e:#}"),
            },
            _ => HELP.lines().for_each(|line| outputln!(out, "{line}")),
        }
        Ok(())
    }
}
