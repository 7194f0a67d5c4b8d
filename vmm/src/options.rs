//! What a run is made of, as the command line or a test gives it.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ats::Ats;
use crate::layout;
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

/// A raw disk image given with `--disk FILE[,ro]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
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
    /// The SMMU.
    pub smmu: Smmu,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Test devices: PCI functions in the slots that follow the disks', engines in the device tree.
    pub devices: Vec<TestDevice>,
    /// Whether there is a network device.
    pub net: bool,
    /// The layout of virtqueues.
    pub virtio: Rings,
    /// Which devices are bounced.
    pub bounce: Vec<BounceOption>,
    /// PCIe ATS of the virtio functions and the test engines, if they have it.
    pub ats: Option<Ats>,
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
            disks: Vec::new(),
            devices: Vec::new(),
            net: false,
            virtio: Rings::default(),
            bounce: Vec::new(),
            ats: None,
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
    /// Test engines in the device tree.
    pub fn platform_engines(&self) -> usize {
        self.devices.iter().filter(|&&device| device == TestDevice::PlatformEngine).count()
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
        if let Smmu::On(config) = &self.smmu
            && engines > 0
            && config.sidsize < 17
        {
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
    fn disks_parse() {
        assert_eq!("a,b.img,ro".parse(), Ok(Disk { path: "a,b.img".into(), read_only: true }));
        assert_eq!("x".parse(), Ok(Disk { path: "x".into(), read_only: false }));
        assert!(",ro".parse::<Disk>().is_err());
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
            MachineOptions { devices: vec![TestDevice::PlatformEngine], ..ok.clone() },
            MachineOptions { smmu: Smmu::Off, devices: vec![TestDevice::PlatformEngine; 9], ..ok.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
