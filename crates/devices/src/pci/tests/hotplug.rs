//! Devices come and go.

use super::*;

const ENGINE: Function = (5, 0, 0);
const MSI: (u32, u32) = (0x18, 0x77);

#[test]
fn an_empty_root_port_is_a_bridge_with_a_hot_plug_slot() {
    let mut b = Bench::new();
    assert_eq!(b.read(PORT_FUNCTION, 0, 4), 0x000c_1b36);
    assert_eq!(b.read(PORT_FUNCTION, 8, 4) >> 8, 0x06_0400);
    assert_eq!(b.read(PORT_FUNCTION, 0x0e, 1), 1, "header type");
    assert_eq!(b.read(PORT_FUNCTION, 0x1c, 2), 0, "no I/O window");
    let express = b.capability(PORT_FUNCTION, 0x10);
    assert_eq!(b.read(PORT_FUNCTION, express + 2, 2), 0x0142, "root port with a slot");
    assert_eq!(b.read(PORT_FUNCTION, express + 0x14, 4), 1 << 19 | 0x4007b, "slot 1");
    assert_eq!((b.express(SLOT_STATUS), b.express(LINK_STATUS)), (0, 0));
    assert_eq!(b.express(SLOT_CONTROL) & POWER_OFF, POWER_OFF);
    assert_eq!(b.read(PORT_FUNCTION, 0x100, 4), 0x1_000d, "ACS");
    b.write(PORT_FUNCTION, 0x104, 4, 0xffff_ffff);
    assert_eq!(b.read(PORT_FUNCTION, 0x104, 4), 0, "which nobody can switch off");
    for device in 0..32 {
        assert_eq!(b.read((5, device, 0), 0, 4), 0xffff_ffff);
    }
}

#[test]
fn a_device_comes_gets_power_and_works() {
    let mut b = Bench::new();
    b.set_express(SLOT_CONTROL, ENABLE | POWER_OFF);
    assert!(b.host.plug(b.now, PORT, engine));
    assert!(!b.host.plug(b.now, PORT, engine), "one at a time");
    assert_eq!(b.messages(), [MSI]);
    assert_eq!(b.express(SLOT_STATUS), 1 << 6 | 1 << 3 | 1, "presence, and the button");
    assert_eq!(b.read(ENGINE, 0, 4), 0xffff_ffff, "no power");
    b.set_express(SLOT_STATUS, 1 << 3 | 1);
    assert_eq!(b.express(SLOT_STATUS), 1 << 6);
    let before = b.now;
    b.set_express(SLOT_CONTROL, ENABLE);
    assert_eq!(b.express(LINK_STATUS), 0, "training takes time");
    assert_eq!(b.messages(), [MSI]);
    assert!(b.now >= before + 1_000_000);
    assert_eq!((b.express(SLOT_STATUS), b.express(LINK_STATUS)), (1 << 6 | 1 << 8, 0x2011));
    assert_eq!(b.read(ENGINE, 0, 4), 0xff80_13b5);
    assert_eq!(b.read((5, 1, 0), 0, 4), 0xffff_ffff, "a link has one device");
    let express = b.capability(ENGINE, 0x10);
    assert_eq!(b.read(ENGINE, express + 2, 2), 2, "an endpoint, not integrated");
    assert_eq!(b.read(ENGINE, express + 0x12, 2), 0x11);

    b.set_up_engine(ENGINE);
    b.launch(RAM, 64);
    b.run();
    assert_eq!(b.state(), 1);
    let mut data = [0; 64];
    b.ram.read(RAM, &mut data);
    assert_ne!(data, [0; 64]);
}

#[test]
fn requests_carry_the_bus_number_of_the_last_configuration_write() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    let sid = |b: &Bench| {
        let (_, function) = b.host.functions().find(|(slot, _)| slot.root_port() == Some(PORT)).unwrap();
        function.port().unwrap().requester().sid
    };
    b.write(ENGINE, 4, 2, 6);
    assert_eq!(sid(&b), 0x500);
    b.write(PORT_FUNCTION, 0x19, 1, 9);
    assert_eq!(sid(&b), 0x500, "until it is told");
    b.write((9, 0, 0), 4, 2, 6);
    assert_eq!(sid(&b), 0x900);
    assert_eq!(b.read(ENGINE, 0, 4), 0xffff_ffff);
}

#[test]
fn the_windows_and_bus_mastering_of_the_port_rule_what_gets_through() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.set_up_engine(ENGINE);
    assert_eq!(b.state(), 1);
    b.write(PORT_FUNCTION, 4, 2, 4);
    assert_eq!(b.state(), 0xffff_ffff, "memory space of the port is off");
    b.write(PORT_FUNCTION, 4, 2, 6);
    b.write(PORT_FUNCTION, 0x26, 2, 0xfff0);
    b.write(PORT_FUNCTION, 0x24, 2, 0x0020);
    assert_eq!(b.state(), 0xffff_ffff, "outside the window");
    // From its second megabyte on only: MSI-X is there, the frames are not.
    b.write(PORT_FUNCTION, 0x24, 2, 0x0010);
    assert_eq!(b.host.mmio_read(0, PREF + 0x10_000c, 4), 1);
    assert_eq!(b.state(), 0xffff_ffff);
    b.write(PORT_FUNCTION, 0x24, 2, 0);

    b.write(PORT_FUNCTION, 4, 2, 2);
    b.launch(RAM, 0x1000);
    b.run();
    assert_eq!(b.state(), 3, "the port forwards nothing: it waits");
    b.write(PORT_FUNCTION, 4, 2, 6);
    b.run();
    assert_eq!(b.state(), 1);
}

#[test]
fn an_orderly_removal_is_the_softwares() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.set_express(SLOT_CONTROL, ENABLE);
    assert!(b.host.unplug(b.now, PORT, false));
    assert_eq!(b.messages(), [MSI]);
    assert_eq!(b.express(SLOT_STATUS), 1 << 6 | 1);
    assert_eq!(b.read(ENGINE, 0, 2), 0x13b5, "it is still there");
    b.set_express(SLOT_STATUS, 1);
    b.set_express(SLOT_CONTROL, ENABLE | POWER_OFF);
    assert_eq!(b.messages(), [MSI]);
    assert_eq!((b.express(SLOT_STATUS), b.host.occupied(PORT)), (1 << 3 | 1 << 8, false));
    assert_eq!(b.read(ENGINE, 0, 2), 0xffff);
    assert!(!b.host.unplug(b.now, PORT, false), "nobody is there");
    // And another one comes.
    b.set_express(SLOT_STATUS, 0xffff);
    assert!(b.host.plug(b.now, PORT, engine));
    b.enable_slot();
    assert_eq!(b.read(ENGINE, 0, 2), 0x13b5);
}

#[test]
fn a_surprise_removal_stops_dma_between_two_beats() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.set_express(SLOT_CONTROL, ENABLE);
    b.set_up_engine(ENGINE);
    b.launch(RAM, 0x8000);
    let port =
        b.host.functions().find(|(slot, _)| slot.root_port().is_some()).unwrap().1.port().unwrap().clone();
    while port.stats().beats < 3 {
        let at = b.host.next_step().unwrap();
        b.host.step(at);
        b.now = at;
    }
    assert!(b.host.unplug(b.now, PORT, true));
    assert!(!port.enabled());
    assert_eq!(b.state(), 0xffff_ffff);
    assert_eq!(b.messages(), [MSI]);
    assert_eq!(port.stats().beats, 3);
    port.set_enabled(true);
    assert!(!port.enabled(), "not even by a handle that somebody kept");
}

#[test]
fn power_and_bus_reset_take_the_devices_state() {
    for reset in ["power", "bus", "link"] {
        let mut b = Bench::new();
        b.host.plug_cold(PORT, engine);
        b.set_express(SLOT_CONTROL, ENABLE);
        b.set_up_engine(ENGINE);
        b.launch(RAM, 0x1000);
        match reset {
            "power" => b.set_express(SLOT_CONTROL, ENABLE | POWER_OFF),
            "bus" => b.write(PORT_FUNCTION, 0x3e, 2, 1 << 6),
            _ => b.set_express(LINK_CONTROL, 1 << 4),
        }
        assert_eq!((b.read(ENGINE, 0, 2), b.express(LINK_STATUS)), (0xffff, 0), "{reset}");
        match reset {
            "power" => b.set_express(SLOT_CONTROL, ENABLE),
            "bus" => b.write(PORT_FUNCTION, 0x3e, 2, 0),
            _ => b.set_express(LINK_CONTROL, 0),
        }
        b.run();
        assert_eq!((b.read(ENGINE, 0, 2), b.read(ENGINE, 4, 2)), (0x13b5, 0), "{reset}");
        b.set_up_engine(ENGINE);
        assert_eq!(b.state(), 1, "{reset}: the command is gone");
    }
}

#[test]
fn a_saved_machine_with_a_plugged_device_goes_on_elsewhere() {
    let mut b = Bench::new();
    b.host.plug_cold(PORT, engine);
    b.set_up_engine(ENGINE);
    b.launch(RAM, 0x1000);
    (0..5).for_each(|_| {
        b.now = b.host.next_step().unwrap();
        b.host.step(b.now);
    });
    let saved = serde_json::to_vec(&b.host.save()).unwrap();
    let state: PciHostState = serde_json::from_slice(&saved).unwrap();
    assert!(state.occupied(Slot::behind(PORT)) && !state.occupied(Slot::behind(OTHER)));
    let mut other = Bench::new();
    other.host.plug_cold(PORT, engine);
    other.host.restore(state).unwrap();
    other.now = b.now;
    assert_eq!(serde_json::to_vec(&other.host.save()).unwrap(), saved);
    other.run();
    b.run();
    assert_eq!((other.state(), other.now), (1, b.now));
    assert_eq!(other.host.save(), b.host.save());
    // A host where nobody is plugged is another machine.
    assert!(Bench::new().host.restore(b.host.save()).is_err());
}
