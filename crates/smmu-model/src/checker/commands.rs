//! What the guest tells the SMMU: registers and commands.

use super::State;
use super::queue::{Logged, reserved};
use super::report::{Kind, Report};
use super::scope::{Coverage, covers, describe};
use super::site::{Role, Site};
use super::streams::What;
use super::tables::Entry;
use crate::spec::command::{Cerror, Command, Opcode};
use crate::spec::registers::{self as r, cr0, cr2};

impl State {
    /// A word of a register reads as `value` now.
    pub(super) fn register(&mut self, offset: u64, value: u32) {
        let half = |old: u64, high: bool| match high {
            false => old & !0xffff_ffff | u64::from(value),
            true => old & 0xffff_ffff | u64::from(value) << 32,
        };
        match offset {
            r::CR0 => self.cr0_written(value),
            r::CR2 => self.streams.set_e2h(value & cr2::E2H != 0, &self.config),
            r::CMDQ_BASE => self.commands.set_base(half(self.commands.queue.base, false), &self.config),
            0x94 => self.commands.set_base(half(self.commands.queue.base, true), &self.config),
            r::CMDQ_CONS if !self.commands.enabled => self.commands.queue.cons = value,
            r::CMDQ_PROD => {
                self.commands.queue.prod = value;
                if self.commands.enabled && self.commands.is_overrun() {
                    let n = self.commands.geometry().entries();
                    let waiting = self.commands.handed_over();
                    let what = format!(
                        "CMDQ_PROD was moved past CMDQ_CONS: {waiting} commands are handed over in a queue of {n}"
                    );
                    let key = (u64::from(value), self.seq);
                    self.report(key, Report::new(Kind::CommandOverwritten, self.now, what));
                }
            }
            r::GERRORN => self.commands.stopped = false,
            r::EVENTQ_PROD => self.output_queue(0, 0, value),
            r::EVENTQ_CONS => self.output_queue(0, 1, value),
            r::PRIQ_PROD => self.output_queue(1, 0, value),
            r::PRIQ_CONS => self.output_queue(1, 1, value),
            _ => {}
        }
    }

    pub(super) fn cr0_written(&mut self, value: u32) {
        let changed = self.cr0 ^ value;
        self.cr0 = value;
        self.smmuen = value & cr0::SMMUEN != 0;
        if changed & cr0::SMMUEN != 0 && !self.smmuen {
            self.answers.disabled();
        }
        if changed & cr0::CMDQEN != 0 {
            self.commands.enabled = value & cr0::CMDQEN != 0;
            for page in self.commands.pages() {
                if self.commands.enabled {
                    self.memory.hold_queue(page)
                } else {
                    self.memory.release_queue(page)
                }
            }
        }
    }

    /// A vCPU changes a word of the command queue.
    pub(super) fn command_store(&mut self, at: u64, site: &Site) {
        if !self.commands.is_handed_over(at) {
            return;
        }
        let before = self.memory.writer(at);
        let what = format!(
            "the command at {:#x} was changed after it had been handed over, and before it was consumed",
            at & !15
        );
        let report = Report::new(Kind::CommandOverwritten, site.time, what)
            .site(Role::Invalidation, before)
            .site(Role::Reuse, Some(*site));
        self.report((at & !15, 0), report);
    }

    /// A command is consumed.
    pub(super) fn command(&mut self, command: &Command) {
        let seq = self.tick();
        let site = self.memory.writer(self.commands.at);
        let logged = Logged { seq, command: *command, site };
        self.commands.consumed(logged);
        if let Some([first, second]) = reserved(command, &self.config) {
            let what = format!(
                "{} has reserved bits set: {first:#x} in its first doubleword, {second:#x} in its second",
                describe(command, &self.config)
            );
            let report = Report::new(Kind::CommandReserved, self.now, what).site(Role::Invalidation, site);
            let code = site.map_or(0, |s| s.pc);
            self.report((u64::from(command.0[0] as u8), code), report);
        }
        match command.opcode() {
            Some(Opcode::Sync) => self.synchronised(),
            Some(Opcode::Resume) => self.answers.resumed(command.sid(), Some(command.0[1] as u16)),
            Some(Opcode::StallTerm) => self.answers.resumed(command.sid(), None),
            Some(Opcode::PriResp) => self.answers.responded(command.sid(), command.prg_index()),
            Some(Opcode::PrefetchCfg | Opcode::PrefetchAddr) | None => {}
            Some(Opcode::AtcInv) => {
                self.atc_inv_consumed(command, site);
                self.commands.pending.push(logged);
            }
            Some(_) => self.commands.pending.push(logged),
        }
    }

    /// A CMD_SYNC completes: whatever the invalidations before it cover, nobody holds any more.
    fn synchronised(&mut self) {
        let mut pending = std::mem::take(&mut self.commands.pending);
        let mut configuration = false;
        let e2h = self.streams.e2h();
        for logged in pending.drain(..) {
            let (c, seq) = (&logged.command, logged.seq);
            match c.opcode() {
                Some(Opcode::CfgiSte) => self.streams.invalidated(|what| what.sid() == c.sid(), seq),
                Some(Opcode::CfgiSteRange) => {
                    let span = u32::MAX >> (31 - c.range());
                    self.streams.invalidated(|what| what.sid() | span == c.sid() | span, seq);
                }
                Some(Opcode::CfgiCd) => {
                    let cd = if self.config.ssidsize == 0 { 0 } else { c.ssid() };
                    self.streams.invalidated(|what| what == What::Cd(c.sid(), cd), seq);
                }
                Some(Opcode::CfgiCdAll) => {
                    self.streams.invalidated(|what| matches!(what, What::Cd(sid, _) if sid == c.sid()), seq);
                }
                Some(Opcode::AtcInv) => {
                    self.atc_inv_completed(c, seq);
                    continue;
                }
                None => continue,
                Some(_) => {
                    let config = &self.config;
                    let covered = |e: &Entry| {
                        e.dead.is_some_and(|death| death.seq < seq)
                            && covers(c, e, config, e2h) == Coverage::Whole
                    };
                    self.tables.remove_dead(covered);
                    continue;
                }
            }
            self.level1_invalidated(c, seq);
            configuration = true;
        }
        // Its room is there for the next.
        self.commands.pending = pending;
        if configuration {
            for at in self.streams.forget_lost(&self.config) {
                self.memory.release_configuration(at);
            }
        }
        self.watch();
    }

    /// A command stopped the queue.
    pub(super) fn command_error(&mut self, command: &Command, error: Cerror) {
        self.commands.stopped = true;
        if error != Cerror::Ill {
            return;
        }
        let site = self.memory.writer(self.commands.at);
        let [first, second] = command.0;
        let what = format!(
            "the SMMU refused {} as illegal: {first:#018x} {second:#018x}",
            describe(command, &self.config)
        );
        let report = Report::new(Kind::CommandIllegal, self.now, what).site(Role::Invalidation, site);
        self.report((first & 0xff, site.map_or(0, |s| s.pc)), report);
    }
}
