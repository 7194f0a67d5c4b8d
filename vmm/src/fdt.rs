//! The device tree, with the nodes and bindings of QEMU's `virt`.

use devices::pci::Slot;
use devices::testdev::PlatformEngine;
use vm_fdt::{Error, FdtWriter};

use crate::layout as at;
use crate::options::RequesterIds;

const PHANDLE_GIC: u32 = 1;
const PHANDLE_ITS: u32 = 2;
const PHANDLE_SMMU: u32 = 3;
const PHANDLE_CLOCK: u32 = 4;
const PHANDLE_MORE_SMMUS: u32 = 16;

fn phandle_smmu(index: usize) -> u32 {
    if index == 0 { PHANDLE_SMMU } else { PHANDLE_MORE_SMMUS + index as u32 }
}
/// The first restricted pool; the others follow.
const PHANDLE_POOL: u32 = 0x100;

const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// Memory that one PCI function's DMA is confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Device number of the function, on bus 0.
    pub device: u8,
    /// Where the pool is.
    pub place: at::Window,
}

/// What the tree depends on.
#[derive(Clone, Debug, Default)]
pub struct Tree<'a> {
    /// vCPUs.
    pub cpus: usize,
    /// Bytes of RAM.
    pub ram: u64,
    /// Kernel command line.
    pub bootargs: &'a str,
    /// Guest-physical range of the initramfs.
    pub initrd: Option<(u64, u64)>,
    /// Whether the root complex does ATS.
    pub ats: bool,
    /// SMMUs. The last has the test engines.
    pub smmus: usize,
    /// Bytes of each one's registers, if not those of pages 0 and 1 alone.
    pub smmu_windows: Vec<u64>,
    /// Those of them that have performance monitors.
    pub pmcgs: Vec<usize>,
    /// Which of them has which Requester IDs.
    pub requester_ids: Vec<(RequesterIds, usize)>,
    /// Whether there is a lab device.
    pub lab: bool,
    /// Test engines behind the SMMU, if there is one.
    pub engines: usize,
    /// Root ports that lead out of the machine: a kernel does not trust what is behind them.
    pub external_ports: Vec<Slot>,
    /// How many address bits PCI functions have, if not all.
    pub dma_bits: Option<u8>,
    /// Pools that functions are confined to.
    pub pools: &'a [Pool],
    /// Seeds for the guest's address-space layout and random pool; a function of the run's seed.
    pub seeds: [u64; 4],
}

fn window(w: at::Window) -> [u64; 2] {
    [w.base, w.size]
}

impl Tree<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    /// When the writer refuses a value (a NUL in the command line).
    pub fn write(&self) -> Result<Vec<u8>, Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "linux,dummy-virt")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
        self.chosen(&mut fdt)?;
        let memory = fdt.begin_node("memory@40000000")?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[at::RAM_BASE, self.ram])?;
        fdt.end_node(memory)?;
        self.reserved_memory(&mut fdt)?;
        self.cpus(&mut fdt)?;
        gic(&mut fdt)?;
        peripherals(&mut fdt)?;
        for index in 0..self.smmus {
            smmu(&mut fdt, index, self.smmu_windows.get(index).copied())?;
        }
        for &index in &self.pmcgs {
            pmcg(&mut fdt, index)?;
        }
        if self.lab {
            let lab = fdt.begin_node(&format!("lab@{:x}", at::LAB.base))?;
            fdt.property_string("compatible", "smmulab,lab")?;
            fdt.property_array_u64("reg", &window(at::LAB))?;
            fdt.end_node(lab)?;
        }
        for index in 0..self.engines {
            self.engine(&mut fdt, index)?;
        }
        self.pcie(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("stdout-path", "/pl011@9000000")?;
        fdt.property_string("bootargs", self.bootargs)?;
        fdt.property_u64("kaslr-seed", self.seeds[0])?;
        let mut seed = Vec::new();
        for word in self.seeds {
            seed.extend_from_slice(&word.rotate_left(17).to_be_bytes());
        }
        fdt.property("rng-seed", &seed)?;
        if let Some((start, end)) = self.initrd {
            fdt.property_u64("linux,initrd-start", start)?;
            fdt.property_u64("linux,initrd-end", end)?;
        }
        fdt.end_node(node)
    }

    /// The pools (Documentation/devicetree/bindings/reserved-memory/shared-dma-pool.yaml).
    fn reserved_memory(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        if self.pools.is_empty() {
            return Ok(());
        }
        let node = fdt.begin_node("reserved-memory")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_null("ranges")?;
        for (pool, phandle) in self.pools.iter().zip(PHANDLE_POOL..) {
            let child = fdt.begin_node(&format!("restricted-dma-pool@{:x}", pool.place.base))?;
            fdt.property_string("compatible", "restricted-dma-pool")?;
            fdt.property_array_u64("reg", &window(pool.place))?;
            fdt.property_phandle(phandle)?;
            fdt.end_node(child)?;
        }
        fdt.end_node(node)
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for index in 0..self.cpus {
            let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u32("reg", index as u32)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;

        let psci = fdt.begin_node("psci")?;
        fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
        fdt.property_string("method", "hvc")?;
        fdt.end_node(psci)?;

        let timer = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        fdt.property_null("always-on")?;
        fdt.property_array_u32(
            "interrupts",
            &[PPI, 13, LEVEL, PPI, 14, LEVEL, PPI, 11, LEVEL, PPI, 10, LEVEL],
        )?;
        fdt.end_node(timer)
    }

    /// A device that makes DMA and can wait for a stalled transaction: see docs/test-devices.md for the binding.
    fn engine(&self, fdt: &mut FdtWriter, index: usize) -> Result<(), Error> {
        let place = at::ENGINES.part(index, PlatformEngine::WINDOW);
        let node = fdt.begin_node(&format!("smmu-test-engine@{:x}", place.base))?;
        fdt.property_string("compatible", "smmulab,smmuv3-test-engine")?;
        fdt.property_array_u64("reg", &window(place))?;
        let wires = u32::from(PlatformEngine::WIRES);
        let first = at::ENGINE_SPI + index as u32 * wires;
        let irqs: Vec<u32> = (first..first + wires).flat_map(|spi| [SPI, spi, EDGE]).collect();
        fdt.property_array_u32("interrupts", &irqs)?;
        fdt.property_null("dma-coherent")?;
        if let Some(last) = self.smmus.checked_sub(1) {
            fdt.property_array_u32("iommus", &[phandle_smmu(last), at::ENGINE_SID + index as u32])?;
            fdt.property_null("dma-can-stall")?;
            fdt.property_u32("pasid-num-bits", 20)?;
        }
        fdt.end_node(node)
    }

    fn pcie(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        const IO: u32 = 0x0100_0000;
        const MEM32: u32 = 0x0200_0000;
        const MEM64: u32 = 0x0300_0000;
        let node = fdt.begin_node("pcie@10000000")?;
        fdt.property_string("compatible", "pci-host-ecam-generic")?;
        fdt.property_string("device_type", "pci")?;
        fdt.property_u32("#address-cells", 3)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("#interrupt-cells", 1)?;
        fdt.property_u32("linux,pci-domain", 0)?;
        fdt.property_array_u32("bus-range", &[0, 0xff])?;
        fdt.property_null("dma-coherent")?;
        fdt.property_array_u64("reg", &window(at::PCI_ECAM))?;
        let cells = |v: u64| [(v >> 32) as u32, v as u32];
        let mut ranges = Vec::new();
        for (kind, pci, w) in [
            (IO, 0, at::PCI_PIO),
            (MEM32, at::PCI_MMIO.base, at::PCI_MMIO),
            (MEM64, at::PCI_MMIO64.base, at::PCI_MMIO64),
        ] {
            ranges.push(kind);
            ranges.extend(cells(pci).into_iter().chain(cells(w.base)).chain(cells(w.size)));
        }
        fdt.property_array_u32("ranges", &ranges)?;
        fdt.property_array_u32("msi-map", &[0, PHANDLE_ITS, 0, 0x1_0000])?;
        if self.smmus > 0 {
            let entry = |(ids, smmu): &(RequesterIds, usize)| {
                let first = u32::from(*ids.start());
                [first, phandle_smmu(*smmu), first, u32::from(*ids.end()) - first + 1]
            };
            let map: Vec<u32> = self.requester_ids.iter().flat_map(entry).collect();
            fdt.property_array_u32("iommu-map", &map)?;
            if self.ats {
                fdt.property_null("ats-supported")?;
            }
        }
        for port in &self.external_ports {
            let number = port.device_number();
            let child = fdt.begin_node(&format!("pcie@{number:x},0"))?;
            fdt.property_string("device_type", "pci")?;
            fdt.property_u32("#address-cells", 3)?;
            fdt.property_u32("#size-cells", 2)?;
            fdt.property_array_u32("reg", &[u32::from(port.requester_id(0)) << 8, 0, 0, 0, 0])?;
            fdt.property_null("ranges")?;
            fdt.property_null("external-facing")?;
            fdt.end_node(child)?;
        }
        if let Some(bits) = self.dma_bits {
            let size = cells(1 << bits.min(63));
            fdt.property_array_u32("dma-ranges", &[MEM64, 0, 0, 0, 0, size[0], size[1]])?;
        }
        for (pool, phandle) in self.pools.iter().zip(PHANDLE_POOL..) {
            let function = fdt.begin_node(&format!("pci@{:x},0", pool.device))?;
            fdt.property_array_u32("reg", &[u32::from(pool.device) << 11, 0, 0, 0, 0])?;
            fdt.property_u32("memory-region", phandle)?;
            fdt.end_node(function)?;
        }
        fdt.end_node(node)
    }
}

fn gic(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("intc@8000000")?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_u32("#redistributor-regions", 1)?;
    fdt.property_array_u64("reg", &[at::GICD.base, at::GICD.size, at::GICR.base, at::GICR.size])?;
    fdt.property_phandle(PHANDLE_GIC)?;
    let its = fdt.begin_node("its@8080000")?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &window(at::ITS))?;
    fdt.property_phandle(PHANDLE_ITS)?;
    fdt.end_node(its)?;
    fdt.end_node(node)
}

fn peripherals(fdt: &mut FdtWriter) -> Result<(), Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;

    let uart = fdt.begin_node("pl011@9000000")?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &window(at::UART))?;
    fdt.property_array_u32("interrupts", &[SPI, at::UART_SPI, LEVEL])?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(uart)?;

    let rtc = fdt.begin_node("pl031@9010000")?;
    fdt.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &window(at::RTC))?;
    fdt.property_array_u32("interrupts", &[SPI, at::RTC_SPI, LEVEL])?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK])?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(rtc)
}

fn smmu(fdt: &mut FdtWriter, index: usize, size: Option<u64>) -> Result<(), Error> {
    let place = at::smmu(index);
    let place = at::Window { size: size.unwrap_or(place.size), ..place };
    let node = fdt.begin_node(&format!("smmuv3@{:x}", place.base))?;
    fdt.property_string("compatible", "arm,smmu-v3")?;
    fdt.property_array_u64("reg", &window(place))?;
    let irqs: Vec<u32> = (0..4).flat_map(|i| [SPI, at::smmu_spi(index) + i, EDGE]).collect();
    fdt.property_array_u32("interrupts", &irqs)?;
    let names = ["eventq", "priq", "cmdq-sync", "gerror"];
    fdt.property_string_list("interrupt-names", names.map(String::from).to_vec())?;
    fdt.property_u32("#iommu-cells", 1)?;
    fdt.property_array_u32("msi-parent", &[PHANDLE_ITS, at::SMMU_DEVICE_ID + index as u32])?;
    fdt.property_null("dma-coherent")?;
    fdt.property_phandle(phandle_smmu(index))?;
    fdt.end_node(node)
}

/// Performance monitors of an SMMU: a page of registers and one of counters.
fn pmcg(fdt: &mut FdtWriter, index: usize) -> Result<(), Error> {
    let base = at::PMCGS.part(index, smmu_model::pmcg::WINDOW).base;
    let node = fdt.begin_node(&format!("pmu@{base:x}"))?;
    fdt.property_string("compatible", "arm,smmu-v3-pmcg")?;
    fdt.property_array_u64("reg", &[base, 0x1000, base + smmu_model::pmcg::PAGE1, 0x1000])?;
    fdt.property_array_u32("interrupts", &[SPI, at::PMCG_SPI + index as u32, EDGE])?;
    fdt.property_array_u32("msi-parent", &[PHANDLE_ITS, at::PMCG_DEVICE_ID + index as u32])?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smmu_node_is_there_only_when_asked_for() {
        let tree = |smmus| {
            let (bootargs, initrd) = ("quiet", Some((1, 2)));
            let tree = Tree { cpus: 2, ram: 1 << 30, bootargs, initrd, smmus, engines: 1, ..Tree::default() };
            let blob = tree.write().unwrap();
            blob.windows(11).filter(|w| w == b"arm,smmu-v3").count()
        };
        assert_eq!([0, 1, 3].map(tree), [0, 1, 3]);
    }

    #[test]
    fn the_root_complex_says_whether_it_does_ats() {
        let says = |smmu, ats| {
            let smmus = usize::from(smmu);
            let tree = Tree { cpus: 1, ram: 1 << 30, smmus, ats, ..Tree::default() };
            tree.write().unwrap().windows(13).any(|w| w == b"ats-supported")
        };
        assert!(says(true, true) && !says(true, false) && !says(false, true));
    }

    #[test]
    fn the_smmu_node_has_all_its_pages() {
        let reg = |config: &str| {
            let config = smmu_model::Config::parse(config).unwrap();
            let (base, size) = (at::SMMU.base.to_be_bytes(), config.window().to_be_bytes());
            let smmu_windows = vec![config.window()];
            let tree = Tree { cpus: 1, ram: 1 << 30, smmus: 1, smmu_windows, ..Tree::default() };
            let blob = tree.write().unwrap();
            assert!(blob.windows(16).any(|w| w == [base, size].concat()), "{config:?}");
            config.window()
        };
        assert_eq!([reg(""), reg("ecmdq=4"), reg("atos=on,vatos=on")], [0x2_0000, 0x3_0000, 0x4_0000]);
        assert!(reg("preset=full") <= at::SMMU_SPAN);
    }

    #[test]
    fn a_nul_in_the_command_line_is_an_error() {
        let tree = Tree { cpus: 1, ram: 1 << 30, bootargs: "a\0b", ..Tree::default() };
        assert!(tree.write().is_err());
    }
}
