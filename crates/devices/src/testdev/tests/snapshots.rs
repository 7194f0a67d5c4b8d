//! What stops, resets, saves and restores the devices at every step.

use super::engine::*;
use super::iommu_testdev::{BUSY, NS, SUCCESS};
use super::*;

const VA: u64 = 0x12_3456_7000;

/// Both devices at work: a write, and two frames of which one has a substream, and messages.
fn at_work() -> Lab {
    let lab = Lab::translated(Config { ssidsize: 20, ..Config::linux() });
    for n in 0..2 {
        let mut tables = lab.context(n);
        lab.map(&mut tables, VA, DATA + n * 0x4000, 0x3000, RW);
        let doorbell = GITS_TRANSLATER & !0xfff;
        lab.map(&mut tables, doorbell, doorbell, 0x1000, RW);
    }
    for slot in [TESTDEV, ENGINE] {
        lab.ste(slot, [1 | 5 << 1 | CDS | 1 << 59, 2 | 1 << 44, 0, 0]);
    }
    let mut lab = lab;
    lab.put(DATA, &bytes(0x100));
    lab.prepare(0, Order { target: VA + 0x1ff0, vector: Some(0), ..Order::new(VA, 0x100) });
    lab.prepare(7, Order { ssid: 1, vector: Some(7), seed: 3, ..Order::new(VA + 0x1000, 0x80) });
    lab.arm(VA + 0x2800, DATA + 0x2800, 16, NS);
    lab.launch(0, MEMCPY);
    lab.launch(7, RAND48);
    lab.itd(0);
    lab
}

/// All memory that the jobs write, the messages, and the states.
fn outcome(lab: &mut Lab) -> (Vec<u8>, Vec<u32>, [u64; 3]) {
    let memory = lab.get(DATA, 0x8000);
    let states = [lab.cmd(0), lab.cmd(7), lab.itd(0x10)];
    (memory, lab.interrupts(), states)
}

#[test]
fn a_restored_machine_has_the_same_future() {
    let mut reference = at_work();
    let steps = reference.run();
    let expected = outcome(&mut reference);
    assert_eq!(expected.2, [HALTED, HALTED, SUCCESS]);
    assert_eq!(expected.1.len(), 2);
    for stop in 0..steps {
        let mut lab = at_work();
        (0..stop).for_each(|_| assert!(lab.step()));
        let state = serde_json::to_string(&lab.host.save()).unwrap();
        let smmu = serde_json::to_string(&*lab.smmu()).unwrap();
        // Another machine, with the same memory.
        let mut other = Lab::with(Some(Config { ssidsize: 20, ..Config::linux() }));
        for at in (RAM..DATA + 0x8000).step_by(0x1_0000) {
            other.put(at, &lab.get(at, 0x1_0000));
        }
        *other.smmu.as_ref().unwrap().lock().unwrap() = serde_json::from_str(&smmu).unwrap();
        other.inbox.restore(&lab.inbox.save());
        other.host.restore(serde_json::from_str(&state).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&other.host.save()).unwrap(), state);
        other.now = lab.now;
        assert_eq!(other.run(), steps - stop);
        assert_eq!(outcome(&mut other), expected, "stopped at {stop}");
    }
}

#[test]
fn states_of_other_devices_are_refused() {
    let lab = Lab::physical();
    let mut states: Vec<_> = lab.host.functions().map(|(slot, f)| (slot, f.save())).collect();
    let (engine, testdev) = (states.pop().unwrap().1, states.pop().unwrap().1);
    let fabric = lab.host.fabric();
    let mut an_engine = Engine::new(fabric.port(0x20), 1, Timing::default());
    let mut a_testdev = IommuTestdev::new(fabric.port(0x28), fabric.inspector(), Timing::default());
    use crate::pci::PciFunction;
    assert!(an_engine.restore(testdev.clone()).is_err());
    assert!(a_testdev.restore(engine.clone()).is_err());
    assert!(an_engine.restore(engine.clone()).is_ok());
    assert!(a_testdev.restore(testdev).is_ok());
    let mut larger = Engine::new(fabric.port(0x30), 2, Timing::default());
    assert!(larger.restore(engine).is_err());
}

#[test]
fn no_transaction_outlives_a_reset_or_bus_mastering() {
    let steps = at_work().run();
    for (stop, how) in (0..steps).flat_map(|stop| (0..3).map(move |how| (stop, how))) {
        let mut lab = at_work();
        (0..stop).for_each(|_| assert!(lab.step()));
        match how {
            0 => {
                lab.set_command(ENGINE, COMMAND_MEMORY);
                lab.set_command(TESTDEV, COMMAND_MEMORY);
            }
            1 => lab.host.reset(0),
            _ => {
                // Function-level reset of the engine, power-off of the other's bus mastering.
                let express = lab.capability(ENGINE, 0x10);
                lab.config32(ENGINE, express + 8, 0x8000);
                lab.set_command(TESTDEV, 0);
            }
        }
        assert!(!lab.step(), "stopped at {stop} by {how}");
        assert!(!lab.outstanding(), "stopped at {stop} by {how}");
    }
}

#[test]
fn frames_wait_for_bus_mastering() {
    let mut reference = at_work();
    let steps = reference.run();
    let expected = outcome(&mut reference);
    for stop in 0..steps {
        let mut lab = at_work();
        (0..stop).for_each(|_| assert!(lab.step()));
        lab.set_command(ENGINE, COMMAND_MEMORY);
        lab.run();
        lab.set_command(ENGINE, COMMAND_MEMORY | COMMAND_MASTER);
        lab.run();
        let (memory, mut messages, states) = outcome(&mut lab);
        messages.sort_unstable();
        assert_eq!((memory, messages), (expected.0.clone(), vec![0x100, 0x107]), "stopped at {stop}");
        assert_eq!(states, expected.2);
    }
}

#[test]
fn a_reset_forgets_everything() {
    let mut lab = at_work();
    (0..10).for_each(|_| assert!(lab.step()));
    assert_eq!(lab.itd(0x10), BUSY);
    lab.host.reset(0);
    let fresh = Lab::with(Some(Config::linux()));
    let states = |lab: &Lab| {
        let mut state = serde_json::to_value(lab.host.save()).unwrap();
        // Counters are not reset.
        for function in state["functions"].as_array_mut().unwrap() {
            for (_, inner) in function[1].as_object_mut().unwrap() {
                inner.as_object_mut().unwrap().remove("stats");
            }
        }
        state
    };
    let mut fresh = fresh;
    fresh.host.reset(0);
    assert_eq!(states(&lab), states(&fresh));
}
