//! SGIs, PPIs and SPIs: states, priorities, routing.

use super::*;

#[test]
fn nothing_is_delivered_out_of_reset() {
    let mut bench = Bench::reset(1);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    assert_eq!(bench.gic.irq(0), (false, false));
    assert_eq!(bench.ack(0), SPURIOUS);
    assert_eq!(bench.gic.gicr_read(0x14, 4), 6, "asleep");
}

#[test]
fn a_level_interrupt_comes_back_while_its_line_is_high() {
    let mut bench = Bench::new(1);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    assert!(bench.irq(0));
    assert_eq!(bench.ack(0), 40);
    assert!(!bench.irq(0), "active and pending is not signalled");
    assert_eq!(bench.gic.gicd_read(0x204, 4), 1 << 8, "still pending");
    assert_eq!(bench.gic.gicd_read(0x304, 4), 1 << 8, "and active");
    bench.eoi(0, 40);
    assert_eq!(bench.ack(0), 40);
    bench.gic.set_spi(40, false);
    bench.eoi(0, 40);
    assert!(!bench.irq(0));
    assert_eq!(bench.ack(0), SPURIOUS);
}

#[test]
fn an_edge_that_comes_while_active_is_not_lost() {
    let mut bench = Bench::new(1);
    bench.gic.gicd_write(0xc08, 4, 2 << 16);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    bench.gic.set_spi(40, false);
    assert_eq!(bench.ack(0), 40);
    bench.gic.set_spi(40, true);
    assert!(!bench.irq(0));
    bench.eoi(0, 40);
    assert_eq!(bench.ack(0), 40);
    bench.eoi(0, 40);
    assert_eq!(bench.ack(0), SPURIOUS, "a high line is no edge");
}

#[test]
fn higher_priority_preempts_and_the_running_priority_comes_back() {
    let mut bench = Bench::new(1);
    for (intid, priority) in [(40, 0xa0), (41, 0x80), (42, 0xa0)] {
        bench.enable(0, intid);
        bench.priority(0, intid, priority);
    }
    bench.pend(0, 40);
    assert_eq!(bench.ack(0), 40);
    assert_eq!(bench.read(0, RPR), 0xa0);
    bench.pend(0, 42);
    assert!(!bench.irq(0), "same priority does not preempt");
    assert_eq!(bench.read(0, HPPIR[1]), 42, "but is the highest pending");
    bench.pend(0, 41);
    assert!(bench.irq(0));
    assert_eq!(bench.ack(0), 41);
    assert_eq!(bench.read(0, RPR), 0x80);
    assert_eq!(bench.read(0, APR[1]), 1 << 16 | 1 << 20);
    bench.eoi(0, 41);
    assert_eq!(bench.read(0, RPR), 0xa0);
    bench.eoi(0, 40);
    assert_eq!(bench.read(0, RPR), 0xff);
    assert_eq!(bench.ack(0), 42);
}

#[test]
fn the_priority_mask_holds_back_its_own_level() {
    let mut bench = Bench::new(1);
    bench.enable(0, 40);
    bench.pend(0, 40);
    bench.write(0, PMR, 0xa0);
    assert!(!bench.irq(0));
    assert_eq!((bench.ack(0), bench.read(0, HPPIR[1])), (SPURIOUS, 40));
    bench.write(0, PMR, 0xaf);
    assert_eq!(bench.read(0, PMR), 0xa8, "five bits");
    assert!(bench.irq(0));
}

#[test]
fn eoi_mode_splits_drop_and_deactivation() {
    let mut bench = Bench::new(1);
    bench.write(0, CTLR, 2);
    bench.enable(0, 40);
    bench.enable(0, 41);
    bench.gic.set_spi(40, true);
    assert_eq!(bench.ack(0), 40);
    bench.eoi(0, 40);
    assert_eq!(bench.read(0, RPR), 0xff, "dropped");
    assert!(!bench.irq(0), "not deactivated");
    bench.pend(0, 41);
    assert_eq!(bench.ack(0), 41);
    bench.eoi(0, 41);
    bench.write(0, DIR, 40);
    assert_eq!(bench.ack(0), 40);
    assert_eq!(bench.gic.gicd_read(0x304, 4), 3 << 8);
}

#[test]
fn dir_without_eoi_mode_does_nothing() {
    let mut bench = Bench::new(1);
    bench.enable(0, 40);
    bench.pend(0, 40);
    bench.ack(0);
    bench.write(0, DIR, 40);
    assert_eq!(bench.gic.gicd_read(0x304, 4), 1 << 8);
}

#[test]
fn groups_have_their_own_lines_and_registers() {
    let mut bench = Bench::new(1);
    bench.gic.gicd_write(0x84, 4, !(1 << 8) & 0xffff_ffff);
    bench.enable(0, 40);
    bench.enable(0, 41);
    bench.pend(0, 40);
    assert_eq!(bench.gic.irq(0), (false, true), "Group 0 is FIQ");
    assert_eq!((bench.ack(0), bench.read(0, HPPIR[1])), (SPURIOUS, SPURIOUS));
    assert_eq!(bench.read(0, HPPIR[0]), 40);
    assert_eq!(bench.read(0, IAR[0]), 40);
    bench.eoi(0, 40);
    assert_eq!(bench.read(0, RPR), 0xa0, "the wrong group's EOI is ignored");
    bench.write(0, EOIR[0], 40);
    bench.pend(0, 40);
    bench.pend(0, 41);
    bench.write(0, IGRPEN[0], 0);
    assert_eq!(bench.gic.irq(0), (true, false), "a closed group does not hide the other");
    bench.gic.gicd_write(0, 4, 1);
    assert_eq!(bench.gic.irq(0), (false, false));
}

#[test]
fn sgis_reach_those_that_are_named() {
    let mut bench = Bench::new(4);
    for cpu in 0..4 {
        bench.enable(cpu, 5);
    }
    bench.write(1, SGIR[1], 5 << 24 | 0b1101);
    assert_eq!([0, 1, 2, 3].map(|cpu| bench.irq(cpu)), [true, false, true, true]);
    for cpu in [0, 2, 3] {
        assert_eq!(bench.ack(cpu), 5);
        bench.eoi(cpu, 5);
    }
    bench.write(1, SGIR[1], 5 << 24 | 1 << 40);
    assert_eq!([0, 1, 2, 3].map(|cpu| bench.irq(cpu)), [true, false, true, true], "all but self");
    bench.write(2, SGIR[1], 5 << 24 | 1 << 16 | 2);
    bench.write(2, SGIR[1], 5 << 24 | 1 << 44 | 2);
    bench.write(2, SGIR[0], 5 << 24 | 2);
    bench.write(2, ASGI1R, 5 << 24 | 2);
    assert!(!bench.irq(1), "another cluster, another range, another group");
}

#[test]
fn ppis_are_private() {
    let mut bench = Bench::new(2);
    bench.enable(0, 27);
    bench.enable(1, 27);
    bench.gic.set_ppi(1, 27, true);
    assert_eq!((bench.irq(0), bench.irq(1)), (false, true));
    assert_eq!(bench.ack(1), 27);
    bench.gic.set_ppi(1, 27, false);
    bench.eoi(1, 27);
    assert!(!bench.irq(1));
    bench.gic.set_ppi(7, 27, true);
    bench.gic.set_ppi(0, 5, true);
    bench.gic.set_ppi(0, 32, true);
    assert!(!bench.irq(0));
}

#[test]
fn spis_follow_their_route() {
    let mut bench = Bench::new(2);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    assert_eq!((bench.irq(0), bench.irq(1)), (true, false));
    bench.route(40, 1);
    assert_eq!((bench.irq(0), bench.irq(1)), (false, true));
    bench.route(40, 0x100);
    assert_eq!((bench.irq(0), bench.irq(1)), (false, false), "nobody there");
    bench.route(40, 1 << 31);
    assert_eq!((bench.irq(0), bench.irq(1)), (true, false), "any: the first");
    bench.write(0, IGRPEN[1], 0);
    assert_eq!((bench.irq(0), bench.irq(1)), (false, true), "who does not participate is passed over");
    bench.gic.gicr_write(0x2_0000, 4, 1 << 25);
    assert!(!bench.irq(1), "DPG1NS");
    bench.write(0, IGRPEN[1], 1);
    bench.gic.gicr_write(0x14, 4, 2);
    bench.gic.gicr_write(0x2_0000, 4, 0);
    assert_eq!((bench.irq(0), bench.irq(1)), (false, true), "asleep");
}

#[test]
fn another_pe_may_deactivate() {
    let mut bench = Bench::new(2);
    bench.write(1, CTLR, 2);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    assert_eq!(bench.ack(0), 40);
    bench.write(1, DIR, 40);
    bench.write(0, CTLR, 2);
    bench.eoi(0, 40);
    assert!(bench.irq(0));
}

#[test]
fn identification_is_that_of_the_virt_machine() {
    let mut bench = Bench::reset(2);
    assert_eq!(bench.read(0, CTLR), 0x8400);
    assert_eq!(bench.read(0, SRE), 7);
    assert_eq!(bench.gic.gicr_read(8, 8), 0x21);
    assert_eq!(bench.gic.gicr_read(0x2_0008, 8), 1 << 32 | 1 << 8 | 0x31, "affinity, number, Last");
    assert_eq!(bench.gic.gicr_read(0x2_000c, 4), 1);
    assert_eq!(bench.gic.gicr_read(0xffe8, 4), 0x3b);
    assert_eq!(bench.gic.gicr_read(0x1_0c00, 4), 0xaaaa_aaaa, "SGIs are edge-triggered");
    assert_eq!(bench.gic.gicr_read(0x4_0008, 8), 0, "no third PE");
    assert_eq!(bench.gic.icc_read(0, EOIR[1]), None);
    assert_eq!(bench.gic.icc_write(0, IAR[1], 0), None);
    assert_eq!(bench.gic.icc_read(0, key(8, 5)), None, "AP0R1 needs six priority bits");
    assert_eq!(bench.gic.icc_read(9, SRE), None);
}

#[test]
fn a_saved_state_has_the_same_future() {
    let mut bench = Bench::new(2);
    bench.enable(0, 40);
    bench.gic.set_spi(40, true);
    bench.ack(0);
    assert!(bench.inbox.post(Message { device_id: 1, event_id: 2 }));
    let saved = serde_json::to_string(&bench.gic.save()).unwrap();
    let mut other = Bench::reset(2);
    other.gic.restore(serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(other.gic.save(), bench.gic.save());
    other.eoi(0, 40);
    assert_eq!(other.ack(0), 40);
    assert!(Bench::reset(3).gic.restore(bench.gic.save()).is_err());
}
