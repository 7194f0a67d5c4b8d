//! Builds a machine from its options.

use std::sync::{Arc, Mutex};

use aarch64::{Cluster, Config, EngineKind, Features};
use anyhow::{Context, Result};
use devices::dma::{AtcConfig, DmaPort, Fabric, ItsInbox, Requester};
use devices::gic::{self, Gic};
use devices::lab::Lab;
use devices::pci::{PciFunction, PciHost, Slot};
use devices::pl031::Pl031;
use devices::testdev::{self, IommuTestdev, PlatformEngine};
use devices::virtio::{
    Blk, Console, FileBackend, Net, RemoteBackend, Rng, Timing, VirtioDevice, VirtioPci, feature,
};
use guest_ram::GuestRam;

use crate::ats::Ats;
use crate::board::Board;
use crate::fdt::{Pool, Tree};
use crate::layout as at;
use crate::load::{Boot, load};
use crate::machine::Machine;
use crate::options::{Disk, Engine, Function, MachineOptions, Restricted, Rings, TestDevice};
use crate::plug::{Event, Make, Plug, Pluggable, RootPortKind, Script, What};
use crate::pools::Pools;
use crate::smmu_agents::{Latency, SmmuAgents};

/// Slot of the virtio console; the others follow: entropy, network, disks.
pub const CONSOLE: u8 = 1;
const RNG: u8 = 2;
/// Slot of the virtio network device.
pub const NET: u8 = 3;
const FIRST_DISK: u8 = 4;
const LAST_SLOT: u8 = 31;

/// What the real-time clock shows at power-on: 2026-01-01 00:00:00 UTC, so that runs do not depend on the date.
const EPOCH: u32 = 1_767_225_600;

/// The guest's Ethernet address: locally administered.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Independent streams of randomness from the run's one seed (SplitMix64).
fn derive(seed: u64, stream: u64) -> u64 {
    let mut z = seed.wrapping_add((stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the disk is that comes after so many others.
pub fn disk_slot(number: usize) -> Slot {
    Slot::device(FIRST_DISK.saturating_add(u8::try_from(number).unwrap_or(u8::MAX)).min(LAST_SLOT))
}

fn open(disk: &Disk) -> Result<FileBackend> {
    FileBackend::open(&disk.path, disk.read_only)
        .with_context(|| format!("cannot use the disk {}", disk.path.display()))
}

/// Names of the virtio devices, as `--bounce` has them.
fn names(options: &MachineOptions) -> Vec<String> {
    let net = options.net.then(|| "net".to_owned());
    let disks = (0..options.disks.len() + options.remote.len()).map(|n| format!("disk{n}"));
    let virtio = |(_, plug): &(usize, &Plug)| !matches!(plug.device, Pluggable::Test(_));
    let plugs = options.plugs.iter().enumerate().filter(virtio).map(|(n, _)| format!("plug{n}"));
    ["console".to_owned(), "rng".to_owned()].into_iter().chain(net).chain(disks).chain(plugs).collect()
}

/// Features that the options add to those that every virtio device offers.
fn rings(options: &MachineOptions) -> u64 {
    match options.virtio {
        Rings::Split => 0,
        Rings::Packed => feature::RING_PACKED,
    }
}

/// What virtio devices have in common.
struct Virtio<'a> {
    pools: &'a mut Pools,
    /// Features beside those that every device offers.
    offered: u64,
    /// Their translation caches, if they have ATS.
    atc: Option<AtcConfig>,
}

impl Virtio<'_> {
    /// Puts a device into a slot, bounced or not.
    fn add(&mut self, pci: &mut PciHost, name: &str, slot: Slot, device: impl VirtioDevice) {
        pci.add(slot, self.function(name, device));
    }

    /// Makes a device, bounced or not, when there is a port for it.
    fn function(&mut self, name: &str, device: impl VirtioDevice) -> Make {
        let (bounce, offered, atc) = (self.pools.share(name), self.offered, self.atc);
        Box::new(move |port| {
            if let Some(bounce) = bounce {
                port.set_bounce(bounce);
            }
            let function = VirtioPci::new(port, device, Timing::default()).offering(offered);
            match atc {
                Some(atc) => Box::new(function.with_ats(atc)),
                None => Box::new(function),
            }
        })
    }
}

fn add(pci: &mut PciHost, slot: Option<Slot>, make: impl FnOnce(DmaPort) -> Box<dyn PciFunction>) {
    if let Some(slot) = slot {
        pci.add(slot, make);
    }
}

/// The pools of confined functions: at the end of what RAM there is below 4 GiB, where 32 address bits reach.
fn pools(options: &MachineOptions) -> Vec<Pool> {
    let mut end = (at::RAM_BASE + options.ram).min(1 << 32);
    let place = |restricted: &Restricted| {
        end -= restricted.size;
        let device = match restricted.device {
            Function::Console => CONSOLE,
            Function::Rng => RNG,
            Function::Net => NET,
            Function::Disk(n) => FIRST_DISK + n,
        };
        Pool { device, place: at::Window { base: end, size: restricted.size } }
    };
    options.restricted.iter().map(place).collect()
}

/// Confines functions to the addresses that they reach: hardware that the guest's bounce pools are for.
fn confine(options: &MachineOptions, pci: &PciHost) {
    let pools = pools(options);
    for (slot, function) in pci.functions() {
        let Some(port) = function.port() else { continue };
        if let Some(pool) = pools.iter().find(|pool| Slot::device(pool.device) == slot) {
            port.confine(pool.place.base..=pool.place.base + pool.place.size - 1);
        } else if let Some(bits) = options.dma_bits {
            port.confine(0..=(1 << bits.min(63)) - 1);
        }
    }
}

/// Makes the machine and loads what it boots.
///
/// # Errors
/// When RAM cannot be had, a disk cannot be opened, or there is nothing to boot: one line for the user.
pub fn assemble(options: &MachineOptions, boot: &Boot) -> Result<Machine> {
    let mut machine = build(options)?;
    let tree = Tree {
        cpus: options.cpus,
        ram: options.ram,
        bootargs: "",
        initrd: None,
        smmus: options.smmu_configs().count(),
        smmu_windows: options.smmu_configs().map(|config| config.window()).collect(),
        pmcgs: (0..)
            .zip(options.smmu_configs())
            .filter(|(_, c)| c.pmcg > 0)
            .map(|(index, _)| index)
            .collect(),
        requester_ids: options.requester_ids(),
        external_ports: external_ports(options).collect(),
        ats: options.ats.is_some(),
        lab: options.lab.is_some(),
        engines: options.platform_engines(),
        dma_bits: options.dma_bits,
        pools: &pools(options),
        seeds: std::array::from_fn(|i| derive(options.seed, i as u64)),
    };
    let entry = load(&machine.board.ram, boot, tree)?;
    machine.power_on(entry.pc, entry.fdt);
    Ok(machine)
}

fn engine(port: DmaPort, ats: Option<&Ats>) -> Box<dyn PciFunction> {
    let engine = testdev::Engine::new(port, 1, testdev::Timing::default());
    match ats {
        Some(ats) => Box::new(engine.with_ats(&ats.function)),
        None => Box::new(engine),
    }
}

/// What is plugged and unplugged: files are opened now, so that one that cannot be used is known before the run.
fn script(
    options: &MachineOptions,
    ports: &[Slot],
    fabric: &Fabric,
    virtio: &mut Virtio<'_>,
) -> Result<Script> {
    let mut events = Vec::new();
    let slot = |port: usize| ports.get(port.wrapping_sub(1)).copied().context("no such root port");
    for (index, plug) in options.plugs.iter().enumerate() {
        let (name, timing) = (format!("plug{index}"), testdev::Timing::default());
        let make: Make = match &plug.device {
            Pluggable::Rng => virtio.function(&name, Rng::new(derive(options.seed, 32 + index as u64))),
            Pluggable::Disk(disk) => virtio.function(&name, Blk::new(Box::new(open(disk)?))),
            Pluggable::Test(TestDevice::Testdev) => {
                let inspector = fabric.inspector();
                Box::new(move |port| Box::new(IommuTestdev::new(port, inspector, timing)))
            }
            Pluggable::Test(_) => {
                let ats = options.ats;
                Box::new(move |port| engine(port, ats.as_ref()))
            }
        };
        events.push(Event { at: plug.at, port: slot(plug.port)?, what: What::Plug(Some(make)) });
    }
    for unplug in &options.unplugs {
        let what = What::Unplug { surprise: unplug.surprise };
        events.push(Event { at: unplug.at, port: slot(unplug.port)?, what });
    }
    Ok(Script::new(events))
}

/// Devices on the root bus that are root ports.
fn root_ports(options: &MachineOptions) -> impl Iterator<Item = (Slot, RootPortKind)> {
    let functions = options.devices.iter().filter(|&&device| device != TestDevice::PlatformEngine).count();
    let first = (options.disks.len() + options.remote.len() + functions).min(usize::from(LAST_SLOT)) as u8
        + FIRST_DISK;
    (first..=LAST_SLOT).map(Slot::device).zip(options.root_ports.iter().copied())
}

/// Those that lead out of the machine.
fn external_ports(options: &MachineOptions) -> impl Iterator<Item = Slot> {
    root_ports(options).filter(|&(_, kind)| kind == RootPortKind::External).map(|(slot, _)| slot)
}

/// Makes the machine with nothing in its RAM and no vCPU on.
///
/// # Errors
/// When RAM cannot be had, or a disk cannot be opened: one line for the user.
pub fn build(options: &MachineOptions) -> Result<Machine> {
    let disks = options.disks.iter().map(open).collect::<Result<Vec<_>>>()?;
    let functions = options.devices.iter().filter(|&&device| device != TestDevice::PlatformEngine);
    let slots = disks.len() + options.remote.len() + functions.count() + options.root_ports.len();
    anyhow::ensure!(
        slots <= usize::from(LAST_SLOT - FIRST_DISK) + 1,
        "at most 28 disks, test devices and root ports"
    );
    let ram = GuestRam::new(at::RAM_BASE, options.ram)?;
    let new = |config: &smmu_model::Config| Arc::new(Mutex::new(smmu_model::Smmu::new(config.clone())));
    let smmus: Vec<_> = options.smmu_configs().map(new).collect();
    let inbox = ItsInbox::default();
    let mut fabric = Fabric::new(ram.clone(), None, inbox.clone());
    for (ids, smmu) in options.requester_ids() {
        if let Some(smmu) = smmus.get(smmu) {
            fabric.add_smmu(u32::from(*ids.start())..=u32::from(*ids.end()), smmu.clone());
        }
    }
    if let Some(last) = smmus.last() {
        fabric.add_smmu(at::ENGINE_SID..=u32::MAX, last.clone());
    }
    let mut pci = PciHost::new(fabric.clone());
    let mut pools = Pools::new(&options.bounce, &names(options))?;
    let atc = options.ats.map(|ats| ats.function.atc);
    let mut virtio = Virtio { pools: &mut pools, offered: rings(options), atc };
    virtio.add(&mut pci, "console", Slot::device(CONSOLE), Console::new());
    virtio.add(&mut pci, "rng", Slot::device(RNG), Rng::new(derive(options.seed, 16)));
    if options.net {
        virtio.add(&mut pci, "net", Slot::device(NET), Net::new(options.mac.unwrap_or(MAC)));
    }
    let mut slots = (FIRST_DISK..=LAST_SLOT).map(Slot::device);
    for (n, (disk, slot)) in disks.into_iter().zip(&mut slots).enumerate() {
        virtio.add(&mut pci, &format!("disk{n}"), slot, Blk::new(Box::new(disk)));
    }
    for (n, (disk, slot)) in options.remote.iter().zip(&mut slots).enumerate() {
        let backend = RemoteBackend::new(disk.sectors, disk.read_only);
        virtio.add(&mut pci, &format!("disk{}", options.disks.len() + n), slot, Blk::new(Box::new(backend)));
    }
    let mut platform = Vec::new();
    for device in &options.devices {
        let timing = testdev::Timing::default();
        match device {
            TestDevice::Testdev => {
                let inspector = fabric.inspector();
                add(&mut pci, slots.next(), |port| Box::new(IommuTestdev::new(port, inspector, timing)));
            }
            TestDevice::Engine => {
                add(&mut pci, slots.next(), |port| engine(port, options.ats.as_ref()));
            }
            TestDevice::PlatformEngine => {
                let sid = at::ENGINE_SID + platform.len() as u32;
                let device_id = at::ENGINE_DEVICE_ID + platform.len() as u32;
                let port = fabric.port_for(Requester { sid, ssid: None, device_id });
                platform.push(PlatformEngine::new(port, timing));
            }
        }
    }

    let root_ports: Vec<Slot> = root_ports(options).map(|(slot, _)| slot).collect();
    for (&slot, number) in root_ports.iter().zip(1..) {
        pci.add_root_port(slot, number);
    }
    let script = script(options, &root_ports, &fabric, &mut virtio)?;

    confine(options, &pci);
    let gic = Gic::new(
        gic::Config { cpus: options.cpus as u32, spis: at::SPIS, its: true },
        ram.clone(),
        inbox.clone(),
    );
    let agents = smmus.into_iter().map(|smmu| {
        let mut latency = Latency::of(smmu.lock().unwrap_or_else(|e| e.into_inner()).config());
        if let Some(ats) = &options.ats {
            latency.atc_timeout = ats.timeout;
        }
        SmmuAgents::new(smmu, ram.clone(), latency)
    });
    let agents = agents.collect();
    let mut board = Board::new(ram.clone(), gic, Pl031::new(EPOCH), pci, platform, agents, inbox);
    board.script = script;
    board.script.start(&mut board.pci);
    board.pools = pools;
    board.lab = options.lab.clone().map(Lab::new);
    let engine = match options.engine {
        Engine::Native => EngineKind::default(),
        Engine::Block => EngineKind::Block,
        Engine::Step => EngineKind::Step,
    };
    let features = Features { lse: options.lse, pan: options.pan, ..Features::default() };
    let cluster = Cluster::new(&Config { cpus: options.cpus, engine, features }, ram);
    Ok(Machine::new(cluster, board, options.quantum))
}
