//! Software that programs nonsense.

use super::*;

#[test]
fn two_ports_that_claim_the_same_bus_and_addresses() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.host.plug_cold(OTHER, engine);
    b.set_up((0, 4, 0), 5);
    b.set_up_engine((5, 0, 0));
    // The lower port has both.
    let ids: Vec<u32> = b
        .host
        .functions()
        .filter(|(s, _)| s.root_port().is_some())
        .map(|(_, f)| f.port().unwrap().requester().sid)
        .collect();
    assert_eq!(ids, [0x500, 0]);
    b.launch(RAM, 64);
    b.run();
    assert_eq!(b.state(), 1);
}

#[test]
fn bus_numbers_and_windows_of_any_kind() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..20_000u64 {
        let bus = [0, 0, 5, next(256)][next(4) as usize];
        let device = [3, 4, 0, next(32)][next(4) as usize];
        let at = [0x18, 0x1a, 0x20, 0x24, 0x28, 0x2c, 4, 0x3e, next(0x200), next(0x1000)][next(10) as usize];
        let size = [1, 2, 4, 8][next(4) as usize];
        let value = [0, u64::MAX, next(1 << 32), 0x46][next(4) as usize];
        b.write((bus, device, next(8)), at, size, value);
        b.read((bus, device, 0), at, size);
        let pa = [MEM, PREF, next(1 << 40), u64::MAX - next(8)][next(4) as usize];
        b.host.mmio_write(b.now, pa, size, value);
        b.host.mmio_read(b.now, pa, size);
        match next(40) {
            0 => drop(b.host.plug(b.now, PORT, engine)),
            1 => drop(b.host.unplug(b.now, PORT, round % 2 == 0)),
            2 => b.host.reset(b.now),
            _ => {}
        }
        for _ in 0..4 {
            if let Some(at) = b.host.next_step() {
                b.now = b.now.max(at);
                b.host.step(b.now);
            }
        }
        while b.inbox.take().is_some() {}
    }
    let state = b.host.save();
    assert!(serde_json::to_vec(&state).unwrap().len() < 1 << 20);
}

#[test]
fn a_bus_of_number_0_is_in_front_of_the_port() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.write(PORT_FUNCTION, 0x18, 4, 0);
    assert_eq!(b.read((0, 0, 0), 0, 4), 0x0008_1b36, "the host bridge");
}
