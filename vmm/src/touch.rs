//! Accesses to memory, by whomever: what the race lab looks at to know who may get in whose way.

use aarch64::Traced;
use aarch64::platform::{At, SysKey};
use guest_ram::{GuestRam, PAGE_SIZE, Reader, Tracer};

use crate::actor::Actor;
use crate::cover::Cover;
use crate::happened::Chronicle;
use crate::sharing::{Reached, Sharing};

/// Bytes that count as one place: an access overlaps another if it touches the same ones.
pub const GRANULE: u64 = 8;
/// The flags of pages that the race lab traces.
pub const FLAGS: u8 = Tracer::RACE.stores() | Tracer::RACE.loads();
/// Granules of a page.
pub const GRANULES: usize = PAGE_SIZE / GRANULE as usize;

/// By what means an actor reached memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The instruction at an address.
    Code(u64),
    /// A device's data or its rings; a record that an SMMU wrote.
    Data,
    /// An SMMU's fetch: a walk, its configuration, a command.
    Fetch,
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Who; a walk is made by the actor for whom it is.
    pub who: Actor,
    /// By what means.
    pub by: By,
    /// Offset in RAM of the first byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// It changes memory.
    pub write: bool,
    /// When.
    pub time: u64,
}

impl Touch {
    /// The granules that it touches, by number in RAM.
    pub fn granules(&self) -> impl Iterator<Item = u64> + use<> {
        let last = self.offset + self.len.max(1) - 1;
        self.offset / GRANULE..=last / GRANULE
    }
}

/// Small numbers for those who act, from 1 on. Those that are too many for it share the last one.
#[derive(Default)]
pub struct Numbers(Vec<Actor>);

impl Numbers {
    /// An actor's number.
    pub fn of(&mut self, who: Actor) -> u8 {
        let found = self.0.iter().position(|&known| known == who).unwrap_or_else(|| {
            self.0.push(who);
            self.0.len() - 1
        });
        (found + 1).min(u8::MAX.into()) as u8
    }

    /// Who has a number.
    pub fn actor(&self, number: u8) -> Option<Actor> {
        self.0.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Somebody who is told of accesses to the pages that it traces. It is no part of the machine's state.
pub enum Witness {
    /// Finds out what memory several actors touch.
    Sharing(Sharing),
    /// Notes the vCPUs' accesses to such memory.
    Reached(Reached),
    /// Notes in which order conflicting accesses come.
    Cover(Cover),
    /// Keeps them all, for somebody who takes them soon.
    Log(Vec<Touch>),
    /// Tells what happens, in the words of an SMMU's driver.
    Chronicle(Chronicle),
}

impl Witness {
    fn touch(&mut self, touch: &Touch) {
        match self {
            Self::Sharing(sharing) => sharing.touch(touch),
            Self::Reached(reached) => reached.touch(touch),
            Self::Cover(cover) => cover.touch(touch),
            Self::Log(log) => log.push(*touch),
            Self::Chronicle(_) => {}
        }
    }

    /// A vCPU's access.
    pub fn cpu(&mut self, access: &Traced<'_>) {
        if let Self::Chronicle(chronicle) = self {
            return chronicle.cpu(access);
        }
        let at = access.core.at();
        let Some(offset) = access.ram.offset(access.pa, access.size.into()) else { return };
        self.touch(&Touch {
            who: Actor::Cpu(at.cpu),
            by: By::Code(access.core.pc),
            offset,
            len: access.size.into(),
            write: access.value.is_some(),
            time: at.now,
        });
    }

    /// What an agent's step read from memory.
    pub fn read(&mut self, ram: &GuestRam, who: Actor, time: u64) {
        for (hit, reader) in ram.watch().take_reads() {
            if let Self::Chronicle(chronicle) = self {
                chronicle.read(ram, who, time, hit, reader);
            }
            let by = if reader == Reader::Smmu { By::Fetch } else { By::Data };
            self.touch(&Touch { who, by, offset: hit.offset, len: hit.len.into(), write: false, time });
        }
    }

    /// What an agent's step wrote to memory.
    pub fn wrote(&mut self, ram: &GuestRam, who: Actor, time: u64, offset: u64, len: u64) {
        if let Self::Chronicle(chronicle) = self {
            chronicle.wrote(ram, who, time, offset, len);
        }
        self.touch(&Touch { who, by: By::Data, offset, len, write: true, time });
    }
}

/// ICC_IAR0_EL1 and ICC_IAR1_EL1, by which a vCPU acknowledges an interrupt (IHI 0069 §12.2), and INTIDs that are none.
const IAR: [SysKey; 2] = [SysKey::new(3, 0, 12, 8, 0), SysKey::new(3, 0, 12, 12, 0)];
const SPECIAL: std::ops::Range<u64> = 1020..1024;

impl Witness {
    /// A vCPU read a register of its interrupt controller.
    pub fn icc(&mut self, at: At, register: SysKey, value: u64) {
        if let Self::Chronicle(chronicle) = self
            && IAR.contains(&register)
            && !SPECIAL.contains(&value)
        {
            chronicle.interrupt(at.cpu, at.now, value as u32);
        }
    }
}

/// Traces these pages of RAM, by number, for the race lab.
pub fn trace(ram: &GuestRam, pages: impl Iterator<Item = usize>) {
    pages.for_each(|page| ram.watch().trace(page, FLAGS));
}

/// Traces no page any more.
pub fn trace_none(ram: &GuestRam) {
    all(ram).for_each(|page| ram.watch().clear(page, FLAGS));
}

/// All pages of RAM, by number.
pub fn all(ram: &GuestRam) -> std::ops::Range<usize> {
    0..ram.size() as usize / PAGE_SIZE
}
