//! The PL011 UART (Arm DDI 0183, r1p5: 32-byte FIFOs).
//!
//! The line is infinitely fast: a byte leaves, or arrives, as soon as it can. The one time that passes is that of the
//! receive timeout, 32 bit periods. Received bytes that do not fit the FIFO wait in a bounded queue in front of it, as
//! with flow control, so there are no overruns. The receiver and transmitter are on at power-on, as firmware leaves
//! them, so that early consoles work without one.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Time};
use crate::bus::{MmioDevice, size_mask};

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
/// UARTPeriphID0-3 and UARTPCellID0-3, from 0xfe0.
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const DR_BE: u16 = 1 << 10;
const FR_TXFE: u32 = 1 << 7;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFE: u32 = 1 << 4;
const FR_BUSY: u32 = 1 << 3;
/// Data carrier detect, data set ready, clear to send: a terminal is attached.
const FR_ATTACHED: u32 = 7;
const LCR_H_FEN: u32 = 1 << 4;
const CR_UARTEN: u32 = 1;
const CR_LBE: u32 = 1 << 7;
const CR_TXE: u32 = 1 << 8;
const CR_RXE: u32 = 1 << 9;
const CR_RW: u32 = 0xff87;
const INT_ALL: u32 = 0x7ff;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_BE: u32 = 1 << 9;

const FIFO: usize = 32;
/// Received bytes that wait in front of the FIFO.
const QUEUE: usize = 1 << 16;
/// Frequency of UARTCLK on the `virt` machine.
const CLOCK_HZ: u64 = 24_000_000;

/// State of a PL011.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl011 {
    rsr: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    /// Receive FIFO: characters with their error flags as UARTDR shows them.
    rx: VecDeque<u16>,
    /// Bytes written while the transmitter was off.
    tx: VecDeque<u8>,
    /// What waits in front of the receive FIFO.
    queue: VecDeque<u16>,
    /// Transmitted, not yet taken by the host.
    output: Vec<u8>,
    /// When the receive timeout strikes.
    timeout: Option<Time>,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// A UART at power-on.
    pub fn new() -> Self {
        Self {
            rsr: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_UARTEN | CR_TXE | CR_RXE,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            queue: VecDeque::new(),
            output: Vec::new(),
            timeout: None,
        }
    }

    /// Level of the combined interrupt output, UARTINTR.
    #[inline]
    pub fn irq(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// Whether there is output to take.
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes what was transmitted. The host does so every round: nothing else bounds it.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Bytes arrive at virtual time `now`. Returns how many were accepted; the rest has to come again later.
    pub fn push_input(&mut self, now: Time, bytes: &[u8]) -> usize {
        let room = QUEUE.saturating_sub(self.queue.len()).min(bytes.len());
        self.queue.extend(bytes.iter().take(room).map(|&byte| u16::from(byte)));
        self.receive(now);
        room
    }

    /// A break arrives.
    pub fn push_break(&mut self, now: Time) {
        if self.queue.len() < QUEUE {
            self.queue.push_back(DR_BE);
            self.receive(now);
        }
    }

    /// How many bytes [`Pl011::push_input`] would accept.
    pub fn input_room(&self) -> usize {
        QUEUE.saturating_sub(self.queue.len())
    }

    fn on(&self, direction: u32) -> bool {
        self.cr & CR_UARTEN != 0 && self.cr & direction != 0
    }

    fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO } else { 1 }
    }

    /// Receive FIFO level that raises the receive interrupt.
    fn rx_trigger(&self) -> usize {
        if self.depth() == 1 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO / 8,
            1 => FIFO / 4,
            2 => FIFO / 2,
            3 => FIFO * 3 / 4,
            _ => FIFO * 7 / 8,
        }
    }

    /// 32 bit periods in nanoseconds.
    fn timeout_period(&self) -> Time {
        // Baud rate divisor in 64ths; a bit takes 16 × divisor clocks.
        let divisor = u64::from(self.ibrd << 6 | self.fbrd).max(64);
        32 * 16 * divisor * 1_000_000_000 / (64 * CLOCK_HZ)
    }

    /// Moves what waits into the FIFO.
    fn receive(&mut self, now: Time) {
        // In loopback the line is cut off.
        if self.cr & CR_LBE == 0 {
            while self.on(CR_RXE) && self.rx.len() < self.depth() {
                let Some(character) = self.queue.pop_front() else { break };
                self.arrive(now, character);
            }
        }
    }

    fn arrive(&mut self, now: Time, character: u16) {
        self.rx.push_back(character);
        if character & DR_BE != 0 {
            self.ris |= INT_BE;
        }
        if self.rx.len() >= self.rx_trigger() {
            self.ris |= INT_RX;
        }
        self.timeout = Some(now.saturating_add(self.timeout_period()));
    }

    fn read_data(&mut self, now: Time) -> u32 {
        let Some(character) = self.rx.pop_front() else { return 0 };
        self.rsr = u32::from(character >> 8);
        if self.rx.len() < self.rx_trigger() {
            self.ris &= !INT_RX;
        }
        if self.rx.is_empty() {
            self.ris &= !INT_RT;
            self.timeout = None;
        }
        self.receive(now);
        character.into()
    }

    fn write_data(&mut self, now: Time, byte: u8) {
        if self.tx.len() < self.depth() {
            self.tx.push_back(byte);
        }
        self.transmit(now);
    }

    /// Sends what the transmit FIFO holds.
    fn transmit(&mut self, now: Time) {
        if !self.on(CR_TXE) || self.tx.is_empty() {
            return;
        }
        for byte in std::mem::take(&mut self.tx) {
            if self.cr & CR_LBE == 0 {
                self.output.push(byte);
            } else if self.on(CR_RXE) && self.rx.len() < self.depth() {
                self.arrive(now, byte.into());
            }
        }
        // The level went through the trigger on its way to empty.
        self.ris |= INT_TX;
    }

    /// The modem status inputs as UARTFR shows them: RI in bit 8, DCD, DSR, CTS in 2:0.
    fn modem(&self) -> u32 {
        if self.cr & CR_LBE == 0 {
            return FR_ATTACHED;
        }
        // Loopback: RTS drives CTS, DTR drives DSR, Out1 drives DCD, Out2 drives RI.
        let bit = |n: u32| self.cr >> n & 1;
        bit(11) | bit(10) << 1 | bit(12) << 2 | bit(13) << 8
    }

    fn flags(&self) -> u32 {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        self.modem()
            | bit(self.tx.is_empty(), FR_TXFE)
            | bit(self.tx.len() >= self.depth(), FR_TXFF)
            | bit(!self.tx.is_empty(), FR_BUSY)
            | bit(self.rx.is_empty(), FR_RXFE)
            | bit(self.rx.len() >= self.depth(), FR_RXFF)
    }

    fn write_control(&mut self, now: Time, value: u32) {
        let before = self.modem();
        self.cr = value & CR_RW;
        let changed = before ^ self.modem();
        // RIMIS, CTSMIS, DCDMIS, DSRMIS are bits 0 to 3.
        self.ris |= changed >> 8 & 1 | (changed & 1) << 1 | changed & 4 | (changed & 2) << 2;
        self.transmit(now);
        self.receive(now);
    }
}

impl MmioDevice for Pl011 {
    fn read(&mut self, at: Time, offset: u64, size: u8) -> u64 {
        let value = match offset & !3 {
            DR if offset == DR => self.read_data(at),
            RSR => self.rsr,
            FR => self.flags(),
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            DMACR => self.dmacr,
            id @ 0xfe0..0x1000 => ID.get((id - 0xfe0) as usize / 4).copied().unwrap_or(0).into(),
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3)) & size_mask(size.min(4))
    }

    fn write(&mut self, at: Time, offset: u64, _size: u8, value: u64) {
        let word = value as u32;
        match offset {
            DR => self.write_data(at, word as u8),
            // UARTECR
            RSR => self.rsr = 0,
            ILPR => self.ilpr = word & 0xff,
            IBRD => self.ibrd = word & 0xffff,
            FBRD => self.fbrd = word & 0x3f,
            LCR_H => {
                self.lcr_h = word & 0xff;
                if self.lcr_h & LCR_H_FEN == 0 {
                    self.tx.clear();
                }
                self.receive(at);
            }
            CR => self.write_control(at, word),
            IFLS => self.ifls = word & 0x3f,
            IMSC => self.imsc = word & INT_ALL,
            ICR => {
                self.ris &= !word;
                // What is left in the FIFO times out again.
                if word & INT_RT != 0 && !self.rx.is_empty() {
                    self.timeout = Some(at.saturating_add(self.timeout_period()));
                }
            }
            DMACR => self.dmacr = word & 7,
            _ => {}
        }
    }
}

/// The receive timeout.
impl Agent for Pl011 {
    fn next_step(&self) -> Option<Time> {
        self.timeout
    }

    fn step(&mut self, now: Time) {
        if self.timeout.is_some_and(|due| due <= now) {
            self.timeout = None;
            self.ris |= INT_RT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo() -> Pl011 {
        let mut uart = Pl011::new();
        uart.write(0, LCR_H, 4, 0x70);
        uart
    }

    #[test]
    fn what_is_written_comes_out() {
        let mut uart = Pl011::new();
        uart.write(0, IMSC, 4, INT_TX.into());
        assert!(!uart.irq());
        for byte in *b"hi" {
            assert_eq!(uart.read(0, FR, 4) as u32 & FR_TXFF, 0);
            uart.write(0, DR, 1, byte.into());
        }
        assert_eq!(uart.take_output(), b"hi");
        assert!(uart.irq());
        uart.write(0, ICR, 4, INT_TX.into());
        assert!(!uart.irq() && !uart.has_output());
    }

    #[test]
    fn a_transmitter_that_is_off_holds_its_bytes() {
        let mut uart = fifo();
        uart.write(0, CR, 4, 0);
        for byte in 0..40 {
            uart.write(0, DR, 1, byte);
        }
        assert!(!uart.has_output());
        assert_eq!(uart.read(0, FR, 4) as u32 & (FR_TXFF | FR_TXFE | FR_BUSY), FR_TXFF | FR_BUSY);
        uart.write(0, CR, 4, 0x301);
        assert_eq!(uart.take_output(), (0..32).collect::<Vec<u8>>());
    }

    #[test]
    fn receive_interrupt_follows_the_trigger_level() {
        let mut uart = fifo();
        uart.write(0, IMSC, 4, INT_RX.into());
        assert_eq!(uart.push_input(0, &[b'x'; 15]), 15);
        assert!(!uart.irq());
        uart.push_input(0, b"y");
        assert!(uart.irq(), "half full");
        assert_eq!(uart.read(0, DR, 4), u64::from(b'x'));
        assert!(!uart.irq());
    }

    #[test]
    fn the_rest_times_out() {
        let mut uart = fifo();
        uart.write(0, IBRD, 4, 13);
        uart.write(0, FBRD, 4, 1);
        uart.write(0, IMSC, 4, INT_RT.into());
        uart.push_input(1000, b"a");
        let due = uart.next_step().unwrap();
        assert!((277_000..279_000).contains(&(due - 1000)), "32 bits at 115200 baud, not {due}");
        uart.step(due - 1);
        assert!(!uart.irq());
        uart.step(due);
        assert!(uart.irq() && uart.next_step().is_none());
        assert_eq!(uart.read(due, DR, 4), u64::from(b'a'));
        assert!(!uart.irq());
        assert_eq!(uart.read(due, FR, 4) as u32 & FR_RXFE, FR_RXFE);
    }

    #[test]
    fn more_input_than_the_fifo_waits_its_turn() {
        let mut uart = Pl011::new();
        let text: Vec<u8> = (0..200).collect();
        uart.push_input(0, &text);
        let mut got = Vec::new();
        while uart.read(0, FR, 4) as u32 & FR_RXFE == 0 {
            got.push(uart.read(0, DR, 1) as u8);
        }
        assert_eq!(got, text);
        assert_eq!(uart.push_input(0, &vec![0; QUEUE + 10]), QUEUE);
        assert_eq!(uart.input_room(), 1, "one went into the holding register");
    }

    #[test]
    fn a_break_shows_in_data_status_and_interrupt() {
        let mut uart = fifo();
        uart.push_break(0);
        assert_eq!(uart.read(0, RIS, 4) as u32 & INT_BE, INT_BE);
        assert_eq!(uart.read(0, DR, 4), 0x400);
        assert_eq!(uart.read(0, RSR, 4), 4);
        uart.write(0, RSR, 4, 0);
        assert_eq!(uart.read(0, RSR, 4), 0);
    }

    #[test]
    fn loopback_joins_both_ends() {
        let mut uart = fifo();
        uart.write(0, CR, 4, 0xb81);
        uart.write(0, DR, 1, 0x5a);
        assert!(!uart.has_output());
        assert_eq!(uart.read(0, DR, 1), 0x5a);
        assert_eq!(uart.read(0, FR, 4) & 0x107, 1, "RTS seen as CTS");
        assert_eq!(uart.read(0, RIS, 4) & 0xf, 0b1100, "DCD and DSR went away");
    }

    #[test]
    fn says_what_it_is() {
        let mut uart = Pl011::new();
        let id: Vec<u64> = (0..8).map(|n| uart.read(0, 0xfe0 + 4 * n, 4)).collect();
        assert_eq!(id, [0x11, 0x10, 0x34, 0, 0xd, 0xf0, 5, 0xb1]);
    }

    proptest::proptest! {
        #[test]
        fn nonsense_is_harmless(accesses in proptest::collection::vec((0u64..0x1010, 0u8..9, proptest::num::u64::ANY), 0..200)) {
            let mut uart = Pl011::new();
            for (offset, size, value) in accesses {
                uart.write(value, offset, size, value);
                uart.read(value, offset, size);
                uart.push_input(value, &[value as u8]);
                uart.step(value);
                proptest::prop_assert!(uart.rx.len() <= FIFO && uart.tx.len() <= FIFO);
            }
        }
    }
}
