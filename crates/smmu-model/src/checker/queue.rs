//! The command queue as the guest fills it, and what was in it.

use std::collections::VecDeque;

use super::site::Site;
use crate::config::Config;
use crate::queue::{Geometry, Queue};
use crate::spec::command::{COMMAND_SHIFT, Command, Opcode};

/// How many consumed commands are remembered for reports.
const LOG: usize = 512;

/// A command that was consumed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logged {
    pub(super) seq: u64,
    pub(super) command: Command,
    pub(super) site: Option<Site>,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) queue: Queue,
    /// Of the queue, by its base.
    geometry: Geometry,
    pub(super) enabled: bool,
    /// The queue has stopped with an error that is not acknowledged.
    pub(super) stopped: bool,
    /// Address of the command that was read last.
    pub(super) at: u64,
    log: VecDeque<Logged>,
    /// Invalidations that no CMD_SYNC has completed yet.
    pub(super) pending: Vec<Logged>,
}

impl Commands {
    pub(super) fn new(queue: Queue, config: &Config) -> Self {
        Commands {
            queue,
            geometry: queue.geometry(config.cmdqs, config.oas, COMMAND_SHIFT),
            enabled: false,
            stopped: false,
            at: 0,
            log: VecDeque::new(),
            pending: Vec::new(),
        }
    }

    /// CMDQ_BASE is this now.
    pub(super) fn set_base(&mut self, base: u64, config: &Config) {
        self.queue.base = base;
        self.geometry = self.queue.geometry(config.cmdqs, config.oas, COMMAND_SHIFT);
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The pages it lies in.
    pub(super) fn pages(&self) -> Vec<u64> {
        let g = self.geometry;
        let (first, bytes) = (g.entry(0), g.entries() << COMMAND_SHIFT);
        (first & !0xfff..first + bytes).step_by(4096).collect()
    }

    /// Whether a store to `at` hits a command that was handed over and is not consumed, nor the one that the queue
    /// stopped at.
    pub(super) fn is_handed_over(&self, at: u64) -> bool {
        let g = self.geometry;
        let (n, slot) = (g.entries(), at.wrapping_sub(g.entry(0)) >> COMMAND_SHIFT);
        if !self.enabled || slot >= n {
            return false;
        }
        let ahead = (slot as u32).wrapping_sub(self.queue.cons) & (n as u32 - 1);
        ahead < self.handed_over() && !(self.stopped && ahead == 0)
    }

    /// How many commands wait; more than there is room for if the queue was overrun.
    pub(super) fn handed_over(&self) -> u32 {
        let n = self.geometry.entries() as u32;
        self.queue.prod.wrapping_sub(self.queue.cons) & (2 * n - 1)
    }

    pub(super) fn is_overrun(&self) -> bool {
        u64::from(self.handed_over()) > self.geometry.entries()
    }

    /// A command is consumed.
    pub(super) fn consumed(&mut self, logged: Logged) {
        let g = self.geometry;
        // Another queue's commands do not move this one.
        if self.at == g.entry(self.queue.cons) {
            self.queue.advance_cons(g);
        }
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(logged);
    }

    /// What was consumed, newest first.
    pub(super) fn recent(&self) -> impl Iterator<Item = &Logged> {
        self.log.iter().rev()
    }
}

/// The bits of a command that may be set (chapter 4).
fn fields(opcode: Opcode, config: &Config) -> [u64; 2] {
    const OP: u64 = 0xff;
    const SSEC: u64 = 1 << 10;
    const SSV: u64 = 1 << 11;
    const SSID: u64 = 0xf_ffff << 12;
    const SID: u64 = 0xffff_ffff << 32;
    const VMID: u64 = 0xffff << 32;
    const ASID: u64 = 0xffff << 48;
    const ADDRESS: u64 = !0xfff;
    let (num_scale, tg_ttl) = if config.ril { (0x1f << 12 | 0x1f << 20, 0xf << 8) } else { (0, 0) };
    match opcode {
        Opcode::PrefetchCfg => [OP | SSEC | SSV | SSID | SID, 0],
        Opcode::PrefetchAddr => [!0, !0],
        Opcode::CfgiSte => [OP | SSEC | SID, 1],
        Opcode::CfgiSteRange => [OP | SSEC | SID, 0x1f],
        Opcode::CfgiCd => [OP | SSEC | SSID | SID, 1],
        Opcode::CfgiCdAll | Opcode::StallTerm => [OP | SSEC | SID, 0],
        Opcode::TlbiNhAll | Opcode::TlbiS12Vmall => [OP | VMID, 0],
        Opcode::TlbiNhAsid => [OP | VMID | ASID, 0],
        Opcode::TlbiNhVa => [OP | num_scale | VMID | ASID, 1 | tg_ttl | ADDRESS],
        Opcode::TlbiNhVaa => [OP | num_scale | VMID, 1 | tg_ttl | ADDRESS],
        Opcode::TlbiEl2All | Opcode::TlbiNsnhAll => [OP, 0],
        Opcode::TlbiEl2Asid => [OP | ASID, 0],
        Opcode::TlbiEl2Va => [OP | num_scale | ASID, 1 | tg_ttl | ADDRESS],
        Opcode::TlbiEl2Vaa => [OP | num_scale, 1 | tg_ttl | ADDRESS],
        Opcode::TlbiS2Ipa => [OP | num_scale | VMID, 1 | tg_ttl | ADDRESS & ((1 << 56) - 1)],
        Opcode::AtcInv => [OP | 1 << 9 | SSEC | SSV | SSID | SID, 0x3f | ADDRESS],
        Opcode::PriResp => [OP | SSEC | SSV | SSID | SID, 0x1ff | 3 << 12],
        Opcode::Resume => [OP | SSEC | 3 << 12 | SID, 0xffff],
        Opcode::Sync => [OP | 3 << 12 | 3 << 22 | 0xf << 24 | 0xffff_ffff << 32, ((1 << 56) - 1) & !3],
    }
}

/// Bits of a command that must be 0 and are not.
pub(super) fn reserved(command: &Command, config: &Config) -> Option<[u64; 2]> {
    let allowed = fields(command.opcode()?, config);
    let wrong = [command.0[0] & !allowed[0], command.0[1] & !allowed[1]];
    (wrong != [0, 0]).then_some(wrong)
}
