//! ITS commands (IHI 0069 5.3).

use guest_ram::GuestRam;

use super::super::lpi::{FIRST_LPI, ID_BITS};
use super::super::redistributor::Pe;
use super::tables::{self, Device, Event, load, store};
use super::{DEVICE_BITS, Its};

/// Why a command is skipped, or an MSI ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    /// The queue at CREADR is not RAM.
    #[error("the command queue is not in RAM")]
    QueueUnreadable,
    /// No such command.
    #[error("unknown command")]
    Unknown,
    /// More bits than GITS_TYPER.Devbits, or no room in the device table.
    #[error("DeviceID out of range")]
    DeviceRange,
    /// The size of a MAPD.
    #[error("more EventID bits than GITS_TYPER.ID_bits")]
    SizeRange,
    /// No MAPD for the device.
    #[error("device not mapped")]
    DeviceUnmapped,
    /// More than the device was mapped with.
    #[error("EventID out of range")]
    EventRange,
    /// No MAPTI or MAPI for the event.
    #[error("event not mapped")]
    EventUnmapped,
    /// Not an LPI.
    #[error("INTID out of range")]
    IntidRange,
    /// No room in the collection table.
    #[error("ICID out of range")]
    CollectionRange,
    /// No MAPC for the collection.
    #[error("collection not mapped")]
    CollectionUnmapped,
    /// RDbase names no redistributor.
    #[error("no such redistributor")]
    NoRedistributor,
    /// The table is not RAM.
    #[error("table not in RAM")]
    TableUnreadable,
}

use CommandError as E;

/// INTID, address of the ITT entry, and PE.
type Translated = (u32, u64, usize);

impl Its {
    /// Carries out a command.
    pub(super) fn execute(&mut self, words: [u64; 4], pes: &mut [Pe], ram: &GuestRam) -> Result<(), E> {
        let [w0, w1, w2, w3] = words;
        let device = (w0 >> 32) as u32;
        let event = w1 as u32;
        let icid = w2 as u16;
        match w0 & 0xff {
            0x01 => self.movi(device, event, icid, pes, ram),
            // INT
            0x03 => {
                let (intid, _, cpu) = self.translate(device, event, pes.len(), ram)?;
                pe(pes, cpu)?.lpis.pend(ram, intid);
                Ok(())
            }
            // CLEAR
            0x04 => {
                let (intid, _, cpu) = self.translate(device, event, pes.len(), ram)?;
                pe(pes, cpu)?.lpis.clear(intid);
                Ok(())
            }
            // SYNC: every command is complete before the next begins.
            0x05 => pe(pes, rdbase(w2)).map(|_| ()),
            0x08 => self.mapd(device, w1 & 0x1f, w2, ram),
            0x09 => self.mapc(icid, w2, pes.len(), ram),
            0x0a => self.map_event(device, event, (w1 >> 32) as u32, icid, ram),
            // MAPI: the INTID is the EventID.
            0x0b => self.map_event(device, event, event, icid, ram),
            // INV
            0x0c => {
                let (intid, _, cpu) = self.translate(device, event, pes.len(), ram)?;
                pe(pes, cpu)?.lpis.invalidate(ram, intid);
                Ok(())
            }
            // INVALL
            0x0d => {
                let cpu = self.collection(icid.into(), pes.len(), ram)?;
                pe(pes, cpu)?.lpis.invalidate_all(ram);
                Ok(())
            }
            // MOVALL
            0x0e => {
                let (from, to) = (rdbase(w2), rdbase(w3));
                pe(pes, to)?;
                if from == to {
                    return Ok(());
                }
                let moved = pe(pes, from)?.lpis.take_all();
                let to = pe(pes, to)?;
                moved.into_iter().for_each(|intid| to.lpis.pend(ram, intid));
                Ok(())
            }
            // DISCARD
            0x0f => {
                let (intid, entry, cpu) = self.translate(device, event, pes.len(), ram)?;
                pe(pes, cpu)?.lpis.clear(intid);
                write(ram, entry, 0)
            }
            _ => Err(E::Unknown),
        }
    }

    fn device_entry(&self, device: u32, ram: &GuestRam) -> Result<u64, E> {
        if device >> (DEVICE_BITS + 1) != 0 {
            return Err(E::DeviceRange);
        }
        self.devices.entry(ram, device).ok_or(E::DeviceRange)
    }

    /// Address of the ITT entry of an event.
    fn event_entry(&self, device: u32, event: u32, ram: &GuestRam) -> Result<u64, E> {
        let entry = load(ram, self.device_entry(device, ram)?).ok_or(E::TableUnreadable)?;
        let device = Device::unpack(entry).ok_or(E::DeviceUnmapped)?;
        device.entry(event).ok_or(E::EventRange)
    }

    /// The PE of a collection.
    fn collection(&self, icid: u32, pes: usize, ram: &GuestRam) -> Result<usize, E> {
        let address = self.collections.entry(ram, icid).ok_or(E::CollectionRange)?;
        let entry = load(ram, address).ok_or(E::TableUnreadable)?;
        let cpu = tables::unpack_collection(entry).ok_or(E::CollectionUnmapped)?;
        if cpu < pes { Ok(cpu) } else { Err(E::NoRedistributor) }
    }

    /// Translates an event.
    pub(super) fn translate(
        &self,
        device: u32,
        event: u32,
        pes: usize,
        ram: &GuestRam,
    ) -> Result<Translated, E> {
        let address = self.event_entry(device, event, ram)?;
        let entry = load(ram, address).ok_or(E::TableUnreadable)?;
        let Event { intid, icid } = Event::unpack(entry).ok_or(E::EventUnmapped)?;
        // The guest may have written the table itself.
        check_lpi(intid)?;
        Ok((intid, address, self.collection(icid.into(), pes, ram)?))
    }

    fn mapd(&mut self, device: u32, size: u64, w2: u64, ram: &GuestRam) -> Result<(), E> {
        let address = self.device_entry(device, ram)?;
        if w2 & super::VALID == 0 {
            return write(ram, address, 0);
        }
        if size > ID_BITS.into() {
            return Err(E::SizeRange);
        }
        write(ram, address, Device::pack(w2, size))
    }

    fn mapc(&mut self, icid: u16, w2: u64, pes: usize, ram: &GuestRam) -> Result<(), E> {
        let address = self.collections.entry(ram, icid.into()).ok_or(E::CollectionRange)?;
        if w2 & super::VALID == 0 {
            return write(ram, address, 0);
        }
        let cpu = rdbase(w2);
        if cpu >= pes {
            return Err(E::NoRedistributor);
        }
        write(ram, address, tables::pack_collection(cpu as u32))
    }

    /// MAPTI and MAPI. The collection need not be mapped yet. An event that is mapped already is mapped anew.
    fn map_event(&mut self, device: u32, event: u32, intid: u32, icid: u16, ram: &GuestRam) -> Result<(), E> {
        let address = self.event_entry(device, event, ram)?;
        check_lpi(intid)?;
        self.collections.entry(ram, icid.into()).ok_or(E::CollectionRange)?;
        write(ram, address, Event { intid, icid }.pack())
    }

    /// MOVI: to another collection, and the pending state with it.
    fn movi(&mut self, device: u32, event: u32, icid: u16, pes: &mut [Pe], ram: &GuestRam) -> Result<(), E> {
        let (intid, address, from) = self.translate(device, event, pes.len(), ram)?;
        let to = self.collection(icid.into(), pes.len(), ram)?;
        write(ram, address, Event { intid, icid }.pack())?;
        if from != to && pe(pes, from)?.lpis.clear(intid) {
            pe(pes, to)?.lpis.pend(ram, intid);
        }
        Ok(())
    }
}

/// RDbase of a command: with GITS_TYPER.PTA = 0 a Processor_Number, in bits 50:16.
fn rdbase(word: u64) -> usize {
    (word >> 16 & 0x7_ffff_ffff) as usize
}

fn pe(pes: &mut [Pe], cpu: usize) -> Result<&mut Pe, E> {
    pes.get_mut(cpu).ok_or(E::NoRedistributor)
}

fn check_lpi(intid: u32) -> Result<(), E> {
    if (FIRST_LPI..2 << ID_BITS).contains(&intid) { Ok(()) } else { Err(E::IntidRange) }
}

fn write(ram: &GuestRam, address: u64, entry: u64) -> Result<(), E> {
    if store(ram, address, entry) { Ok(()) } else { Err(E::TableUnreadable) }
}
