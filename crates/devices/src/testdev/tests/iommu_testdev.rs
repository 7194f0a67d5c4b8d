//! Registers and result codes of the `iommu-testdev`.

use super::*;

pub(super) const SUCCESS: u64 = 0;
pub(super) const BUSY: u64 = 0xffff_fffe;
pub(super) const IDLE: u64 = 0xffff_ffff;
pub(super) const BAD_LEN: u64 = 0xdead_0001;
pub(super) const TX_FAIL: u64 = 0xdead_0002;
pub(super) const RD_FAIL: u64 = 0xdead_0003;
pub(super) const MISMATCH: u64 = 0xdead_0004;
pub(super) const NOT_ARMED: u64 = 0xdead_0005;
pub(super) const BAD_ATTRS: u64 = 0xdead_0006;
/// Non-secure, and said so.
pub(super) const NS: u64 = 0b1010;

impl Lab {
    pub(super) fn itd(&mut self, register: u64) -> u64 {
        self.read(TESTDEV_BAR + register, 4)
    }

    pub(super) fn set_itd(&mut self, register: u64, value: u64) {
        self.write(TESTDEV_BAR + register, 4, value);
    }

    /// Sets up and arms a request.
    pub(super) fn arm(&mut self, iova: u64, gpa: u64, len: u64, attrs: u64) {
        let values = [
            (0x04, iova & 0xffff_ffff),
            (0x08, iova >> 32),
            (0x1c, gpa & 0xffff_ffff),
            (0x20, gpa >> 32),
            (0x0c, len),
            (0x18, attrs),
            (0x14, 1),
        ];
        values.into_iter().for_each(|(register, value)| self.set_itd(register, value));
        assert_eq!(self.itd(0x10), BUSY);
    }

    /// A request from arming to its result.
    pub(super) fn dma(&mut self, iova: u64, gpa: u64, len: u64, attrs: u64) -> u64 {
        self.arm(iova, gpa, len, attrs);
        assert_eq!(self.itd(0x00), 0);
        self.run();
        self.itd(0x10)
    }
}

#[test]
fn identity_and_reset_values() {
    let mut lab = Lab::physical();
    assert_eq!(lab.config_read(TESTDEV, 0, 4), 0x0005_1b36);
    assert_eq!(lab.config_read(TESTDEV, 8, 4), 0x00ff_0000);
    assert_eq!(lab.config_read(TESTDEV, 0x34, 1), 0, "no capabilities");
    lab.config32(TESTDEV, 0x10, u32::MAX);
    assert_eq!(lab.config_read(TESTDEV, 0x10, 4), 0xffff_f000);
    lab.config32(TESTDEV, 0x10, TESTDEV_BAR as u32);
    let values: Vec<u64> = (0..0x24).step_by(4).map(|at| lab.itd(at)).collect();
    assert_eq!(values, [0, 0, 0, 0, NOT_ARMED, 0, 2, 0, 0], "reading TRIGGERING was the first thing done");
    lab.host.reset(0);
    lab.enable();
    assert_eq!(lab.itd(0x10), IDLE);
}

#[test]
fn a_write_arrives_and_is_verified() {
    let mut lab = Lab::physical();
    assert_eq!(lab.dma(DATA, DATA, 4, NS), SUCCESS);
    assert_eq!(lab.get(DATA, 5), [0x78, 0x56, 0x34, 0x12, 0]);
    // Any length; the pattern goes on across beats.
    assert_eq!(lab.dma(DATA + 0xffe, DATA + 0xffe, 0x2003, 0), SUCCESS);
    let expected: Vec<u8> = [0x78, 0x56, 0x34, 0x12].into_iter().cycle().take(0x2003).collect();
    assert_eq!(lab.get(DATA + 0xffe, 0x2003), expected);
    assert_eq!(lab.get(DATA + 0xffe + 0x2003, 1), [0]);
    assert_eq!(lab.host.functions().find(|f| f.0 == TESTDEV).unwrap().1.port().unwrap().stats().beats, 5);
}

#[test]
fn nothing_happens_inside_a_register_access() {
    let mut lab = Lab::physical();
    lab.arm(DATA, DATA, 4, NS);
    assert!(!lab.step(), "armed is not triggered");
    lab.itd(0x00);
    assert_eq!((lab.itd(0x10), lab.get(DATA, 1)[0]), (BUSY, 0));
    // The values of the moment of the trigger count.
    lab.set_itd(0x04, 0);
    lab.set_itd(0x0c, 0);
    assert!(lab.step() && lab.step());
    assert_eq!((lab.itd(0x10), lab.get(DATA, 1)[0]), (BUSY, 0x78));
    lab.run();
    assert_eq!(lab.itd(0x10), SUCCESS);
    lab.itd(0x00);
    assert_eq!(lab.itd(0x10), NOT_ARMED, "a request is consumed by its trigger");
}

#[test]
fn what_goes_wrong_has_a_code() {
    let mut lab = Lab::physical();
    assert_eq!(lab.dma(DATA, DATA, 0, NS), BAD_LEN);
    // Secure and space disagree; the space counts only if it is said to be valid.
    for (attrs, code) in [
        (0b1011, BAD_ATTRS),
        (0b1000, BAD_ATTRS),
        (0b0011, SUCCESS),
        (0b0000, SUCCESS),
        (0b1001, TX_FAIL),
        (0b1100, TX_FAIL),
        (0b1110, TX_FAIL),
    ] {
        assert_eq!(lab.dma(DATA, DATA, 4, attrs), code, "attributes {attrs:#b}");
    }
    assert_eq!(lab.dma(DATA, DATA + 4, 4, NS), MISMATCH);
    assert_eq!(lab.dma(DATA, RAM + RAM_SIZE - 2, 4, NS), RD_FAIL);
    assert_eq!(lab.dma(DATA, u64::MAX - 1, 4, NS), RD_FAIL);
    assert_eq!(lab.dma(RAM - 4, DATA, 4, NS), TX_FAIL);
    assert_eq!(lab.dma(u64::MAX - 1, DATA, 4, NS), TX_FAIL);
    lab.arm(DATA, DATA, 4, NS);
    lab.set_itd(0x14, 0);
    assert_eq!(lab.itd(0x10), IDLE);
    lab.itd(0x00);
    assert_eq!(lab.itd(0x10), NOT_ARMED);
    lab.set_itd(0x10, 0x1234);
    assert_eq!(lab.itd(0x10), 0x1234, "RESULT can be written");
}

#[test]
fn only_words_are_registers() {
    let mut lab = Lab::physical();
    lab.write(TESTDEV_BAR + 4, 8, u64::MAX);
    lab.write(TESTDEV_BAR + 4, 1, 0xff);
    lab.write(TESTDEV_BAR + 6, 4, 0xffff_ffff);
    assert_eq!((lab.itd(4), lab.itd(8)), (0, 0));
    assert_eq!(lab.read(TESTDEV_BAR + 0x10, 8), 0);
    lab.set_itd(4, 0x89ab_cdef);
    lab.set_itd(8, 0x0123_4567);
    assert_eq!((lab.itd(4), lab.itd(8)), (0x89ab_cdef, 0x0123_4567));
}

#[test]
fn no_transaction_outlives_bus_mastering_disarming_or_a_reset() {
    for (stop, how) in (0..9).flat_map(|stop| (0..3).map(move |how| (stop, how))) {
        let (mut lab, mut tables) = Lab::stage1(Config::linux(), TESTDEV);
        lab.map(&mut tables, 0x1000, DATA, 0x1000, RW);
        lab.arm(0x1000, DATA, 4, NS);
        lab.itd(0x00);
        for _ in 0..stop {
            lab.step();
        }
        let running = lab.itd(0x10) == BUSY;
        match how {
            0 => {
                lab.set_command(TESTDEV, COMMAND_MEMORY);
                assert_eq!(lab.itd(0x10), if running { TX_FAIL } else { SUCCESS });
            }
            1 => {
                lab.set_itd(0x14, 0);
                assert_eq!(lab.itd(0x10), IDLE);
            }
            _ => lab.host.reset(lab.now),
        }
        assert!(!lab.outstanding(), "stopped at {stop} by {how}");
        assert!(!lab.step());
    }
    let mut lab = Lab::physical();
    lab.set_command(TESTDEV, COMMAND_MEMORY);
    assert_eq!(lab.dma(DATA, DATA, 4, NS), TX_FAIL);
}
