//! Which invalidation removes which cached translation: the architecture's demands, said once more and apart from the
//! model's caches (sections 4.4 and 3.17).

use super::tables::Entry;
use crate::cache::World;
use crate::config::Config;
use crate::spec::command::{Command, Opcode};

/// Whether a command removes an entry, or why not although it is one of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// It does.
    Whole,
    /// It has nothing to do with it.
    Other,
    /// It is about this entry, but does not reach it.
    Short(Gap),
}

/// What keeps a command from reaching an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    Asid,
    Vmid,
    Address,
    Leaf,
    Level,
    Granule,
    Global,
    Stage,
}

impl Gap {
    pub(super) fn why(self) -> &'static str {
        match self {
            Gap::Asid => "names another ASID",
            Gap::Vmid => "names another VMID",
            Gap::Address => "does not reach this address",
            Gap::Leaf => "has Leaf=1, which leaves tables cached",
            Gap::Level => "has a TTL of another level",
            Gap::Granule => "names another granule (TG)",
            Gap::Global => "goes by ASID, which leaves global translations cached",
            Gap::Stage => "is for the other stage of translation",
        }
    }
}

/// What a TLBI says about addresses.
struct Range {
    first: u64,
    last: u64,
    /// TG and TTL of a range command.
    granule: Option<u8>,
    level: Option<i8>,
}

fn range(command: &Command, config: &Config, address: u64) -> Range {
    let tg = if config.ril { command.tg() } else { 0 };
    if tg == 0 {
        return Range { first: address, last: address | 0xfff, granule: None, level: None };
    }
    let bits = [12, 14, 16][usize::from(tg) - 1];
    let bytes = u128::from(command.num() + 1) << command.scale() << bits;
    let first = address >> bits << bits;
    let last = u64::try_from(u128::from(first) + bytes - 1).unwrap_or(u64::MAX);
    let level = match (command.ttl(), tg) {
        (0, _) | (1, 2) => None,
        (level, _) => Some(level as i8),
    };
    Range { first, last, granule: Some(bits), level }
}

/// Whether `command`, a TLBI, removes `entry`. `e2h` is CR2.E2H.
pub(super) fn covers(command: &Command, entry: &Entry, config: &Config, e2h: bool) -> Coverage {
    use Coverage::{Other, Short, Whole};
    let Some(opcode) = command.opcode() else { return Other };
    let world = entry.regime.world;
    let (stage1, stage2) = (world == World::NsEl1, world == World::NsEl1Stage2);
    let el2 = matches!(world, World::El2 | World::El2E2h);
    let vmid = match (config.s2p, config.vmid16) {
        (false, _) => 0,
        (true, false) => command.vmid() & 0xff,
        (true, true) => command.vmid(),
    };
    let same_vmid = vmid == entry.regime.vmid;
    let asid = if config.asid16 { command.asid() } else { command.asid() & 0xff };
    let same_asid = asid == entry.regime.asid;
    let by_asid = |vmid: bool| match (vmid, same_asid, entry.global) {
        (false, ..) => Short(Gap::Vmid),
        (true, false, _) => Short(Gap::Asid),
        (true, true, true) => Short(Gap::Global),
        (true, true, false) => Whole,
    };
    let by_address = |vmid: bool, asid: bool, address: u64| {
        let r = range(command, config, address);
        let last = entry.first | ((1u64 << entry.shift) - 1);
        if !vmid {
            Short(Gap::Vmid)
        } else if !asid && !entry.global {
            Short(Gap::Asid)
        } else if r.last < entry.first || last < r.first {
            Short(Gap::Address)
        } else if command.leaf() && !entry.leaf {
            Short(Gap::Leaf)
        } else if r.granule.is_some_and(|bits| bits != entry.granule.bits()) {
            Short(Gap::Granule)
        } else if entry.leaf && r.level.is_some_and(|level| level != entry.level) {
            Short(Gap::Level)
        } else {
            Whole
        }
    };
    let va = ((command.address() << 8) as i64 >> 8) as u64;
    match opcode {
        Opcode::TlbiNsnhAll if stage1 || stage2 => Whole,
        Opcode::TlbiS12Vmall if stage1 || stage2 => {
            if same_vmid {
                Whole
            } else {
                Short(Gap::Vmid)
            }
        }
        Opcode::TlbiNhAll if stage1 => {
            if same_vmid {
                Whole
            } else {
                Short(Gap::Vmid)
            }
        }
        Opcode::TlbiNhAsid if stage1 => by_asid(same_vmid),
        Opcode::TlbiNhVa if stage1 => by_address(same_vmid, same_asid, va),
        Opcode::TlbiNhVaa if stage1 => by_address(same_vmid, true, va),
        Opcode::TlbiS2Ipa if stage2 => by_address(same_vmid, true, command.ipa()),
        Opcode::TlbiS2Ipa if stage1 => Short(Gap::Stage),
        Opcode::TlbiNhAll | Opcode::TlbiNhAsid | Opcode::TlbiNhVa | Opcode::TlbiNhVaa if stage2 => {
            Short(Gap::Stage)
        }
        Opcode::TlbiEl2All if el2 => Whole,
        Opcode::TlbiEl2Asid if world == World::El2E2h => by_asid(true),
        Opcode::TlbiEl2Va if el2 && e2h == (world == World::El2E2h) => {
            by_address(true, same_asid || !e2h, va)
        }
        Opcode::TlbiEl2Vaa if el2 && e2h == (world == World::El2E2h) => by_address(true, true, va),
        _ => Other,
    }
}

/// The command that removes an entry and little else, as a person would write it.
pub(super) fn wanted(entry: &Entry, config: &Config) -> String {
    let leaf = if entry.leaf { "Leaf=0 or 1" } else { "Leaf=0" };
    let (regime, address) = (entry.regime, entry.first);
    let vmid = if config.s2p { format!("VMID={}, ", regime.vmid) } else { String::new() };
    match regime.world {
        World::NsEl1 => {
            format!("CMD_TLBI_NH_VA({vmid}ASID={}, Address={address:#x}, {leaf})", regime.asid)
        }
        World::NsEl1Stage2 => format!("CMD_TLBI_S2_IPA({vmid}Address={address:#x}, {leaf})"),
        World::El2 => format!("CMD_TLBI_EL2_VA(Address={address:#x}, {leaf})"),
        World::El2E2h => format!("CMD_TLBI_EL2_VA(ASID={}, Address={address:#x}, {leaf})", regime.asid),
    }
}

/// A command with its operands, as reports show it.
pub(super) fn describe(command: &Command, config: &Config) -> String {
    let Some(opcode) = command.opcode() else {
        return format!("command {:#018x} {:#018x}", command.0[0], command.0[1]);
    };
    let name = name_of(opcode);
    let ids = |asid: bool| {
        let mut ids = String::new();
        if config.s2p {
            ids += &format!("VMID={}, ", command.vmid());
        }
        if asid {
            ids += &format!("ASID={}, ", command.asid());
        }
        ids
    };
    let by_address = |ids: String, address: u64| {
        let mut text = format!("CMD_{name}({ids}Address={address:#x}, Leaf={}", u8::from(command.leaf()));
        if config.ril && command.tg() != 0 {
            let (num, scale, tg, ttl) = (command.num(), command.scale(), command.tg(), command.ttl());
            text += &format!(", TG={tg}, NUM={num}, SCALE={scale}, TTL={ttl}");
        }
        text + ")"
    };
    match opcode {
        Opcode::TlbiNhVa | Opcode::TlbiEl2Va => by_address(ids(true), command.address()),
        Opcode::TlbiNhVaa | Opcode::TlbiEl2Vaa => by_address(ids(false), command.address()),
        Opcode::TlbiS2Ipa => by_address(ids(false), command.ipa()),
        Opcode::TlbiNhAsid | Opcode::TlbiEl2Asid => {
            format!("CMD_{name}({})", ids(true).trim_end_matches(", "))
        }
        Opcode::TlbiNhAll | Opcode::TlbiS12Vmall => {
            format!("CMD_{name}({})", ids(false).trim_end_matches(", "))
        }
        Opcode::CfgiSte => format!("CMD_{name}(StreamID={:#x})", command.sid()),
        Opcode::CfgiSteRange => {
            format!("CMD_{name}(StreamID={:#x}, Range={})", command.sid(), command.range())
        }
        Opcode::CfgiCd => {
            format!("CMD_{name}(StreamID={:#x}, SubstreamID={})", command.sid(), command.ssid())
        }
        Opcode::CfgiCdAll | Opcode::StallTerm => format!("CMD_{name}(StreamID={:#x})", command.sid()),
        Opcode::AtcInv => {
            format!(
                "CMD_{name}(StreamID={:#x}, Address={:#x}, Size={})",
                command.sid(),
                command.address(),
                command.0[1] & 63
            )
        }
        _ => format!("CMD_{name}"),
    }
}

/// SCREAMING_SNAKE_CASE of an opcode.
fn name_of(opcode: Opcode) -> String {
    let mut name = String::new();
    for c in format!("{opcode:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    // The manual's spelling: digits belong to what stands before them.
    name
}
