//! The engine's commands, frames and interrupts.

use super::*;

pub(super) const HALTED: u64 = 1;
pub(super) const MEMCPY: u64 = 2;
pub(super) const RAND48: u64 = 3;
pub(super) const SUM64: u64 = 4;
pub(super) const MISCONFIGURED: u64 = 0xffff_fffe;
pub(super) const ERROR: u64 = 0xffff_ffff;
/// Normal write-back, inner shareable, non-secure, of both halfwords.
pub(super) const WRITE_BACK: u64 = 0x42ff_42ff;
const DOWN: u64 = 0xffff_ffff;

/// What a driver writes into a frame.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) stride: u64,
    pub(super) seed: u64,
    pub(super) attributes: u64,
    /// udata\[0\].
    pub(super) target: u64,
    /// The vector, if a message is wanted.
    pub(super) vector: Option<u64>,
    pub(super) ssid: u64,
}

impl Order {
    /// A plain forward job over `len` bytes.
    pub(super) fn new(begin: u64, len: u64) -> Self {
        let end = begin.wrapping_add(len - 1);
        let (stride, seed, target, vector, ssid) = (1, 0, 0, None, 0xffff_ffff);
        Self { begin, end, stride, seed, attributes: WRITE_BACK, target, vector, ssid }
    }
}

pub(super) fn frame(n: u64) -> u64 {
    FRAMES + n * 128
}

impl Lab {
    pub(super) fn frame_get(&mut self, n: u64, at: u64, size: u8) -> u64 {
        self.read(frame(n) + at, size)
    }

    pub(super) fn frame_set(&mut self, n: u64, at: u64, size: u8, value: u64) {
        self.write(frame(n) + at, size, value);
    }

    /// Fills frame `n`, as Linux's driver for the engine does it.
    pub(super) fn prepare(&mut self, n: u64, order: Order) {
        self.write(frame(n) + 0x1_0000, 4, 1);
        self.write(frame(n) + 0x1_0004, 4, 0);
        self.write(frame(n) + 0x1_000c, 4, order.ssid);
        self.frame_set(n, 0x00, 4, HALTED);
        self.frame_set(n, 0x04, 4, 0);
        self.frame_set(n, 0x28, 8, order.begin);
        self.frame_set(n, 0x30, 8, order.end);
        self.frame_set(n, 0x20, 4, order.attributes);
        self.frame_set(n, 0x24, 4, order.seed);
        self.frame_set(n, 0x38, 8, order.stride);
        self.frame_set(n, 0x10, 8, u64::from(order.vector.is_some()));
        self.frame_set(n, 0x18, 4, order.vector.unwrap_or(0));
        self.frame_set(n, 0x1c, 4, 0);
        self.frame_set(n, 0x40, 8, order.target);
        (1..8).for_each(|i| self.frame_set(n, 0x40 + 8 * i, 8, 0));
    }

    /// Writes cmd, and answers what it reads as at once.
    pub(super) fn launch(&mut self, n: u64, command: u64) -> u64 {
        self.frame_set(n, 0, 4, command);
        self.cmd(n)
    }

    pub(super) fn cmd(&mut self, n: u64) -> u64 {
        self.frame_get(n, 0, 4)
    }

    pub(super) fn udata(&mut self, n: u64, i: u64) -> u64 {
        self.frame_get(n, 0x40 + 8 * i, 8)
    }

    /// A command on frame 0 from its parameters to its end.
    pub(super) fn go(&mut self, command: u64, order: Order) -> u64 {
        self.prepare(0, order);
        assert_eq!(self.launch(0, command), command, "it runs");
        self.run();
        self.cmd(0)
    }
}

pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn identity_and_layout() {
    let mut lab = Lab::physical();
    assert_eq!(lab.config_read(ENGINE, 0, 4), 0xff80_13b5);
    lab.config32(ENGINE, 0x10, u32::MAX);
    assert_eq!(lab.config_read(ENGINE, 0x10, 4) & !0xf, 0xfffe_0000, "a pair of pages");
    lab.config32(ENGINE, 0x10, FRAMES as u32);
    let msix = lab.capability(ENGINE, 0x11);
    assert_eq!(lab.config_read(ENGINE, msix + 2, 2), 0x807f);
    assert_eq!(lab.config_read(ENGINE, msix + 4, 4), 2);
    assert_eq!(lab.config_read(ENGINE, 0x100, 4), 0x0001_001b);
    assert_eq!(lab.config_read(ENGINE, 0x104, 2), 0x1406, "PASIDs of 20 bits, execute, privileged");
    for n in [0, 1, 511] {
        assert_eq!(lab.cmd(n), HALTED);
        assert_eq!(lab.read(frame(n) + 0x1_0000, 8), 1);
        assert_eq!(lab.read(frame(n) + 0x1_000c, 4), 0xffff_ffff);
    }
    // Any width; nothing over the end of a frame.
    lab.frame_set(3, 0x28, 2, 0x1234);
    lab.frame_set(3, 0x2b, 1, 0x56);
    lab.frame_set(3, 0x2d, 8, 0x8877_6655_4433_2211);
    assert_eq!(lab.frame_get(3, 0x28, 8), 0x3322_1100_5600_1234);
    assert_eq!(lab.frame_get(3, 0x2d, 8), 0x8877_6655_4433_2211);
    lab.frame_set(3, 0x7c, 8, u64::MAX);
    assert_eq!(lab.frame_get(3, 0x78, 8), 0);
    assert_eq!(lab.frame_get(3, 0x7c, 8), 0);
    // The frame is non-secure for ever, ATS and PRI bits are kept, the counts are the engine's.
    lab.write(frame(3) + 0x1_0000, 4, 0xffff_fffe);
    assert_eq!(lab.read(frame(3) + 0x1_0000, 4), 0x301);
    lab.frame_set(3, 0x08, 8, u64::MAX);
    assert_eq!(lab.frame_get(3, 0x08, 8), 0);
    assert_eq!(lab.cmd(3), HALTED);
    assert_eq!(lab.cmd(4), HALTED);
}

#[test]
fn memcpy_in_any_order() {
    let data = bytes(0x3456);
    for seed in [0, DOWN, 1, 0x1234_5678] {
        let mut lab = Lab::physical();
        lab.put(DATA + 0xf3, &data);
        let target = DATA + 0x1_0fa1;
        let order = Order { seed, target, ..Order::new(DATA + 0xf3, 0x3456) };
        assert_eq!(lab.go(MEMCPY, order), HALTED);
        assert_eq!(lab.get(target, 0x3456), data);
        assert_eq!((lab.get(target - 1, 1)[0], lab.get(target + 0x3456, 1)[0]), (0, 0));
        let (launched, returned) = (lab.frame_get(0, 8, 4), lab.frame_get(0, 12, 4));
        assert_eq!(launched, returned);
        assert!(launched > 100, "{launched} transactions");
        assert_eq!(lab.interrupts(), [0; 0]);
    }
}

/// The bytes that the engine's description asks for, one after the other.
fn rand48(seed: u32, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut state = 0u64;
    let step = |state: u64| state.wrapping_mul(0x5_deec_e66d).wrapping_add(0xb) & 0xffff_ffff_ffff;
    let start = range.start;
    range
        .map(|at| {
            if at % 4096 == 0 || at == start {
                state = u64::from(seed ^ (at >> 32) as u32 ^ at as u32) << 16 | 0x330e;
            }
            let drawn = step(state);
            state = step(drawn);
            (drawn >> 17) as u8
        })
        .collect()
}

#[test]
fn rand48_in_any_order() {
    for seed in [0, DOWN, 1, 0x1234_5678] {
        let mut lab = Lab::physical();
        let (begin, len) = (DATA + 0xabc, 0x2345);
        assert_eq!(lab.go(RAND48, Order { seed, ..Order::new(begin, len) }), HALTED);
        assert_eq!(lab.get(begin, len as usize), rand48(seed as u32, begin..begin + len));
        assert_eq!((lab.get(begin - 1, 1)[0], lab.get(begin + len, 1)[0]), (0, 0));
    }
}

#[test]
fn sum64_in_any_order() {
    let data = bytes(0x2008);
    let expected =
        data.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).fold(0, u64::wrapping_add);
    for seed in [0, DOWN, 1, 0x1234_5678] {
        let mut lab = Lab::physical();
        lab.put(DATA + 8, &data);
        assert_eq!(lab.go(SUM64, Order { seed, ..Order::new(DATA + 8, 0x2008) }), HALTED);
        assert_eq!(lab.udata(0, 1), expected);
        assert_eq!(lab.get(DATA + 8, 0x2008), data);
    }
}

#[test]
fn strides_take_single_elements() {
    // (begin, end, stride): addresses of the elements.
    let cases: [(u64, u64, u64, &[u64]); 5] = [
        (0x100, 0x17f, 0x40, &[0x100, 0x140]),
        (0x100, 0x180, 0x40, &[0x100, 0x140, 0x180]),
        (0x103, 0x121, 8, &[0x100, 0x108, 0x110, 0x118, 0x120]),
        (0x100, 0x107, 0x1000, &[0x100]),
        (0x100, 0x2fff, 0xffff_ffff_ffff_fff8, &[0x100]),
    ];
    for (begin, end, stride, at) in cases {
        for seed in [0, DOWN, 77] {
            let order = Order { end: DATA + end, stride, seed, ..Order::new(DATA + begin, 1) };
            let mut lab = Lab::physical();
            assert_eq!(lab.go(RAND48, order), HALTED);
            let mut expected = vec![0; 0x4000];
            for &at in at {
                let element = rand48(seed as u32, DATA + at..DATA + at + 8);
                expected[at as usize..at as usize + 8].copy_from_slice(&element);
            }
            assert_eq!(lab.get(DATA, 0x4000), expected, "{begin:#x}..={end:#x} by {stride:#x}");
            assert_eq!(lab.frame_get(0, 8, 4), at.len() as u64);
            // What a copy leaves out stays as it was.
            assert_eq!(lab.go(MEMCPY, Order { target: DATA + 0x8000 + begin, ..order }), HALTED);
            assert_eq!(lab.get(DATA + 0x8000, 0x4000), expected);
        }
    }
    let mut lab = Lab::physical();
    lab.put64(DATA, &[1, 2, 4, 8, 16]);
    assert_eq!(lab.go(SUM64, Order { stride: 16, ..Order::new(DATA, 40) }), HALTED);
    assert_eq!(lab.udata(0, 1), 21);
}

#[test]
fn frames_that_make_no_sense() {
    let good = Order { target: DATA + 0x1000, ..Order::new(DATA, 0x100) };
    let mut lab = Lab::physical();
    let bad = [
        Order { stride: 0, ..good },
        Order { stride: 2, ..good },
        Order { stride: 12, ..good },
        Order { begin: 3, end: u64::MAX - 5, ..good },
        Order { begin: DATA + 1, end: DATA, ..good },
        Order { target: u64::MAX - 0xfe, ..good },
        Order { vector: Some(128), ..good },
        Order { vector: Some(0x1_0000), ..good },
        Order { ssid: 1 << 20, ..good },
        Order { ssid: 0xffff_fffe, ..good },
        Order { attributes: 0x42ff_4244, ..good },
        Order { attributes: 0xc2ff_42ff, ..good },
    ];
    for (i, order) in bad.into_iter().enumerate() {
        lab.prepare(0, order);
        assert_eq!(lab.launch(0, MEMCPY), MISCONFIGURED, "number {i}");
        assert!(!lab.step());
        assert_eq!(lab.interrupts(), [0; 0], "no message of number {i}");
    }
    // What the command does not use may be anything.
    assert_eq!(lab.go(RAND48, Order { attributes: 0x42ff_4244, target: u64::MAX, ..good }), HALTED);
    assert_eq!(lab.go(SUM64, Order { attributes: 0xc244_42ff, ..good }), HALTED);
    for (begin, end) in [(DATA + 4, DATA + 0xff), (DATA, DATA + 0xfb)] {
        lab.prepare(0, Order { begin, end, ..good });
        assert_eq!(lab.launch(0, SUM64), MISCONFIGURED);
    }
    lab.prepare(0, good);
    lab.frame_set(0, 0x10, 8, 2);
    assert_eq!(lab.launch(0, MEMCPY), MISCONFIGURED, "a message is wanted or not");
    lab.prepare(0, good);
    lab.write(FRAMES + 0x1_0004, 4, 1);
    assert_eq!(lab.launch(0, MEMCPY), MISCONFIGURED, "PCIe has port 0 only");
    lab.prepare(0, good);
    for command in [5, 0x1234, 0xffff_fffd] {
        assert_eq!(lab.launch(0, command), MISCONFIGURED);
    }
    assert_eq!(lab.launch(0, 0), HALTED);
    assert_eq!(lab.launch(0, ERROR), ERROR);
    assert_eq!(lab.go(MEMCPY, good), HALTED, "from any of these states");
    assert_eq!(lab.get(DATA + 0x1000, 0x100), lab.get(DATA, 0x100));
}

#[test]
fn a_running_frame_cannot_be_written() {
    let mut lab = Lab::physical();
    lab.put(DATA, &bytes(0x100));
    let order = Order { target: DATA + 0x1000, ..Order::new(DATA, 0x100) };
    lab.prepare(0, order);
    lab.prepare(1, Order { target: DATA + 0x2000, ..order });
    assert_eq!(lab.launch(0, MEMCPY), MEMCPY);
    for at in (0..128).step_by(8) {
        lab.frame_set(0, at, 8, u64::MAX);
        lab.write(frame(0) + 0x1_0000 + at, 8, u64::MAX);
    }
    assert_eq!(lab.launch(0, HALTED), MEMCPY);
    assert_eq!(lab.frame_get(0, 0x28, 8), DATA);
    assert_eq!(lab.read(FRAMES + 0x1_000c, 4), 0xffff_ffff);
    assert_eq!(lab.launch(1, MEMCPY), MEMCPY, "its neighbour can");
    lab.run();
    assert_eq!((lab.cmd(0), lab.cmd(1)), (HALTED, HALTED));
    assert_eq!(lab.get(DATA + 0x1000, 0x100), bytes(0x100));
    assert_eq!(lab.get(DATA + 0x2000, 0x100), bytes(0x100));
}

#[test]
fn nothing_happens_inside_the_write_of_cmd() {
    let mut lab = Lab::physical();
    lab.prepare(0, Order::new(DATA, 8));
    lab.launch(0, RAND48);
    assert_eq!((lab.get64(DATA), lab.frame_get(0, 8, 4)), (0, 0));
    assert!(lab.step());
    assert_eq!((lab.get64(DATA), lab.frame_get(0, 8, 4), lab.frame_get(0, 12, 4)), (0, 1, 0));
    assert!(lab.step());
    assert_ne!(lab.get64(DATA), 0);
    assert_eq!((lab.cmd(0), lab.frame_get(0, 12, 4)), (RAND48, 1));
    lab.run();
    assert_eq!(lab.cmd(0), HALTED);
    // uctrl.RATE slows it down.
    let time = |lab: &mut Lab, rate: u64| {
        lab.prepare(0, Order::new(DATA, 0x1000));
        lab.frame_set(0, 4, 4, rate << 16);
        lab.launch(0, RAND48);
        let start = lab.now;
        lab.run();
        lab.now - start
    };
    let fast = time(&mut lab, 0);
    assert_eq!(time(&mut lab, 1000), fast + 16 * 1000);
}

#[test]
fn messages_say_that_frames_ended() {
    let mut lab = Lab::physical();
    for n in 0..4 {
        let begin = if n == 2 { 0 } else { DATA + n * 0x1000 };
        lab.prepare(n, Order { vector: Some(n + 5), ..Order::new(begin, 0x80 * (n + 1)) });
        lab.launch(n, RAND48);
    }
    lab.run();
    assert_eq!([0, 1, 2, 3].map(|n| lab.cmd(n)), [HALTED, HALTED, ERROR, HALTED]);
    let mut messages = lab.interrupts();
    messages.sort_unstable();
    assert_eq!(messages, [0x105, 0x106, 0x107, 0x108], "of those with errors, too");
    // The state is there before the message is.
    lab.prepare(0, Order { vector: Some(0), ..Order::new(DATA, 8) });
    lab.launch(0, RAND48);
    while lab.cmd(0) == RAND48 {
        assert_eq!(lab.interrupts(), [0; 0]);
        lab.step();
    }
    assert_eq!(lab.interrupts(), [0; 0]);
    lab.run();
    assert_eq!(lab.interrupts(), [0x100]);
}

#[test]
fn messages_that_cannot_be_sent() {
    const ABORTED: u64 = 1;
    let order = Order { vector: Some(1), ..Order::new(DATA, 8) };
    let mut lab = Lab::physical();
    // A masked vector waits.
    lab.write(MSIX + 16 + 12, 4, 1);
    assert_eq!(lab.go(RAND48, order), HALTED);
    assert_eq!((lab.interrupts().len(), lab.read(MSIX + 0x800, 8)), (0, 0b10));
    lab.write(MSIX + 16 + 12, 4, 0);
    lab.run();
    assert_eq!((lab.interrupts(), lab.frame_get(0, 4, 4)), (vec![0x101], 0));
    // An address where nothing is; two frames with the vector.
    lab.write(MSIX + 16, 8, 0x1234_0000);
    for n in 0..3 {
        lab.prepare(n, Order { vector: Some(1 + n / 2), ..order });
        lab.launch(n, RAND48);
    }
    lab.run();
    assert_eq!([0, 1, 2].map(|n| lab.frame_get(n, 4, 4)), [ABORTED, ABORTED, 0]);
    assert_eq!([0, 1, 2].map(|n| lab.cmd(n)), [HALTED; 3]);
    assert_eq!(lab.interrupts(), [0x102]);
    // MSI-X is off.
    let msix = lab.capability(ENGINE, 0x11);
    lab.config32(ENGINE, msix, 0);
    assert_eq!(lab.go(RAND48, Order { vector: Some(2), ..order }), HALTED);
    assert_eq!(lab.frame_get(0, 4, 4), ABORTED);
}

#[test]
fn hundreds_of_frames_at_once() {
    let mut lab = Lab::physical();
    for n in 0..512 {
        lab.prepare(n, Order { vector: Some(n % 128), seed: n, ..Order::new(DATA + n * 0x1000, 0x300) });
        assert_eq!(lab.launch(n, RAND48), RAND48);
    }
    assert_eq!(lab.host.agents().filter(|a| a.0 == ENGINE).count(), 512);
    // They take turns: after some steps, all have begun and none is done.
    (0..512 * 2).for_each(|_| assert!(lab.step()));
    for n in 0..512 {
        assert_eq!((lab.cmd(n), lab.frame_get(n, 8, 4)), (RAND48, 1), "frame {n}");
    }
    lab.run();
    for n in 0..512 {
        assert_eq!(lab.cmd(n), HALTED);
        let begin = DATA + n * 0x1000;
        assert_eq!(lab.get(begin, 0x300), rand48(n as u32, begin..begin + 0x300));
    }
    let mut messages = lab.interrupts();
    messages.sort_unstable();
    messages.dedup();
    assert_eq!(messages, (0x100..0x180).collect::<Vec<u32>>());
}

#[test]
fn a_scheduler_may_let_frames_overtake_each_other() {
    let mut lab = Lab::physical();
    for n in 0..2 {
        lab.prepare(n, Order::new(DATA + n * 0x1000, 0x1000));
        lab.launch(n, RAND48);
    }
    // Frame 1 is lane 2. Frame 0 does nothing while it runs.
    while lab.cmd(1) == RAND48 {
        lab.host.step_agent(ENGINE, 2, 1000);
    }
    assert_eq!(lab.frame_get(0, 8, 4), 0);
    assert_eq!(lab.cmd(0), RAND48);
    lab.run();
    assert_eq!(lab.cmd(0), HALTED);
}
