//! The command queue's consumer: one command a step, in order, whether or not SMMUEN is set (chapter 4).

use pgtable::Granule;
use serde::{Deserialize, Serialize};

use crate::ats::EVERYTHING;
use crate::cache::{Asid, Invalidation, Scope, World};
use crate::config::{Config, StallModel, Unaligned};
use crate::memory::Memory;
use crate::queue::{Geometry, Queue};
use crate::smmu::Smmu;
use crate::spec::command::{COMMAND_SHIFT, Cerror, Command, Opcode, Signal};
use crate::spec::registers::{cr0, gerror};
use crate::transaction::{AccessKind, Progress, Transaction, TxnId};
use crate::translate::{State, context_key, l1std_range, leads_to};

const EL1: &[World] = &[World::NsEl1];
const EL2: &[World] = &[World::El2, World::El2E2h];

/// What a CMD_SYNC found when its turn came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sync {
    /// Invalidations so far.
    epoch: u64,
    /// Events so far.
    events: u64,
}

/// The level that TTL names. Level 1 has no blocks with 16 KiB, but with DS: the hint is else reserved and ignored.
fn level(command: &Command, ds: bool) -> Option<i8> {
    match (command.ttl(), command.tg()) {
        (0, _) => None,
        (1, 2) if !ds => None,
        (level, _) => Some(level as i8),
    }
}

/// SCALE, as wide as it is here.
fn scale(command: &Command, ds: bool) -> u32 {
    if ds { command.scale() } else { (command.0[0] >> 20 & 0x1f) as u32 }
}

/// A prefetch under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prefetch {
    queue: u32,
    id: TxnId,
    /// Addresses that have been done.
    done: u32,
}

/// Addresses that one CMD_PREFETCH_ADDR does at most.
const PREFETCHES: u32 = 64;

/// Whether a TLBI names a VMID or ASID that is wider than those implemented.
fn has_unknown_id(config: &Config, opcode: Opcode, command: &Command) -> bool {
    use Opcode::{
        TlbiEl2Asid, TlbiEl2Va, TlbiNhAll, TlbiNhAsid, TlbiNhVa, TlbiNhVaa, TlbiS2Ipa, TlbiS12Vmall,
    };
    let widest_vmid = match (config.s2p, config.vmid16) {
        (false, _) => 0,
        (true, false) => 0xff,
        (true, true) => 0xffff,
    };
    let vmid = matches!(opcode, TlbiNhAll | TlbiNhAsid | TlbiNhVa | TlbiNhVaa | TlbiS12Vmall | TlbiS2Ipa);
    let asid = matches!(opcode, TlbiNhAsid | TlbiNhVa | TlbiEl2Asid | TlbiEl2Va);
    vmid && command.vmid() > widest_vmid || asid && !config.asid16 && command.asid() > 0xff
}

/// What became of a command.
enum Done {
    /// It is consumed.
    Consumed,
    /// It has to wait: a CMD_SYNC for transactions under way.
    Wait,
    /// It stops the queue.
    Error(Cerror),
}

impl Smmu {
    fn cmdq(&self, queue: usize) -> Geometry {
        self.queue(queue).geometry(self.config.cmdqs, self.config.oas, COMMAND_SHIFT)
    }

    /// How many command queues there are: queue 0 is CMDQ, the others are enhanced ones. Each is an agent of its own.
    #[must_use]
    pub fn command_queues(&self) -> usize {
        1 + self.regs.ecmdqs.len()
    }

    /// Whether a queue has a command that can be consumed. A CMD_SYNC that waits for transactions is nothing to do.
    #[must_use]
    pub fn command_pending_in(&self, queue: usize) -> bool {
        let (running, sync) = match queue.checked_sub(1) {
            None => {
                let enabled = self.regs.cr0 & cr0::CMDQEN != 0;
                (enabled && !self.regs.gerror_active(gerror::CMDQ_ERR), self.sync)
            }
            Some(n) => match self.regs.ecmdqs.get(n) {
                Some(ecmdq) => (ecmdq.is_running(), ecmdq.sync),
                None => return false,
            },
        };
        running
            && !self.queue(queue).is_empty(self.cmdq(queue))
            && !sync.is_some_and(|sync| self.blocks(&sync))
            && !self.invalidations.full()
            && !self.pri.full()
    }

    /// Whether [`Smmu::step_command`] has something to do.
    #[must_use]
    pub fn command_pending(&self) -> bool {
        (0..self.command_queues()).any(|queue| self.command_pending_in(queue))
    }

    /// Consumes one command, or finds that it has to wait. Queues take turns.
    pub fn step_command(&mut self, mem: &dyn Memory) {
        let queues = self.command_queues();
        let turns = (1..=queues).map(|n| (self.turn as usize + n) % queues);
        if let Some(queue) = turns.into_iter().find(|&queue| self.command_pending_in(queue)) {
            self.step_command_in(queue, mem);
        }
    }

    /// The same for one queue.
    pub fn step_command_in(&mut self, queue: usize, mem: &dyn Memory) {
        if !self.command_pending_in(queue) {
            return;
        }
        self.turn = queue as u32;
        let geometry = self.cmdq(queue);
        let at = geometry.entry(self.queue(queue).cons);
        let mut bytes = [0; 16];
        let done = match mem.read(at, &mut bytes) {
            Ok(()) => {
                let word = |n: usize| u64::from_le_bytes(bytes[n..n + 8].try_into().unwrap_or_default());
                let command = Command([word(0), word(8)]);
                self.observer.tell(|o| o.fetched(at));
                self.execute(queue, &command, mem)
            }
            Err(_) => {
                self.drop_prefetch(queue);
                Done::Error(Cerror::Abt)
            }
        };
        match done {
            Done::Consumed => {
                // Whoever waits for room is woken (section 4.1.2).
                self.wired.sev |= self.config.sev && self.queue(queue).is_full(geometry);
                self.queue_mut(queue).advance_cons(geometry);
            }
            Done::Wait => {}
            Done::Error(error) => {
                // CONS stays at the command; the queue stops until software acknowledges (sections 7.1 and 3.5.6.3).
                self.stats.command_errors += 1;
                match queue.checked_sub(1).and_then(|n| self.regs.ecmdqs.get_mut(n)) {
                    None => {
                        self.regs.cmdq.cons = self.regs.cmdq.cons & !(0x7f << 24) | (error as u32) << 24;
                        self.raise_gerror(gerror::CMDQ_ERR);
                    }
                    Some(ecmdq) => {
                        ecmdq.fail(error);
                        self.raise_gerror(gerror::CMDQP_ERR);
                    }
                }
            }
        }
    }

    /// Goes on with a prefetch, one fetch a step. Says whether it is still under way (section 4.2).
    fn prefetch(&mut self, queue: usize, command: &Command, mem: &dyn Memory) -> bool {
        let progress = match self.prefetch {
            None if !self.config.prefetch || !self.regs.smmuen() => return false,
            None => self.prefetch_begin(command, 0),
            // One at a time; another queue's is left out.
            Some(prefetch) if prefetch.queue as usize != queue => return false,
            Some(prefetch) => self.step(prefetch.id, mem),
        };
        let done = self.prefetch.take().map_or(0, |prefetch| prefetch.done);
        let address = command.opcode() == Some(Opcode::PrefetchAddr);
        let progress = match progress {
            Progress::Latched(id, _) | Progress::Stalled(id) => {
                self.complete(id);
                let all = 1u32.checked_shl(command.0[1] as u32 & 0x1f).unwrap_or(PREFETCHES).min(PREFETCHES);
                if !address || done + 1 >= all {
                    return false;
                }
                return self.prefetch_next(queue, command, done + 1);
            }
            other => other,
        };
        if let Progress::Walking(id) = progress {
            self.prefetch = Some(Prefetch { queue: queue as u32, id, done });
        }
        self.prefetch.is_some()
    }

    /// The queue whose prefetch is under way.
    pub(crate) fn prefetching(&self) -> Option<usize> {
        self.prefetch.map(|prefetch| prefetch.queue as usize)
    }

    /// Gives up a queue's prefetch.
    pub(crate) fn drop_prefetch(&mut self, queue: usize) {
        if let Some(prefetch) = self.prefetch
            && prefetch.queue as usize == queue
        {
            self.prefetch = None;
            self.complete(prefetch.id);
        }
    }

    /// The next address of a prefetch.
    fn prefetch_next(&mut self, queue: usize, command: &Command, done: u32) -> bool {
        match self.prefetch_begin(command, done) {
            Progress::Walking(id) => {
                self.prefetch = Some(Prefetch { queue: queue as u32, id, done });
                true
            }
            Progress::Latched(id, _) | Progress::Stalled(id) => {
                // It is cached; so the rest is left out, too.
                self.complete(id);
                false
            }
            Progress::Aborted | Progress::Discarded => false,
        }
    }

    /// As if a read came from the command's stream.
    fn prefetch_begin(&mut self, command: &Command, n: u32) -> Progress {
        let address = command.opcode() == Some(Opcode::PrefetchAddr);
        let stride = 12 + (command.0[1] >> 5 & 0x1f) as u32;
        let at = command.address().wrapping_add(u64::from(n) << stride);
        let ssid = (command.ssv() && self.config.ssidsize != 0).then_some(command.ssid());
        let t = Transaction { ssid, ..Transaction::new(command.sid(), at, AccessKind::Read) };
        self.begin_prefetch(&t, address)
    }

    fn queue(&self, queue: usize) -> &Queue {
        let ecmdq = queue.checked_sub(1).and_then(|n| self.regs.ecmdqs.get(n));
        ecmdq.map_or(&self.regs.cmdq, |ecmdq| &ecmdq.queue)
    }

    fn queue_mut(&mut self, queue: usize) -> &mut Queue {
        match queue.checked_sub(1).and_then(|n| self.regs.ecmdqs.get_mut(n)) {
            Some(ecmdq) => &mut ecmdq.queue,
            None => &mut self.regs.cmdq,
        }
    }

    /// What the CMD_SYNC at the head of a queue waits for.
    fn sync_of(&mut self, queue: usize) -> &mut Option<Sync> {
        match queue.checked_sub(1).and_then(|n| self.regs.ecmdqs.get_mut(n)) {
            Some(ecmdq) => &mut ecmdq.sync,
            None => &mut self.sync,
        }
    }

    fn execute(&mut self, queue: usize, command: &Command, mem: &dyn Memory) -> Done {
        let Some(opcode) = command.opcode().filter(|&op| self.is_legal(op, command)) else {
            self.drop_prefetch(queue);
            self.observer.tell(|o| o.command_error(command, Cerror::Ill));
            return Done::Error(Cerror::Ill);
        };
        if opcode == Opcode::Sync && self.sync_blocked(queue) {
            return Done::Wait;
        }
        if opcode == Opcode::Sync && self.invalidations.take_failure(queue) {
            // Said once: the same CMD_SYNC completes when it is tried again (section 7.1).
            *self.sync_of(queue) = None;
            self.observer.tell(|o| o.command_error(command, Cerror::AtcInvSync));
            return Done::Error(Cerror::AtcInvSync);
        }
        if !matches!(opcode, Opcode::PrefetchCfg | Opcode::PrefetchAddr) {
            // Software has replaced the command meanwhile.
            self.drop_prefetch(queue);
        } else if self.prefetch(queue, command, mem) {
            return Done::Wait;
        }
        *self.stats.commands.entry(opcode).or_default() += 1;
        self.observer.command(command);
        match opcode {
            // Done, or not done: hints.
            Opcode::PrefetchCfg | Opcode::PrefetchAddr => {}
            Opcode::CfgiSte => self.forget_streams(command.sid(), command.sid(), !command.leaf()),
            Opcode::CfgiSteRange => {
                let span = u32::MAX >> (31 - command.range());
                self.forget_streams(command.sid() & !span, command.sid() | span, true);
            }
            Opcode::CfgiCd => {
                let cd = if self.config.ssidsize == 0 { 0 } else { command.ssid() };
                self.forget_contexts(command.sid(), Some(cd), !command.leaf());
            }
            Opcode::CfgiCdAll => self.forget_contexts(command.sid(), None, true),
            Opcode::Resume => self.resume(command),
            Opcode::StallTerm => {
                for id in self.txns.stalled(Some(command.sid()), None) {
                    self.terminate(id, true);
                }
            }
            Opcode::AtcInv => self.atc_inv(queue, command),
            Opcode::PriResp => self.pri_resp(command),
            Opcode::Sync => self.complete_sync(queue, command),
            _ => {
                if let Some(scope) = self.scope(opcode, command) {
                    // By address with Leaf=1, tables need not go.
                    self.forget_translations(scope, scope.range.is_some() && command.leaf());
                }
            }
        }
        Done::Consumed
    }

    /// Whether the implementation has the command, with legal fields (section 4.1.2 and those of the commands).
    fn is_legal(&self, opcode: Opcode, command: &Command) -> bool {
        let c = &self.config;
        // The Non-secure queue can not address the Secure state.
        let secure = match opcode {
            Opcode::PrefetchCfg
            | Opcode::PrefetchAddr
            | Opcode::CfgiSte
            | Opcode::CfgiSteRange
            | Opcode::CfgiCd
            | Opcode::CfgiCdAll
            | Opcode::Resume
            | Opcode::StallTerm
            | Opcode::AtcInv
            | Opcode::PriResp => command.secure(),
            _ => false,
        };
        let reserved = c.strict_commands && command.has_reserved(c.ril, c.ds);
        !secure
            && !reserved
            && match opcode {
                Opcode::CfgiCd | Opcode::CfgiCdAll | Opcode::TlbiNhAll | Opcode::TlbiNhAsid => c.s1p,
                Opcode::TlbiNhVa | Opcode::TlbiNhVaa => c.s1p && self.range_is_legal(command),
                Opcode::TlbiEl2All | Opcode::TlbiEl2Asid => c.hyp,
                Opcode::TlbiEl2Va | Opcode::TlbiEl2Vaa => c.hyp && self.range_is_legal(command),
                Opcode::TlbiS12Vmall => c.s2p,
                Opcode::TlbiS2Ipa => c.s2p && self.range_is_legal(command),
                Opcode::Resume | Opcode::StallTerm => c.stall != StallModel::None,
                Opcode::AtcInv => c.ats && command.size() <= EVERYTHING,
                // The fourth response is reserved.
                Opcode::PriResp => c.pri && command.response() != 3,
                Opcode::Sync => command.signal().is_some(),
                _ => true,
            }
    }

    /// A range command without range and level is reserved: TG says that it is one (section 4.4.1.1).
    fn range_is_legal(&self, command: &Command) -> bool {
        let (c, ds) = (command, self.config.ds);
        !self.config.ril || c.tg() == 0 || c.num() != 0 || scale(c, ds) != 0 || level(c, ds).is_some()
    }

    /// Removes STEs, and what was found through them: CDs and their level 1 descriptors (section 4.3.1).
    fn forget_streams(&mut self, first: u32, last: u32, level1: bool) {
        self.recent.add(Invalidation::Streams { first, last, level1 }, self.config.keep_all);
        let sids = u64::from(first)..=u64::from(last);
        if first == last {
            self.streams.remove(sids.start());
        } else {
            self.streams.remove_if(|sid, _| sids.contains(sid));
        }
        self.contexts.remove_if(|key, _| sids.contains(&(key >> 32)));
        self.l1cds.remove_if(|key, _| sids.contains(&(key >> 32)));
        if level1 {
            self.l1stds.remove_if(|&key, _| {
                let (from, to) = l1std_range(key);
                from <= last && first <= to
            });
        }
    }

    /// Removes a stream's CD of one index, or all.
    fn forget_contexts(&mut self, sid: u32, cd: Option<u32>, level1: bool) {
        self.recent.add(Invalidation::Contexts { sid, cd, level1 }, self.config.keep_all);
        match cd {
            Some(cd) => drop(self.contexts.remove(&context_key(sid, cd))),
            None => self.contexts.remove_if(|key, _| key >> 32 == u64::from(sid)),
        }
        if level1 {
            self.l1cds.remove_if(|&key, _| leads_to(key, sid, cd));
        }
    }

    /// Removes translations, and tables unless only leaves.
    fn forget_translations(&mut self, scope: Scope, leaf: bool) {
        let exact = self.config.keep_all;
        self.recent.add(Invalidation::Tlb { scope, leaf }, exact);
        self.stats.tlb_invalidated += self.tlb.invalidate(&scope) + self.ipas.invalidate(&scope);
        if !leaf {
            self.stats.walks_invalidated += self.walks.invalidate(&scope, exact);
        }
    }

    /// What a TLBI removes.
    fn scope(&self, opcode: Opcode, command: &Command) -> Option<Scope> {
        let c = &self.config;
        // A command whose ID can not be any entry's need not do anything (sections 4.4 and 4.4.2).
        if c.keep_all && has_unknown_id(c, opcode, command) {
            return None;
        }
        // Otherwise: without stage 2 the VMID is ignored; entries have 0. IDs are as wide as implemented.
        let vmid = match (c.s2p, c.vmid16) {
            (false, _) => 0,
            (true, false) => command.vmid() & 0xff,
            (true, true) => command.vmid(),
        };
        let asid = if c.asid16 { command.asid() } else { command.asid() & 0xff };
        let vmids = |worlds| Scope { vmid: Some(vmid), wild: self.regs.vmw(), ..Scope::worlds(worlds) };
        let el1 = vmids(EL1);
        let el2 = Scope::worlds(EL2);
        let e2h = self.regs.cr2 & crate::spec::registers::cr2::E2H != 0;
        Some(match opcode {
            Opcode::TlbiNhAll => el1,
            Opcode::TlbiNhAsid => Scope { asid: Asid::Only(asid), ..el1 },
            Opcode::TlbiNhVa => self.ranged(Scope { asid: Asid::OrGlobal(asid), ..el1 }, command),
            Opcode::TlbiNhVaa => self.ranged(el1, command),
            Opcode::TlbiEl2All => el2,
            Opcode::TlbiEl2Asid => Scope { asid: Asid::Only(asid), ..Scope::worlds(&[World::El2E2h]) },
            // Without E2H the ASID is ignored.
            Opcode::TlbiEl2Va if e2h => {
                let scope = Scope { asid: Asid::OrGlobal(asid), ..Scope::worlds(&[World::El2E2h]) };
                self.ranged(scope, command)
            }
            Opcode::TlbiEl2Vaa if e2h => self.ranged(Scope::worlds(&[World::El2E2h]), command),
            Opcode::TlbiEl2Va | Opcode::TlbiEl2Vaa => self.ranged(Scope::worlds(&[World::El2]), command),
            Opcode::TlbiS12Vmall => vmids(&[World::NsEl1, World::NsEl1Stage2]),
            Opcode::TlbiS2Ipa => {
                let mut scope = vmids(&[World::NsEl1Stage2]);
                scope = self.ranged(scope, command);
                Scope { asid: Asid::Only(0), ..scope }
            }
            Opcode::TlbiNsnhAll => Scope::worlds(&[World::NsEl1, World::NsEl1Stage2]),
            _ => return None,
        })
    }

    /// The addresses of a TLBI by VA or IPA: one, or a range if TG says so (section 4.4.1.1).
    fn ranged(&self, scope: Scope, command: &Command) -> Scope {
        let address = match command.opcode() {
            Some(Opcode::TlbiS2Ipa) => command.ipa(),
            _ => ((command.address() << 8) as i64 >> 8) as u64,
        };
        let granule = match command.tg() {
            1 if self.config.ril => Granule::G4K,
            2 if self.config.ril => Granule::G16K,
            3 if self.config.ril => Granule::G64K,
            _ => return Scope { range: Some((address, address | 0xfff)), ..scope },
        };
        // (NUM + 1) * 2^SCALE granules; NUM has 5 bits and SCALE is at most 39, so this fits.
        let ds = self.config.ds;
        let bytes = u64::from(command.num() + 1) << scale(command, ds) << granule.bits();
        let level = level(command, ds);
        let block = granule.shift(level.unwrap_or(3));
        let unit = match self.config.tlbi_unaligned {
            Unaligned::Nothing if address & ((1 << block) - 1) != 0 => return Scope::worlds(&[]),
            Unaligned::Block => block,
            Unaligned::Granule | Unaligned::Nothing => granule.bits(),
        };
        let first = address >> unit << unit;
        let range = Some((first, first.saturating_add(bytes - 1)));
        Scope { range, granule: Some(granule), level, ..scope }
    }

    /// Whether the CMD_SYNC at the head of the queue has to wait.
    fn sync_blocked(&mut self, queue: usize) -> bool {
        let now = Sync { epoch: self.recent.epoch(), events: self.events_recorded };
        let sync = *self.sync_of(queue).get_or_insert(now);
        self.blocks(&sync)
    }

    /// What a CMD_SYNC waits for (section 4.7.3): all that commands removed is out of use, records of transactions that
    /// are over are visible or lost, devices have confirmed what their caches had to forget, and the MSI of the last
    /// CMD_SYNC is out.
    fn blocks(&self, sync: &Sync) -> bool {
        self.txns.any_before(sync.epoch)
            || self.event_before(sync.events)
            || self.sync_msi_pending()
            || self.invalidations.pending()
    }

    fn complete_sync(&mut self, queue: usize, command: &Command) {
        *self.sync_of(queue) = None;
        if !self.eventq_writable() {
            self.drop_events();
        }
        match command.signal() {
            Some(Signal::Irq) => self.signal_sync(
                command.msi_address(),
                command.msi_data(),
                command.msi_attr(),
                command.msi_shareability(),
            ),
            Some(Signal::Sev) if self.config.sev => self.wired.sev = true,
            Some(Signal::Sev | Signal::None) | None => {}
        }
    }

    /// CMD_RESUME: Ac to try again, else Ab to abort or RAZ/WI (section 4.6.1). A tag of nobody's is ignored.
    fn resume(&mut self, command: &Command) {
        let (retry, abort) = (command.0[0] >> 12 & 1 == 1, command.0[0] >> 13 & 1 == 1);
        let tag = command.0[1] as u16;
        for id in self.txns.stalled(Some(command.sid()), Some(tag)) {
            // Those that stall for the same have no record of their own: they are tried again in any case.
            for follower in self.txns.behind(tag) {
                self.retry(follower);
            }
            if !retry {
                self.terminate(id, abort || !self.config.term_razwi);
                continue;
            }
            self.retry(id);
        }
    }

    /// A stalled transaction is as new. One that was tried again already goes on, and its tag is free.
    fn retry(&mut self, id: TxnId) {
        self.txns.answered(id);
        let epoch = self.recent.epoch();
        match self.txns.get(id) {
            Some(State::Abandoned(_)) => self.txns.remove(id),
            Some(State::Walking(txn)) => txn.retried = false,
            Some(state) => {
                if let State::Stalled(txn) = state {
                    *state = State::Walking(txn.anew(epoch));
                    self.txns.renew(id, epoch);
                }
            }
            None => {}
        }
    }

    /// Ends a stalled transaction; its device finds out when it asks, or has given it up already.
    pub(crate) fn terminate(&mut self, id: crate::TxnId, abort: bool) {
        self.txns.answered(id);
        match self.txns.get(id) {
            // It was tried again, and has gone on.
            Some(State::Latched(_)) => return,
            Some(State::Abandoned(_)) => self.txns.remove(id),
            Some(state) => *state = State::Dead { abort },
            None => {}
        }
        self.stats.terminated += 1;
    }
}
