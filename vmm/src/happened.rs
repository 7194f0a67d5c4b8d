//! What happens in a run beside instructions and steps, told in the words of an SMMU's driver: commands, steps of walks, beats,
//! changes of tables, interrupts.

use std::collections::BTreeSet;

use aarch64::Traced;
use guest_ram::{GuestRam, Hit, PAGE_SIZE, Reader};
use serde::{Deserialize, Serialize};
use smmu_model::spec::command::Opcode;

use crate::actor::{Actor, SmmuAgent};

/// What is kept at most: a longer run is told up to here.
const LIMIT: usize = 1 << 20;
/// VMSAv8-64: a descriptor that is valid; the output address of one whose granule is 4 KiB (DDI 0487 D8.3).
const VALID: u64 = 1;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The SMMU fetched a command.
    Command {
        /// Its first byte.
        opcode: u8,
        /// Its two words.
        words: [u64; 2],
    },
    /// The SMMU fetched a descriptor for a device.
    Descriptor {
        /// Where, as a physical address.
        at: u64,
        /// What it was.
        value: u64,
    },
    /// The SMMU fetched a structure of its configuration.
    Structure {
        /// Where.
        at: u64,
    },
    /// A record was written to a queue of the SMMU.
    Record {
        /// Where.
        at: u64,
    },
    /// A device moved data.
    Beat {
        /// Where, as a physical address.
        at: u64,
        /// Bytes.
        len: u64,
        /// Into memory.
        write: bool,
    },
    /// A vCPU changed a table.
    Store {
        /// Where.
        at: u64,
        /// What was there.
        old: u64,
        /// What is there now.
        new: u64,
    },
    /// A vCPU acknowledged an interrupt.
    Interrupt {
        /// Its number.
        intid: u32,
    },
}

impl What {
    /// What pages a store took from the devices: the first address and behind the last one, if it did.
    pub fn unmapped(&self) -> Option<(u64, u64)> {
        match *self {
            // A table is no page: whoever clears its descriptor has unmapped what is below before.
            Self::Store { old, new, .. } if old & VALID != 0 && new & VALID == 0 => {
                let (size, first) = match old & 3 {
                    3 => (PAGE_SIZE as u64, old & OUTPUT),
                    // A block of level 2.
                    _ => (2 << 20, old & OUTPUT & !((2 << 20) - 1)),
                };
                Some((first, first + size))
            }
            _ => None,
        }
    }

    /// Whether it is a command that invalidates translations.
    pub fn invalidates(&self) -> bool {
        matches!(self, Self::Command { opcode: 0x10..=0x30, .. })
    }

    /// Whether it is a CMD_SYNC.
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::Command { opcode: 0x46, .. })
    }

    /// In words.
    pub fn name(&self) -> String {
        match *self {
            Self::Command { opcode, words } => match Opcode::from_byte(opcode) {
                Some(opcode) => {
                    format!("CMD_{} {:#x} {:#x}", screaming(&format!("{opcode:?}")), words[0], words[1])
                }
                None => format!("illegal command {opcode:#x}"),
            },
            Self::Descriptor { at, value } => format!("descriptor {value:#x} at {at:#x}"),
            Self::Structure { at } => format!("STE or CD at {at:#x}"),
            Self::Record { at } => format!("record at {at:#x}"),
            Self::Beat { at, len, write: true } => format!("writes {len} bytes at {at:#x}"),
            Self::Beat { at, len, write: false } => format!("reads {len} bytes at {at:#x}"),
            Self::Store { at, old, new } => match self.unmapped() {
                Some((first, _)) => format!("unmaps {first:#x} (descriptor at {at:#x})"),
                None => format!("changes {old:#x} to {new:#x} in the table at {at:#x}"),
            },
            Self::Interrupt { intid } => format!("INTID {intid}"),
        }
    }
}

/// `TlbiNhVa` as `TLBI_NH_VA`.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        // Digits belong to the letter before them: S1, S2, EL2.
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// Something that happened, by whom and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who.
    pub who: Actor,
    /// Nanoseconds of virtual time.
    pub at: u64,
    /// What.
    pub what: What,
}

/// Takes note of what happens.
pub struct Chronicle {
    /// Pages of RAM, by number, that hold tables of an SMMU.
    tables: BTreeSet<usize>,
    /// What happened so far.
    pub events: Vec<Event>,
}

impl Chronicle {
    /// Looks at stores to these pages, by number, and to those that it finds to be tables itself.
    pub fn new(tables: BTreeSet<usize>) -> Self {
        Self { tables, events: Vec::new() }
    }

    fn note(&mut self, who: Actor, at: u64, what: What) {
        if self.events.len() < LIMIT {
            self.events.push(Event { who, at, what });
        }
    }

    /// A vCPU's access to memory, which is not done yet.
    pub fn cpu(&mut self, access: &Traced<'_>) {
        let Some(value) = access.value else { return };
        let Some(offset) = access.ram.offset(access.pa & !7, 8) else { return };
        if access.size < 8 || !self.tables.contains(&(offset as usize / PAGE_SIZE)) {
            return;
        }
        let by = access.core.at();
        for part in 0..u64::from(access.size / 8) {
            let at = access.pa + 8 * part;
            let (old, new) = (word(access.ram, at), (value >> (64 * part)) as u64);
            if old != new {
                self.note(Actor::Cpu(by.cpu), by.now, What::Store { at, old, new });
            }
        }
    }

    /// A device, or an SMMU for it, read memory.
    pub fn read(&mut self, ram: &GuestRam, who: Actor, time: u64, hit: Hit, reader: Reader) {
        let at = ram.base() + hit.offset;
        let what = match (reader, who) {
            (Reader::Device, _) => What::Beat { at, len: hit.len.into(), write: false },
            (_, Actor::Smmu(_, SmmuAgent::Command)) if hit.len == 16 => {
                let words = [word(ram, at), word(ram, at + 8)];
                What::Command { opcode: words[0] as u8, words }
            }
            _ if hit.len == 8 => {
                self.tables.insert(hit.offset as usize / PAGE_SIZE);
                What::Descriptor { at, value: word(ram, at) }
            }
            _ => What::Structure { at },
        };
        self.note(who, time, what);
    }

    /// A device or an SMMU wrote to memory.
    pub fn wrote(&mut self, ram: &GuestRam, who: Actor, time: u64, offset: u64, len: u64) {
        let at = ram.base() + offset;
        let what = match who {
            Actor::Smmu(..) => What::Record { at },
            _ => What::Beat { at, len, write: true },
        };
        self.note(who, time, what);
    }

    /// A vCPU acknowledged an interrupt.
    pub fn interrupt(&mut self, cpu: usize, time: u64, intid: u32) {
        self.note(Actor::Cpu(cpu), time, What::Interrupt { intid });
    }
}

fn word(ram: &GuestRam, pa: u64) -> u64 {
    let mut bytes = [0; 8];
    ram.read(pa, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// The way of one unmap to the devices: it, the invalidation and the CMD_SYNC behind it, and the first access that went to what
/// was unmapped all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmap<'a> {
    /// The store.
    pub store: &'a Event,
    /// The first command behind it that invalidates.
    pub invalidation: Option<&'a Event>,
    /// The first CMD_SYNC behind that.
    pub sync: Option<&'a Event>,
    /// The beat that raced, or the step of a walk that found nothing there any more.
    pub raced: Option<&'a Event>,
}

/// All unmaps of a run, in order.
pub fn unmaps(events: &[Event]) -> Vec<Unmap<'_>> {
    events.iter().enumerate().filter_map(|(index, store)| unmap(store, &events[index + 1..])).collect()
}

/// The way of an unmap that `store` is, if it is one; `after` is what happened behind it.
fn unmap<'a>(store: &'a Event, after: &'a [Event]) -> Option<Unmap<'a>> {
    let (first, end) = store.what.unmapped()?;
    let next = |from: usize, which: fn(&What) -> bool| {
        after[from..].iter().position(|event| which(&event.what)).map(|found| from + found)
    };
    let invalidation = next(0, What::invalidates);
    let sync = invalidation.and_then(|from| next(from, What::is_sync));
    // Mapped again, it is the device's anew.
    let mapped = |what: &What| {
        let What::Store { new, .. } = *what else { return false };
        new & VALID != 0 && (first..end).contains(&(new & OUTPUT))
    };
    let What::Store { at: cleared, .. } = store.what else { return None };
    let into = |what: &What| match *what {
        What::Beat { at, len, .. } => at < end && first < at + len,
        What::Descriptor { at, value } => at == cleared && value & VALID == 0,
        _ => false,
    };
    let raced = after.iter().take_while(|event| !mapped(&event.what)).find(|event| into(&event.what));
    let at = |index: Option<usize>| index.map(|index| &after[index]);
    Some(Unmap { store, invalidation: at(invalidation), sync: at(sync), raced })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: Actor = Actor::Engine(0, 0);
    const QUEUE: Actor = Actor::Smmu(0, SmmuAgent::Command);

    fn event(at: u64, who: Actor, what: What) -> Event {
        Event { who, at, what }
    }

    #[test]
    fn an_unmap_is_followed_to_the_beat_that_raced() {
        let store = |old, new| What::Store { at: 0x4000_2008, old, new };
        let command = |opcode: u8| What::Command { opcode, words: [opcode.into(), 0] };
        let beat = |at| What::Beat { at, len: 64, write: true };
        let events = [
            event(1, ENGINE, beat(0x4800_0000)),
            event(2, Actor::Cpu(0), store(0x0040_0000_4800_0f43, 0)),
            event(3, ENGINE, beat(0x4800_1000)),
            event(4, QUEUE, command(0x12)),
            event(5, ENGINE, beat(0x4800_0fc0)),
            event(6, QUEUE, command(0x46)),
            event(7, Actor::Cpu(0), store(0, 0x4800_0f43)),
            event(8, Actor::Cpu(0), store(0x4800_0f43, 0)),
            event(9, ENGINE, What::Descriptor { at: 0x4000_2000, value: 0 }),
            event(10, ENGINE, What::Descriptor { at: 0x4000_2008, value: 0 }),
        ];
        let found = unmaps(&events);
        let times = |unmap: &Unmap<'_>| {
            [Some(unmap.store), unmap.invalidation, unmap.sync, unmap.raced].map(|event| event.map(|e| e.at))
        };
        assert_eq!(
            found.iter().map(times).collect::<Vec<_>>(),
            [[Some(2), Some(4), Some(6), Some(5)], [Some(8), None, None, Some(10)],]
        );
        assert_eq!(events[1].what.name(), "unmaps 0x48000000 (descriptor at 0x40002008)");
        assert_eq!(events[3].what.name(), "CMD_TLBI_NH_VA 0x12 0x0");
        assert_eq!(command(0x28).name(), "CMD_TLBI_S12_VMALL 0x28 0x0");
        assert_eq!(command(0x46).name(), "CMD_SYNC 0x46 0x0");
    }
}
