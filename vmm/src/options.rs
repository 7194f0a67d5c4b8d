//! What a run is made of, as the command line or a test gives it.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ats::Ats;
use crate::layout;
use crate::plug::{Plug, Pluggable, RootPortKind, Unplug};
use crate::pools::BounceOption;

/// Which engine executes guest instructions. All give the same results to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Engine {
    /// Host code made of what executes often: the fastest. On hosts other than x86-64, as `block`.
    #[default]
    Native,
    /// Predecoded blocks.
    Block,
    /// One instruction at a time: the reference, several times slower.
    Step,
}

/// The ring layout that the virtio devices offer beside the split one, which every driver may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Rings {
    /// Split virtqueues only.
    #[default]
    Split,
    /// Packed virtqueues too: drivers that know them use them.
    Packed,
}

/// A virtio device of the machine: `console`, `rng`, `net`, `disk0`, `disk1` …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Function {
    /// The virtio console.
    Console,
    /// The entropy device.
    Rng,
    /// The network device.
    Net,
    /// A disk, counted from 0 in the order of `--disk`.
    Disk(u8),
}

impl FromStr for Function {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let disk = || text.strip_prefix("disk")?.parse().ok().map(Self::Disk);
        match text {
            "console" => Ok(Self::Console),
            "rng" => Ok(Self::Rng),
            "net" => Ok(Self::Net),
            _ => disk().ok_or_else(|| "a device is console, rng, net, disk0, disk1 …".into()),
        }
    }
}

/// A device that reaches nothing but a pool of memory, given with `--restricted-dma DEVICE[,SIZE]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restricted {
    /// The device.
    pub device: Function,
    /// Bytes of its pool.
    pub size: u64,
}

impl FromStr for Restricted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, size) = text.split_once(',').unwrap_or((text, "16M"));
        let Size(size) = size.parse()?;
        if size == 0 || !size.is_multiple_of(1 << 20) || size > 1 << 30 {
            return Err("a pool has 1M to 1G in steps of 1M".into());
        }
        Ok(Self { device: device.parse()?, size })
    }
}

/// A raw disk image given with `--disk FILE[,ro]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A disk that another process serves, as it told when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteDisk {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text.strip_suffix(",rw").unwrap_or(text), false),
        };
        if path.is_empty() {
            return Err("a disk is FILE or FILE,ro".into());
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// A device that makes the DMA a test asks for (docs/test-devices.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum TestDevice {
    /// QEMU's iommu-testdev, a PCI function (1b36:0005)
    Testdev,
    /// Arm's SMMUv3TestEngine as a PCI function (13b5:ff80)
    Engine,
    /// The same engine in the device tree, which may stall: StreamIDs from 0x10000
    PlatformEngine,
}

/// The SMMU in front of PCIe: `--smmu off|on|key=value,…`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Smmu {
    /// No SMMU: DMA addresses are physical.
    Off,
    /// An SMMUv3 of this configuration.
    On(Box<smmu_model::Config>),
}

impl FromStr for Smmu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On(Box::default())),
            _ => Ok(Self::On(Box::new(smmu_model::Config::parse(text).map_err(|e| e.to_string())?))),
        }
    }
}

/// Requester IDs of PCI functions: bus in bits 15:8, device in 7:3, function in 2:0.
pub type RequesterIds = std::ops::RangeInclusive<u16>;

/// One SMMU, and which of PCI it takes from the first: `--smmu off|on|KEY=VALUE,…[,pci=FIRST-LAST]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlacedSmmu {
    /// The SMMU.
    pub smmu: Smmu,
    /// Requester IDs.
    pub pci: Vec<RequesterIds>,
}

fn requester_id(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn requester_ids(text: &str) -> Option<RequesterIds> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (requester_id(first)?, requester_id(last)?);
    (first <= last).then_some(first..=last)
}

impl FromStr for PlacedSmmu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut pci, mut keys) = (Vec::new(), Vec::new());
        for option in text.split(',') {
            match option.trim().strip_prefix("pci=") {
                Some(ids) => pci.push(requester_ids(ids).ok_or(format!(
                    "SMMU option pci: '{ids}' is not FIRST-LAST, two Requester IDs as in 0x20-0x27"
                ))?),
                None => keys.push(option),
            }
        }
        let smmu = if keys.is_empty() { Smmu::On(Box::default()) } else { keys.join(",").parse()? };
        Ok(Self { smmu, pci })
    }
}

/// A size in bytes: a number with an optional K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| "a size is a number with an optional K, M or G")?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "that size is too large".into())
    }
}

/// Physical addresses as `START-END`, hexadecimal; END is not one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(pub std::ops::Range<u64>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let range = text.split_once('-').and_then(|(start, end)| Some(number(start)?..number(end)?));
        range
            .filter(|r| !r.is_empty())
            .map(Self)
            .ok_or_else(|| "it is START-END, as in 0x76c00000-0x7ac00000".into())
    }
}

/// A span of virtual time: a number with ns, us, ms, s, m or h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub u64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 6] = [
            ("ns", 1),
            ("us", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(unit_at);
        let unit = if unit.is_empty() { "s" } else { unit };
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        match (digits.parse::<u64>(), scale) {
            (Ok(n), Some(scale)) => {
                n.checked_mul(scale).map(Self).ok_or_else(|| "that time is too long".into())
            }
            _ => Err("a time is a whole number with ns, us, ms, s, m or h (seconds if none is given)".into()),
        }
    }
}

/// The machine to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineOptions {
    /// vCPUs, 1 to [`layout::MAX_CPUS`].
    pub cpus: usize,
    /// Bytes of RAM.
    pub ram: u64,
    /// The first SMMU, which has of PCI what no other takes.
    pub smmu: Smmu,
    /// Other SMMUs. Devices of the device tree are behind the last.
    pub more_smmus: Vec<PlacedSmmu>,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Disks that other processes serve, behind the others.
    pub remote: Vec<RemoteDisk>,
    /// Test devices: PCI functions in the slots that follow the disks', engines in the device tree.
    pub devices: Vec<TestDevice>,
    /// Root ports with hot-plug slots, in the slots that follow the test devices'.
    pub root_ports: Vec<RootPortKind>,
    /// What comes into their slots.
    pub plugs: Vec<Plug>,
    /// What leaves them.
    pub unplugs: Vec<Unplug>,
    /// Whether there is a network device.
    pub net: bool,
    /// Its address, if it is not the usual one.
    pub mac: Option<[u8; 6]>,
    /// The layout of virtqueues.
    pub virtio: Rings,
    /// Which devices are bounced.
    pub bounce: Vec<BounceOption>,
    /// PCIe ATS of the virtio functions and the test engines, if they have it.
    pub ats: Option<Ats>,
    /// How many address bits the PCI functions have.
    pub dma_bits: Option<u8>,
    /// Devices that reach nothing but a pool of their own.
    pub restricted: Vec<Restricted>,
    /// Seeds everything that is random in the machine.
    pub seed: u64,
    /// The CPU engine.
    pub engine: Engine,
    /// Instructions a vCPU runs before the next one's turn.
    pub quantum: u64,
    /// FEAT_LSE.
    pub lse: bool,
    /// FEAT_PAN.
    pub pan: bool,
    /// Parameters of the lab device, if there is one.
    pub lab: Option<Vec<u64>>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            cpus: 1,
            ram: 1 << 30,
            smmu: Smmu::On(Box::default()),
            more_smmus: Vec::new(),
            disks: Vec::new(),
            remote: Vec::new(),
            devices: Vec::new(),
            root_ports: Vec::new(),
            plugs: Vec::new(),
            unplugs: Vec::new(),
            net: false,
            mac: None,
            virtio: Rings::default(),
            bounce: Vec::new(),
            ats: None,
            dma_bits: None,
            restricted: Vec::new(),
            seed: 0,
            engine: Engine::default(),
            quantum: 20_000,
            lse: false,
            pan: false,
            lab: None,
        }
    }
}

impl MachineOptions {
    /// All disks: those that are there and those that will be plugged in.
    pub fn all_disks(&self) -> impl Iterator<Item = &Disk> {
        let plugged = self.plugs.iter().filter_map(|plug| match &plug.device {
            Pluggable::Disk(disk) => Some(disk),
            _ => None,
        });
        self.disks.iter().chain(plugged)
    }

    /// Test engines in the device tree.
    pub fn platform_engines(&self) -> usize {
        self.devices.iter().filter(|&&device| device == TestDevice::PlatformEngine).count()
    }

    /// The SMMUs' configurations.
    pub fn smmu_configs(&self) -> impl DoubleEndedIterator<Item = &smmu_model::Config> {
        let all = std::iter::once(&self.smmu).chain(self.more_smmus.iter().map(|placed| &placed.smmu));
        all.filter_map(|smmu| match smmu {
            Smmu::Off => None,
            Smmu::On(config) => Some(&**config),
        })
    }

    /// Which SMMU has which Requester IDs, in their order, gaps filled by the first.
    pub fn requester_ids(&self) -> Vec<(RequesterIds, usize)> {
        let taken = self.more_smmus.iter().enumerate();
        let mut taken: Vec<_> =
            taken.flat_map(|(n, placed)| placed.pci.iter().map(move |ids| (ids.clone(), n + 1))).collect();
        taken.sort_by_key(|(ids, _)| *ids.start());
        let (mut all, mut next) = (Vec::new(), 0u32);
        for (ids, smmu) in taken {
            if u32::from(*ids.start()) > next {
                all.push((next as u16..=ids.start() - 1, 0));
            }
            next = u32::from(*ids.end()) + 1;
            all.push((ids, smmu));
        }
        if next <= u32::from(u16::MAX) {
            all.push((next as u16..=u16::MAX, 0));
        }
        all
    }

    fn check_smmus(&self) -> Result<(), String> {
        if self.more_smmus.len() >= layout::MAX_SMMUS {
            return Err(format!("at most {} of --smmu", layout::MAX_SMMUS));
        }
        let off = matches!(self.smmu, Smmu::Off);
        if !self.more_smmus.is_empty() && (off || self.more_smmus.iter().any(|p| matches!(p.smmu, Smmu::Off)))
        {
            return Err("--smmu off goes with no other --smmu".into());
        }
        let mut ids: Vec<_> = self.more_smmus.iter().flat_map(|placed| &placed.pci).collect();
        ids.sort_by_key(|ids| *ids.start());
        if ids.windows(2).any(|pair| pair[0].end() >= pair[1].start()) {
            return Err("the Requester IDs that --smmu …,pci= names overlap".into());
        }
        Ok(())
    }

    fn check_restricted(&self) -> Result<(), String> {
        if !self.restricted.is_empty() && matches!(self.smmu, Smmu::On(_)) {
            return Err(
                "--restricted-dma is for machines without an SMMU: Linux uses such pools there only (--smmu off)"
                    .into(),
            );
        }
        for (i, Restricted { device, .. }) in self.restricted.iter().enumerate() {
            let there = match device {
                Function::Console | Function::Rng => true,
                Function::Net => self.net,
                Function::Disk(n) => usize::from(*n) < self.disks.len(),
            };
            if !there || self.restricted[..i].iter().any(|other| other.device == *device) {
                return Err(format!(
                    "--restricted-dma {device:?}: there is no such device, or it has a pool already"
                ));
            }
        }
        if self.restricted.iter().map(|r| r.size).sum::<u64>() > self.ram.min(3 << 30) / 4 {
            return Err("--restricted-dma: the pools take more than a quarter of the RAM below 4 GiB".into());
        }
        Ok(())
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// One line for the user.
    pub fn check(&self) -> Result<(), String> {
        if self.cpus == 0 || self.cpus > layout::MAX_CPUS {
            return Err(format!("--cpus takes 1 to {}, not {}", layout::MAX_CPUS, self.cpus));
        }
        if self.ram < 64 << 20 || self.ram > layout::RAM_MAX || !self.ram.is_multiple_of(2 << 20) {
            return Err(format!(
                "--mem takes 64M to {}G in steps of 2M, not {} bytes",
                layout::RAM_MAX >> 30,
                self.ram
            ));
        }
        self.check_restricted()?;
        if self.quantum == 0 {
            return Err("--quantum takes at least 1 instruction".into());
        }
        if self.ats.is_some() && !matches!(&self.smmu, Smmu::On(config) if config.ats) {
            return Err("--ats needs an SMMU that has it: --smmu preset=full, or ats=on".into());
        }
        let engines = self.platform_engines();
        if engines > layout::MAX_ENGINES {
            return Err(format!("at most {} of --device platform-engine", layout::MAX_ENGINES));
        }
        self.check_smmus()?;
        let ports = self.plugs.iter().map(|plug| plug.port).chain(self.unplugs.iter().map(|u| u.port));
        if let Some(port) = ports.max().filter(|&port| port > self.root_ports.len()) {
            return Err(format!("there is no root port {port}: each --root-port makes one"));
        }
        if engines > 0 && self.smmu_configs().next_back().is_some_and(|config| config.sidsize < 17) {
            return Err(
                "--device platform-engine has StreamIDs from 0x10000: it needs --smmu preset=full, or \
                 sidsize=17 or more"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_parse() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("2g".parse(), Ok(Size(2 << 30)));
        assert!("99999999999G".parse::<Size>().is_err());
        assert!("".parse::<Size>().is_err());
        assert_eq!("90".parse(), Ok(Span(90_000_000_000)));
        assert_eq!("5ms".parse(), Ok(Span(5_000_000)));
        assert!("5 parsecs".parse::<Span>().is_err());
        assert!("9999999999h".parse::<Span>().is_err());
    }

    #[test]
    fn restricted_devices_parse_and_are_checked() {
        assert_eq!("disk3,2M".parse(), Ok(Restricted { device: Function::Disk(3), size: 2 << 20 }));
        assert_eq!("net".parse(), Ok(Restricted { device: Function::Net, size: 16 << 20 }));
        for bad in ["", "disk", "disk0,", "rng,3K", "rng,0", "gpu", "rng,2G"] {
            assert!(bad.parse::<Restricted>().is_err(), "{bad}");
        }
        let check = |smmu, devices: &[&str]| {
            let restricted = devices.iter().map(|d| d.parse().unwrap()).collect();
            MachineOptions { smmu, restricted, ..MachineOptions::default() }.check()
        };
        assert_eq!(check(Smmu::Off, &["rng", "console,8M"]), Ok(()));
        assert!(check(Smmu::On(Box::default()), &["rng"]).unwrap_err().contains("--smmu off"));
        for bad in [["rng", "rng"], ["rng", "net"], ["rng", "disk0"], ["rng", "console,256M"]] {
            assert!(check(Smmu::Off, &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn disks_parse() {
        assert_eq!("a,b.img,ro".parse(), Ok(Disk { path: "a,b.img".into(), read_only: true }));
        assert_eq!("x".parse(), Ok(Disk { path: "x".into(), read_only: false }));
        assert!(",ro".parse::<Disk>().is_err());
    }

    #[test]
    fn smmus_share_the_requester_ids() {
        let placed = |text: &str| text.parse::<PlacedSmmu>().unwrap();
        let with = |more: &[&str]| MachineOptions {
            more_smmus: more.iter().map(|text| placed(text)).collect(),
            ..MachineOptions::default()
        };
        assert_eq!(with(&["on"]).requester_ids(), [(0..=0xffff, 0)]);
        let three = with(&["pci=0x100-0xffff,preset=qemu", "pci=0x20,pci=0x28-0x2f"]);
        let expected =
            [(0..=0x1f, 0), (0x20..=0x20, 2), (0x21..=0x27, 0), (0x28..=0x2f, 2), (0x30..=0xff, 0)];
        assert_eq!(three.requester_ids()[..5], expected);
        assert_eq!(three.requester_ids()[5..], [(0x100..=0xffff, 1)]);
        assert!(three.check().is_ok());
        assert!(with(&["pci=0-5", "pci=5-9"]).check().is_err());
        assert!(with(&["off"]).check().is_err());
        assert!(with(&["on"; 8]).check().is_err());
        for bad in ["pci=", "pci=5-4", "pci=0x10000", "pci=0:1.0"] {
            assert!(bad.parse::<PlacedSmmu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_machines_are_refused() {
        let ok = MachineOptions::default();
        assert!(ok.check().is_ok());
        for bad in [
            MachineOptions { cpus: 0, ..ok.clone() },
            MachineOptions { cpus: 9, ..ok.clone() },
            MachineOptions { ram: 1 << 20, ..ok.clone() },
            MachineOptions { quantum: 0, ..ok.clone() },
            MachineOptions { unplugs: vec!["1s:1".parse().unwrap()], ..ok.clone() },
            MachineOptions { devices: vec![TestDevice::PlatformEngine], ..ok.clone() },
            MachineOptions { smmu: Smmu::Off, devices: vec![TestDevice::PlatformEngine; 9], ..ok.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
