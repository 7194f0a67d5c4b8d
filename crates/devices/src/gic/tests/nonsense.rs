//! Whatever a guest writes, nothing panics and the ITS comes to rest.

use proptest::prelude::*;

use super::lpis::{ITT, QUEUE_SIZE};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Gicd(u64, u8, u64),
    Gicr(u64, u8, u64),
    Gits(u64, u8, u64),
    Icc(usize, u16, u64),
    Spi(u32, bool),
    Ppi(usize, u32, bool),
    Msi(u32, u32),
    /// Anything into the command queue and the tables.
    Ram(u64, u64),
    Command([u64; 4]),
}

/// Values that mean something more often than plain random ones do.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        (0..64u32).prop_map(|n| 1 << n),
        (0..RAM_SIZE).prop_map(|n| 1 << 63 | RAM | n),
        0..70_000u64,
    ]
}

fn command() -> impl Strategy<Value = [u64; 4]> {
    let device = prop_oneof![0..4u64, any::<u32>().prop_map(u64::from)];
    let kind = prop_oneof![9 => 0..0x10u64, 1 => any::<u8>().prop_map(u64::from)];
    let second = prop_oneof![0..8u64, (8000..8300u64, 0..8u64).prop_map(|(l, e)| l << 32 | e), value()];
    let third =
        prop_oneof![0..8u64, Just(1 << 63 | ITT), (0..3u64).prop_map(|c| 1 << 63 | c << 16 | c), value()];
    (device, kind, second, third, value()).prop_map(|(d, k, b, c, e)| [d << 32 | k, b, c, e])
}

fn op() -> impl Strategy<Value = Op> {
    let size = proptest::sample::select(vec![1u8, 2, 4, 4, 4, 8, 8, 0, 3, 255]);
    let its = prop_oneof![0..0x140u64, 0..0x2_0100u64, any::<u64>()].prop_map(|o| o & !3);
    let gicr = prop_oneof![0..0x100u64, 0x1_0000..0x1_1000u64, 0..0x8_0000u64, any::<u64>()];
    prop_oneof![
        2 => (prop_oneof![0..0x1_0000u64, 0..0x1000u64, any::<u64>()], size.clone(), value())
            .prop_map(|(o, s, v)| Op::Gicd(o, s, v)),
        2 => (gicr, size.clone(), value()).prop_map(|(o, s, v)| Op::Gicr(o, s, v)),
        2 => (its, size, value()).prop_map(|(o, s, v)| Op::Gits(o, s, v)),
        2 => (0..4usize, prop_oneof![any::<u16>(), (6..13u16, 0..8u16).prop_map(|(m, o)| key(m, o))], value())
            .prop_map(|(c, r, v)| Op::Icc(c, r, v)),
        1 => (any::<u32>(), any::<bool>()).prop_map(|(i, l)| Op::Spi(i % 128, l)),
        1 => (0..4usize, 0..64u32, any::<bool>()).prop_map(|(c, i, l)| Op::Ppi(c, i, l)),
        2 => (0..4u32, 0..16u32).prop_map(|(d, e)| Op::Msi(d, e)),
        2 => (0..RAM_SIZE / 8, value()).prop_map(|(a, v)| Op::Ram(a * 8, v)),
        6 => command().prop_map(Op::Command),
    ]
}

fn apply(bench: &mut Bench, op: &Op) {
    match *op {
        Op::Gicd(offset, size, value) => {
            bench.gic.gicd_write(offset, size, value);
            bench.gic.gicd_read(offset, size);
        }
        Op::Gicr(offset, size, value) => {
            bench.gic.gicr_write(offset, size, value);
            bench.gic.gicr_read(offset, size);
        }
        Op::Gits(offset, size, value) => {
            bench.gic.gits_write(offset, size, value);
            bench.gic.gits_read(offset, size);
        }
        Op::Icc(cpu, register, value) => {
            bench.gic.icc_write(cpu, register, value);
            bench.gic.icc_read(cpu, register);
        }
        Op::Spi(intid, level) => bench.gic.set_spi(intid, level),
        Op::Ppi(cpu, intid, level) => bench.gic.set_ppi(cpu, intid, level),
        Op::Msi(device_id, event_id) => {
            bench.inbox.post(Message { device_id, event_id });
        }
        Op::Ram(offset, value) => {
            bench.ram.write(RAM + offset, &value.to_le_bytes());
        }
        Op::Command(words) => {
            let at = bench.gic.gits_read(0x88, 8) % QUEUE_SIZE;
            for (n, word) in words.iter().enumerate() {
                bench.ram.write(RAM + at + 8 * n as u64, &word.to_le_bytes());
            }
            bench.gic.gits_write(0x88, 8, (at + 32) % QUEUE_SIZE);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn nothing_panics_and_the_its_comes_to_rest(ops in proptest::collection::vec(op(), 1..150)) {
        let mut bench = Bench::with_its(3);
        for op in &ops {
            apply(&mut bench, op);
            // A queue has at most 256 pages of 128 commands.
            for _ in 0..=256 * 128 {
                if !bench.gic.command_pending() {
                    break;
                }
                bench.gic.step_command();
            }
            prop_assert!(!bench.gic.command_pending());
            bench.gic.step_msi();
        }
    }
}
