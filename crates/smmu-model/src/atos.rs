//! Address translation operations (chapter 9): software asks through registers where a transaction would go.
//!
//! A lookup is translated like a transaction, one fetch a step, and is over with its result in PAR. It records nothing,
//! never stalls, and CMD_SYNC waits for it as for a transaction.

use pgtable::Permissions;
use serde::{Deserialize, Serialize};

use crate::cache::{Mapping, World};
use crate::config::Config;
use crate::memory::Memory;
use crate::registers::{half, set_half};
use crate::smmu::Smmu;
use crate::spec::event::{Class, EventCode};
use crate::spec::{bit, bits, keep};
use crate::transaction::{AccessKind, MemAttrs, Transaction};
use crate::translate::{Origin, Outcome, Path, State, Txn};

/// The groups of registers: one for whoever drives the SMMU, and one in a page of its own for a virtual machine.
pub(crate) const GATOS: usize = 0;
pub(crate) const VATOS: usize = 1;

/// FAULTCODEs that are no event's (section 9.1.5).
const INV_REQ: u8 = 0xff;
const INV_STAGE: u8 = 0xfe;
const INTERNAL_ERR: u8 = 0xfd;

/// The registers of one group: CTRL, SID, ADDR and PAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AtosGroup {
    /// CTRL.RUN.
    pub(crate) run: bool,
    sid: u64,
    addr: u64,
    par: u64,
}

impl AtosGroup {
    /// Reads a word; `offset` is from CTRL.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            0x0 => self.run.into(),
            0x8 | 0xc => half(self.sid, offset == 0xc),
            0x10 | 0x14 => half(self.addr, offset == 0x14),
            0x18 | 0x1c => half(self.par, offset == 0x1c),
            _ => 0,
        }
    }

    /// Writes a word. While RUN is set nothing can be written, and RUN can be set only with CR0.SMMUEN (section 6.3.37, as
    /// of SMMUv3.2).
    pub(crate) fn write(&mut self, config: &Config, offset: u64, value: u32, smmuen: bool) {
        const SSID_VALID: u64 = 1 << 52;
        match offset {
            _ if self.run => {}
            0x0 => self.run = smmuen && value & 1 == 1,
            0x8 | 0xc => {
                let sids = (1 << config.sidsize) - 1;
                let ssids = ((1 << config.ssidsize) - 1) << 32;
                let valid = if config.ssidsize == 0 { 0 } else { SSID_VALID };
                set_half(&mut self.sid, offset == 0xc, value, sids | ssids | valid);
            }
            0x10 | 0x14 => set_half(&mut self.addr, offset == 0x14, value, !0x3f),
            _ => {}
        }
    }

    /// The transaction that is asked about.
    fn transaction(&self) -> Transaction {
        let kind = if bit(self.addr, 8) { AccessKind::Read } else { AccessKind::Write };
        Transaction {
            ssid: bit(self.sid, 52).then_some(bits(self.sid, 51, 32) as u32),
            privileged: bit(self.addr, 9),
            instruction: bit(self.addr, 7) && kind.is_read(),
            ..Transaction::new(self.sid as u32, keep(self.addr, 63, 12), kind)
        }
    }
}

/// What of a stream's configuration is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AtosLookup {
    /// ADDR.TYPE: bit 0 for stage 1, bit 1 for stage 2.
    stages: u8,
    /// ADDR.HTTUI: no descriptor is updated.
    inhibit: bool,
    /// VATOS_SEL.VMID, of a virtual machine's request.
    vmid: Option<u16>,
}

impl AtosLookup {
    /// Stage 1, alone or with stage 2.
    pub(crate) fn has_stage1(self) -> bool {
        self.stages & 1 == 1
    }

    /// Stage 1 alone.
    fn is_stage1(self) -> bool {
        self.stages == 1
    }

    /// The result of an error that is not of a translation: MISC in section 9.1.4.
    pub(crate) fn error(self, code: EventCode) -> Outcome {
        self.fault(code, (self.stages == 2).then_some(Class::Input), 0)
    }

    /// The result of a fault; `class` is stage 2's, and `ipa` the address that stage 2 faulted on. Who asks for stage 1
    /// alone learns nothing of stage 2.
    pub(crate) fn fault(self, code: EventCode, class: Option<Class>, ipa: u64) -> Outcome {
        let (code, reason, faddr) = match (self.stages, class) {
            (_, None) => (code, 0, 0),
            (1, Some(Class::Cd)) => (EventCode::FCdFetch, 0, 0),
            (1, Some(_)) => (EventCode::FWalkEabt, 0, 0),
            (2, Some(_)) => (code, 3, 0),
            (_, Some(class)) => (code, class as u64 + 1, ipa),
        };
        Outcome::Par(keep(faddr, 55, 12) | u64::from(code as u8) << 4 | reason << 1 | 1)
    }
}

/// PAR of a lookup that came to nothing: FAULTCODE is `code`.
fn no_result(code: u8) -> u64 {
    u64::from(code) << 4 | 1
}

fn failed(code: u8) -> Outcome {
    Outcome::Par(no_result(code))
}

impl Txn {
    /// What is looked up, if this is not a transaction.
    pub(crate) fn atos(&self) -> Option<AtosLookup> {
        match self.origin {
            Origin::Atos(lookup) => Some(lookup),
            _ => None,
        }
    }

    /// Whether it leaves access flags and dirty state as they are, and goes on as if they were set.
    pub(crate) fn inhibits(&self) -> bool {
        self.atos().is_some_and(|lookup| lookup.inhibit)
    }

    /// Whether the output of stage 1 is the result, though there is a stage 2.
    pub(crate) fn ends_at_stage1(&self) -> bool {
        self.atos().is_some_and(AtosLookup::is_stage1)
    }
}

impl Smmu {
    /// A RUN may have been written: the lookup begins.
    pub(crate) fn begin_atos(&mut self) {
        for group in [GATOS, VATOS] {
            let registers = self.regs.atos[group];
            if !registers.run || self.lookups[group].is_some() {
                continue;
            }
            let lookup = AtosLookup {
                stages: bits(registers.addr, 11, 10) as u8,
                inhibit: bit(registers.addr, 6),
                vmid: (group == VATOS).then_some(self.regs.vatos_sel),
            };
            let epoch = self.recent.epoch();
            let txn = Box::new(Txn::new(&registers.transaction(), Origin::Atos(lookup), epoch));
            self.lookups[group] = Some(self.txns.add(epoch, true, State::Walking(txn)));
        }
    }

    /// Whether [`Smmu::step_atos`] has something to do.
    #[must_use]
    pub fn atos_pending(&self) -> bool {
        self.lookups.iter().any(Option::is_some)
    }

    /// Takes a lookup one fetch further; the last step clears RUN. The groups take turns.
    pub fn step_atos(&mut self, mem: &dyn Memory) {
        let turns = [!self.atos_turn, self.atos_turn].map(usize::from);
        let Some((group, id)) = turns.into_iter().find_map(|group| Some((group, self.lookups[group]?)))
        else {
            return;
        };
        self.atos_turn = group == VATOS;
        let outcome = match self.txns.get(id).map(|state| std::mem::replace(state, State::Free)) {
            Some(State::Walking(mut txn)) => {
                let outcome = self.fetch(id, &mut txn, mem);
                if matches!(outcome, Outcome::Fetch)
                    && let Some(slot) = self.txns.get(id)
                {
                    *slot = State::Walking(txn);
                }
                outcome
            }
            _ => failed(INTERNAL_ERR),
        };
        let par = match outcome {
            Outcome::Fetch => return,
            Outcome::Par(par) => par,
            _ => no_result(INTERNAL_ERR),
        };
        let registers = &mut self.regs.atos[group];
        (registers.run, registers.par) = (false, par);
        self.lookups[group] = None;
        self.complete(id);
    }

    /// Whether the interface and the implementation know such a request at all (section 9.1.3). Answers what ends it.
    pub(crate) fn bad_atos_request(&self, txn: &Txn) -> Option<Outcome> {
        let AtosLookup { stages, vmid, .. } = txn.atos()?;
        let valid = match stages {
            1 => self.config.s1p,
            2 => self.config.s2p && vmid.is_none() && txn.incoming.ssid.is_none(),
            3 => self.config.s1p && self.config.s2p && vmid.is_none(),
            _ => false,
        };
        (!valid).then(|| failed(INV_REQ))
    }

    /// The stream of a lookup is known, and valid: whether it is configured for what is asked (sections 9.1.3 and 9.1.6).
    /// Answers what ends it.
    pub(crate) fn check_atos(&mut self, txn: &mut Txn, lookup: AtosLookup) -> Option<Outcome> {
        let path = txn.stream.path;
        if let Some(vmid) = lookup.vmid {
            let tagged = (path.has_stage1() || path.has_stage2()) && txn.stream.world == World::NsEl1;
            if !tagged || txn.stream.vmid != vmid {
                return Some(lookup.error(EventCode::CBadSte));
            }
        }
        let configured = match lookup.stages {
            1 => path.has_stage1(),
            2 => path.has_stage2(),
            _ => path == Path::Nested,
        };
        // What the IOTLB has of both stages does not say where stage 1 leads.
        txn.split = lookup.is_stage1() && path == Path::Nested;
        (!configured).then(|| failed(INV_STAGE))
    }

    /// The result of a lookup that stage 1 alone is asked about, where S1DSS bypasses it: the address itself.
    pub(crate) fn atos_identity(&self, txn: &Txn) -> Outcome {
        let shift = match (self.config.gran4k, self.config.gran16k) {
            (true, _) => 12,
            (false, true) => 14,
            (false, false) => 16,
        };
        par(txn.t.address, shift, MemAttrs::WRITE_BACK)
    }

    /// The result of a lookup that `mapping` answers.
    pub(crate) fn atos_result(&self, mapping: &Mapping) -> Outcome {
        par(mapping.output, mapping.shift, mapping.attrs)
    }
}

impl Mapping {
    /// What it permits a transaction; HTTUI takes what may be made dirty as dirty.
    pub(crate) fn permitted(&self, txn: &Txn) -> Permissions {
        if txn.inhibits() { self.possible } else { self.permissions }
    }
}

/// PAR of a success. A size above 4 KiB is told by the lowest bit of the address that is set.
fn par(output: u64, shift: u8, attrs: MemAttrs) -> Outcome {
    let size = if shift > 12 { 1 << 11 | 1 << (shift - 1) } else { 0 };
    let address = keep(output >> shift << shift, 55, 12);
    Outcome::Par(u64::from(attrs.mair) << 56 | address | size | (attrs.shareability as u64) << 8)
}
