//! MSI-X: the table, the pending bits, and the messages, which are DMA writes (PCI Local Bus 3.0 §6.8.2).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::agent::Time;
use crate::dma::{DmaPort, Poll, Transfer};

/// Capability ID of MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// MSI-X enable, in Message Control.
pub(super) const CONTROL_ENABLE: u16 = 1 << 15;
/// Function mask, in Message Control.
pub(super) const CONTROL_MASK: u16 = 1 << 14;

const ENTRY: u64 = 16;
const MASKED: u32 = 1;

/// From an interrupt condition to the start of its message, and from step to step of a message, in ns.
const STEP_NS: Time = 20;
/// How long a message waits that the ITS or a stalled translation holds up, in ns.
const RETRY_NS: Time = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The MSI-X state of one function. Sending is an agent: each message is translated and written in steps of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    table: Vec<Entry>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
    /// Vectors whose message is to be sent, each at most once.
    queue: VecDeque<u16>,
    sending: Option<Sending>,
    due: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sending {
    vector: u16,
    data: u32,
    transfer: Transfer,
}

/// How the sending of a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The message of this vector was written.
    Written(u16),
    /// The message of this vector was refused, and is lost.
    Refused(u16),
}

impl Msix {
    /// Bytes from the start of the table's BAR to the pending bits.
    pub const PBA_OFFSET: u64 = 0x800;
    /// Vectors that fit before the pending bits.
    pub const MAX_VECTORS: u16 = (Self::PBA_OFFSET / ENTRY) as u16;

    /// Bytes of the window that holds both.
    pub const WINDOW: u64 = 0x1000;

    /// State after reset: disabled, all vectors masked.
    pub fn new(vectors: u16) -> Self {
        let n = usize::from(vectors.clamp(1, Self::MAX_VECTORS));
        Self {
            table: vec![Entry { address: 0, data: 0, control: MASKED }; n],
            pending: vec![false; n],
            enabled: false,
            masked: false,
            queue: VecDeque::new(),
            sending: None,
            due: 0,
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.table.len() as u16
    }

    /// Body and writable bits of the capability, for a table at the start of BAR `bar` and pending bits at
    /// [`Msix::PBA_OFFSET`]. Message Control is its first register.
    pub fn capability(&self, bar: u8) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        body[6..10].copy_from_slice(&(Self::PBA_OFFSET as u32 | u32::from(bar)).to_le_bytes());
        (body, (CONTROL_ENABLE | CONTROL_MASK).to_le_bytes())
    }

    /// Message Control was written.
    pub fn set_control(&mut self, control: u16, now: Time) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.masked = control & CONTROL_MASK != 0;
        if !self.enabled {
            self.queue.clear();
            self.pending.fill(false);
        }
        self.release(now);
    }

    /// Whether messages, not INTx, report interrupts.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// An interrupt condition of `vector` arose.
    pub fn trigger(&mut self, vector: u16, now: Time) {
        if !self.enabled || usize::from(vector) >= self.table.len() {
            return;
        }
        if self.is_masked(vector) {
            self.pending[usize::from(vector)] = true;
        } else {
            self.enqueue(vector, now);
        }
    }

    fn enqueue(&mut self, vector: u16, now: Time) {
        if self.queue.is_empty() && self.sending.is_none() {
            self.due = now + STEP_NS;
        }
        if !self.queue.contains(&vector) {
            self.queue.push_back(vector);
        }
    }

    fn is_masked(&self, vector: u16) -> bool {
        self.masked || self.table.get(usize::from(vector)).is_none_or(|e| e.control & MASKED != 0)
    }

    /// Sends what is pending and no longer masked.
    fn release(&mut self, now: Time) {
        for vector in 0..self.vectors() {
            if self.enabled && self.pending[usize::from(vector)] && !self.is_masked(vector) {
                self.pending[usize::from(vector)] = false;
                self.enqueue(vector, now);
            }
        }
    }

    /// Reads the table or the pending bits, 4 or 8 aligned bytes; anything else reads zero.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        match (size, offset % u64::from(size.max(1))) {
            (4, 0) => u64::from(self.read32(offset)),
            (8, 0) => u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32,
            _ => 0,
        }
    }

    fn read32(&self, offset: u64) -> u32 {
        if offset >= Self::WINDOW {
            return 0;
        }
        if let Some(offset) = offset.checked_sub(Self::PBA_OFFSET) {
            let first = (offset * 8) as usize;
            let bits = self.pending.get(first..).unwrap_or(&[]).iter().take(32);
            return bits.enumerate().fold(0, |word, (i, &set)| word | u32::from(set) << i);
        }
        let Some(entry) = self.table.get((offset / ENTRY) as usize) else { return 0 };
        match offset % ENTRY {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.control,
        }
    }

    /// Writes the table, 4 or 8 aligned bytes; anything else is ignored.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, now: Time) {
        match (size, offset % u64::from(size.max(1))) {
            (4, 0) => self.write32(offset, value as u32),
            (8, 0) => {
                self.write32(offset, value as u32);
                self.write32(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        self.release(now);
    }

    fn write32(&mut self, offset: u64, value: u32) {
        if offset >= Self::PBA_OFFSET {
            return;
        }
        let Some(entry) = self.table.get_mut((offset / ENTRY) as usize) else { return };
        match offset % ENTRY {
            // The two low bits of an address are zero: messages are aligned.
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            _ => entry.control = value & MASKED,
        }
    }

    /// When the next step of sending is due.
    pub fn next_step(&self, port: &DmaPort) -> Option<Time> {
        let busy = self.sending.is_some() || !self.queue.is_empty();
        (busy && port.enabled()).then_some(self.due)
    }

    /// One step: takes up a message, or goes on with its translation, or writes it. Answers what came of a message
    /// that is done with.
    pub fn step(&mut self, port: &DmaPort, now: Time) -> Option<Sent> {
        if !port.enabled() {
            return None;
        }
        if self.sending.is_none()
            && let Some(refused) = self.take_up(port)
        {
            return Some(Sent::Refused(refused));
        }
        let sending = self.sending.as_mut()?;
        let vector = sending.vector;
        self.due = now + STEP_NS;
        if !sending.transfer.ready() {
            match port.poll(&mut sending.transfer) {
                Ok(Poll::Ready) => {}
                Ok(Poll::Walking(fetch)) => self.due += fetch,
                Ok(Poll::Stalled) => self.due = now + RETRY_NS,
                Err(e) => {
                    log::debug!("MSI-X vector {vector} lost: {e}");
                    self.sending = None;
                    return Some(Sent::Refused(vector));
                }
            }
            return None;
        }
        if port.inbox_full() {
            port.cancel(&mut sending.transfer);
            self.due = now + RETRY_NS;
            return None;
        }
        let written = port.beat_write(&mut sending.transfer, &sending.data.to_le_bytes());
        self.sending = None;
        Some(match written {
            Ok(_) => Sent::Written(vector),
            Err(e) => {
                log::debug!("MSI-X vector {vector} lost: {e}");
                Sent::Refused(vector)
            }
        })
    }

    /// Makes the next message the one that is being sent; answers its vector if its address is no address.
    fn take_up(&mut self, port: &DmaPort) -> Option<u16> {
        while let Some(vector) = self.queue.pop_front() {
            if self.is_masked(vector) {
                // Masked after the condition arose and before the message left.
                self.pending[usize::from(vector)] = true;
                continue;
            }
            let entry = self.table[usize::from(vector)];
            let Ok(transfer) = port.begin(entry.address, 4, true) else { return Some(vector) };
            // Messages are never Translated.
            let transfer = transfer.untranslated();
            self.sending = Some(Sending { vector, data: entry.data, transfer });
            return None;
        }
        None
    }

    /// The port has been revoked: gives up the transaction in progress; the message is sent when it is granted again.
    pub fn suspend(&mut self, port: &DmaPort) {
        if let Some(sending) = &mut self.sending {
            port.cancel(&mut sending.transfer);
        }
    }

    /// Whether a saved state is one of a function with as many vectors as this.
    pub fn same_shape(&self, other: &Self) -> bool {
        let n = other.table.len();
        let known = |&vector: &u16| usize::from(vector) < n;
        self.table.len() == n && self.pending.len() == n && self.queue.iter().all(known)
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self, port: &DmaPort) {
        self.suspend(port);
        *self = Self::new(self.vectors());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Fabric, GITS_TRANSLATER, ItsInbox, Message};
    use guest_ram::GuestRam;

    struct Bench {
        msix: Msix,
        port: DmaPort,
        inbox: ItsInbox,
        ram: GuestRam,
    }

    impl Bench {
        fn new() -> Self {
            let inbox = ItsInbox::default();
            let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
            let port = Fabric::new(ram.clone(), None, inbox.clone()).port(8);
            port.set_enabled(true);
            let mut msix = Msix::new(3);
            msix.set_control(CONTROL_ENABLE, 0);
            for vector in 0..3 {
                msix.write(vector * 16, 8, GITS_TRANSLATER, 0);
                msix.write(vector * 16 + 8, 4, 100 + vector, 0);
            }
            Self { msix, port, inbox, ram }
        }

        fn sent(&mut self) -> Vec<u32> {
            while let Some(at) = self.msix.next_step(&self.port) {
                self.msix.step(&self.port, at);
            }
            std::iter::from_fn(|| self.inbox.take()).map(|Message { event_id, .. }| event_id).collect()
        }
    }

    #[test]
    fn a_masked_vector_is_pending_until_unmasked() {
        let mut b = Bench::new();
        b.msix.trigger(1, 5);
        assert!(b.sent().is_empty());
        assert_eq!(b.msix.read(Msix::PBA_OFFSET, 8), 0b10);
        b.msix.write(16 + 12, 4, 0, 5);
        assert_eq!(b.msix.read(Msix::PBA_OFFSET, 4), 0);
        assert_eq!(b.msix.next_step(&b.port), Some(5 + STEP_NS), "not inside the write");
        assert_eq!(b.sent(), [101]);
    }

    #[test]
    fn the_function_mask_holds_all_vectors() {
        let mut b = Bench::new();
        (0..3).for_each(|v| b.msix.write(v * 16 + 12, 4, 0, 0));
        b.msix.set_control(CONTROL_ENABLE | CONTROL_MASK, 0);
        b.msix.trigger(2, 0);
        b.msix.trigger(0, 0);
        b.msix.trigger(2, 0);
        assert!(b.sent().is_empty());
        b.msix.set_control(CONTROL_ENABLE, 0);
        assert_eq!(b.sent(), [100, 102]);
    }

    #[test]
    fn masking_catches_a_message_that_has_not_left() {
        let mut b = Bench::new();
        b.msix.write(12, 4, 0, 0);
        b.msix.trigger(0, 0);
        b.msix.write(12, 4, 1, 0);
        assert!(b.sent().is_empty());
        assert_eq!(b.msix.read(Msix::PBA_OFFSET, 4), 1);
        b.msix.set_control(0, 0);
        assert_eq!(b.msix.read(Msix::PBA_OFFSET, 4), 0);
    }

    #[test]
    fn messages_need_bus_mastering_and_may_go_to_ram() {
        let mut b = Bench::new();
        b.msix.write(0, 4, 0x4000_0013, 0);
        b.msix.write(12, 4, 0, 0);
        b.port.set_enabled(false);
        b.msix.trigger(0, 0);
        assert_eq!(b.msix.next_step(&b.port), None);
        b.port.set_enabled(true);
        assert!(b.sent().is_empty());
        let mut data = [0; 4];
        b.ram.read(0x4000_0010, &mut data);
        assert_eq!(u32::from_le_bytes(data), 100);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let mut b = Bench::new();
        for offset in [0, 1, 13, 47, 48, 0x7fc, 0x7ff, 0x800, 0x804, 0xffc, u64::MAX - 7] {
            for size in [0, 1, 2, 4, 8, 200] {
                b.msix.write(offset, size, u64::MAX, 0);
                b.msix.read(offset, size);
            }
        }
        b.msix.trigger(0xffff, 0);
        b.msix.trigger(3, 0);
        assert!(b.sent().is_empty());
    }
}
