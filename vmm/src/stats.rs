//! `--stats`: counters and hashes of a run as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, Write};

use devices::dma::{AtsStats, DmaPort};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::machine::Machine;
use crate::pools::PoolReport;
use crate::state::MachineState;

/// A run in numbers. Everything outside `host` is a function of images, options, seed and recorded input.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Version of this program.
    pub smmulab: &'static str,
    /// Instructions retired by all vCPUs.
    pub instructions: u64,
    /// Instructions retired by each vCPU.
    pub instructions_by_cpu: Vec<u64>,
    /// Virtual nanoseconds since power-on.
    pub virtual_ns: u64,
    /// Bytes that the guest sent to its UART, and to its virtio console.
    pub console_bytes: [u64; 2],
    /// XXH3-128 of each of them.
    pub console_hash: [String; 2],
    /// XXH3-128 of the whole machine at the end: vCPUs, devices, RAM.
    pub state_hash: String,
    /// The first SMMU's counters, if there is one.
    pub smmu: Option<smmu_model::Stats>,
    /// The other SMMUs'.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more_smmus: Vec<smmu_model::Stats>,
    /// The bounce pools' counters.
    pub bounce: Vec<PoolReport>,
    /// The DMA of each PCI function, by bus, device and function.
    pub dma: BTreeMap<String, devices::dma::Stats>,
    /// Of that, the bytes read and written in the memory that `--count-dma` names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counted_dma: BTreeMap<String, [u64; 2]>,
    /// What ATS did in each PCI function that has it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ats: BTreeMap<String, AtsStats>,
    /// What depends on the host.
    pub host: Host,
}

/// What depends on the host.
#[derive(Debug, Serialize)]
pub struct Host {
    /// Wall-clock seconds from the first instruction to the last.
    pub seconds: f64,
    /// Million instructions a second.
    pub mips: f64,
    /// Peak resident memory of this process in KiB.
    pub peak_rss_kib: u64,
    /// How much of that is RAM that the guest, or its loader, touched.
    pub guest_ram_kib: u64,
}

impl Host {
    /// Figures for a run that took `elapsed`.
    pub fn measure(elapsed: std::time::Duration, instructions: u64, guest_ram: u64) -> Self {
        let seconds = elapsed.as_secs_f64();
        let mips = if seconds > 0.0 { instructions as f64 / seconds / 1e6 } else { 0.0 };
        Self { seconds, mips, peak_rss_kib: peak_rss_kib(), guest_ram_kib: guest_ram >> 10 }
    }
}

/// The ports of PCI functions, by name.
fn ports(machine: &Machine) -> impl Iterator<Item = (String, &DmaPort)> {
    let name = |sid: u32| format!("{:02x}:{:02x}.{}", sid >> 8, sid >> 3 & 31, sid & 7);
    let ports = machine.board.pci.functions().filter_map(|(_, function)| function.port());
    ports.map(move |port| (name(port.requester().sid), port))
}

/// The counters of every PCI function that makes DMA.
pub fn dma(machine: &Machine) -> BTreeMap<String, devices::dma::Stats> {
    ports(machine).map(|(name, port)| (name, port.stats())).collect()
}

/// What was counted apart of each.
pub fn counted_dma(machine: &Machine) -> BTreeMap<String, [u64; 2]> {
    ports(machine).filter_map(|(name, port)| Some((name, port.counted()?))).collect()
}

/// What ATS did in each function.
pub fn ats(machine: &Machine) -> BTreeMap<String, AtsStats> {
    ports(machine).filter_map(|(name, port)| Some((name, port.ats_stats()?))).collect()
}

fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Feeds what is written to it into a hash.
pub struct HashWriter(Xxh3);

impl HashWriter {
    /// An empty hash.
    pub fn new() -> Self {
        Self(Xxh3::new())
    }

    /// The hash so far, in hexadecimal.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

impl Default for HashWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for HashWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hash of the machine's state: vCPUs, scheduler, devices and every page of RAM that is not all zeroes.
///
/// # Errors
/// Never for a machine whose state is plain data; serde's error type makes no such promise.
pub fn state_hash(machine: &Machine) -> serde_json::Result<String> {
    let mut hash = HashWriter::new();
    serde_json::to_writer(&mut hash, &MachineState::save(machine))?;
    machine.board.ram.for_each_nonzero_page(|offset, page| {
        hash.0.update(&offset.to_le_bytes());
        hash.0.update(page);
    });
    Ok(hash.hex())
}
