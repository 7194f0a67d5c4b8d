//! Nothing that is written to the registers, in memory or to configuration space panics, hangs or grows.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Frame {
        frame: u64,
        at: u64,
        size: u8,
        value: u64,
    },
    Command {
        frame: u64,
        command: u64,
    },
    Testdev {
        at: u64,
        size: u8,
        value: u64,
    },
    Msix {
        at: u64,
        size: u8,
        value: u64,
    },
    Config {
        slot: Slot,
        at: u64,
        size: u8,
        value: u64,
    },
    Read {
        pa: u64,
        size: u8,
    },
    Enable,
    Steps(usize),
    /// An agent that may or may not have anything to do.
    Agent {
        slot: Slot,
        lane: usize,
    },
    Memory {
        at: u64,
        value: u64,
    },
    Smmu {
        at: u64,
        value: u64,
    },
}

/// Values that have a chance to mean something.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..16u64,
        (0..0x4000u64).prop_map(|n| DATA + n),
        (0..64u64).prop_map(|n| u64::MAX - n),
        (0..64u32).prop_map(|n| 1 << n),
        Just(0xffff_ffff),
        Just(GITS_TRANSLATER),
        Just(super::engine::WRITE_BACK),
    ]
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![Just(4), Just(8), Just(1), Just(2), any::<u8>()]
}

fn act() -> impl Strategy<Value = Act> {
    let slot = prop_oneof![Just(TESTDEV), Just(ENGINE)];
    // Two frames, so that they come to have everything set; and any other.
    let frame = prop_oneof![4 => 0..2u64, 1 => 0..1024u64];
    let field = prop_oneof![4 => (0..32u64).prop_map(|n| n * 4), 1 => 0..256u64];
    prop_oneof![
        8 => (frame.clone(), field, size(), value()).prop_map(|(frame, at, size, value)| Act::Frame {
            frame, at, size, value
        }),
        8 => (frame, 2..5u64).prop_map(|(frame, command)| Act::Command { frame, command }),
        4 => (0..0x28u64, size(), value()).prop_map(|(at, size, value)| Act::Testdev { at, size, value }),
        1 => (0..0x1000u64, size(), value()).prop_map(|(at, size, value)| Act::Msix { at, size, value }),
        1 => (slot.clone(), 0..0x1000u64, size(), value())
            .prop_map(|(slot, at, size, value)| Act::Config { slot, at, size, value }),
        2 => (prop_oneof![
            (0..0x1000u64).prop_map(|n| TESTDEV_BAR + n),
            (0..0x2_0000u64).prop_map(|n| FRAMES + n),
            (0..0x1000u64).prop_map(|n| MSIX + n),
        ], size()).prop_map(|(pa, size)| Act::Read { pa, size }),
        1 => Just(Act::Enable),
        4 => (0..60usize).prop_map(Act::Steps),
        1 => (slot, 0..600usize).prop_map(|(slot, lane)| Act::Agent { slot, lane }),
        1 => (0..0x400u64, value()).prop_map(|(n, value)| Act::Memory { at: TABLES + n * 8, value }),
        1 => (0..0x100u64, value()).prop_map(|(n, value)| Act::Smmu { at: n * 4, value }),
    ]
}

fn play(lab: &mut Lab, act: Act) {
    match act {
        Act::Frame { frame, at, size, value } => lab.write(super::engine::frame(frame) + at, size, value),
        Act::Command { frame, command } => {
            // A stride that makes sense with the command, so that more of them run.
            let at = super::engine::frame(frame);
            lab.write(at + 0x38, 8, if command == 3 { 1 } else { 8 });
            lab.write(at, 4, command);
        }
        Act::Testdev { at, size, value } => {
            lab.write(TESTDEV_BAR + at, size, value);
            lab.read(TESTDEV_BAR, 4);
        }
        Act::Msix { at, size, value } => lab.write(MSIX + at, size, value),
        Act::Config { slot, at, size, value } => {
            lab.host.config_write(lab.now, u64::from(slot.0) << 12 | at, size, value);
            lab.host.config_read(lab.now, u64::from(slot.0) << 12 | at, size);
        }
        Act::Read { pa, size } => {
            lab.read(pa, size);
        }
        Act::Enable => lab.enable_any(),
        Act::Steps(n) => {
            for _ in 0..n {
                lab.step();
                while lab.inbox.take().is_some() {}
            }
        }
        Act::Agent { slot, lane } => lab.host.step_agent(slot, lane, lab.now),
        Act::Memory { at, value } => lab.put64(at, &[value]),
        Act::Smmu { at, value } => {
            if lab.smmu.is_some() {
                lab.smmu64(at, value);
            }
        }
    }
}

impl Lab {
    /// As [`Lab::enable`], whatever configuration space is like now.
    fn enable_any(&mut self) {
        self.config32(TESTDEV, 0x10, TESTDEV_BAR as u32);
        self.config32(ENGINE, 0x10, FRAMES as u32);
        self.config32(ENGINE, 0x14, (FRAMES >> 32) as u32);
        for slot in [TESTDEV, ENGINE] {
            self.set_command(slot, COMMAND_MEMORY | COMMAND_MASTER);
        }
    }
}

/// 24 cases, or as many as PROPTEST_CASES asks for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn anything_may_be_written(physical: bool, acts in prop::collection::vec(act(), 1..200)) {
        let mut lab = if physical {
            Lab::physical()
        } else {
            let (lab, mut tables) = Lab::stage1(Config { ssidsize: 20, ..Config::linux() }, ENGINE);
            lab.map(&mut tables, DATA, DATA, 0x3000, RW);
            lab.ste(TESTDEV, [1 | 5 << 1 | CDS, 1 << 44, 0, 0]);
            lab
        };
        for act in acts {
            play(&mut lab, act);
        }
        lab.host.reset(0);
        prop_assert!(!lab.step());
        if !physical {
            prop_assert!(!lab.outstanding());
        }
    }
}
