//! Where things are in the machine: the memory map and interrupt numbers of QEMU's `virt`, which firmware and
//! bare-metal tests know (design contract 10).

use devices::pci::layout as pci;
use devices::testdev::PlatformEngine;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Window {
    const fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    const fn of((base, size): (u64, u64)) -> Self {
        Self { base, size }
    }

    /// The `index`th of as many windows of `size` bytes as there are in this one.
    pub const fn part(&self, index: usize, size: u64) -> Self {
        Self { base: self.base + index as u64 * size, size }
    }

    /// Offset of `pa` in the window, if it is inside.
    #[inline]
    pub fn offset(&self, pa: u64) -> Option<u64> {
        let offset = pa.wrapping_sub(self.base);
        (offset < self.size).then_some(offset)
    }
}

/// GIC distributor.
pub const GICD: Window = Window::new(0x0800_0000, 0x1_0000);
/// GIC ITS: control frame, then the translation frame.
pub const ITS: Window = Window::new(0x0808_0000, 0x2_0000);
/// GITS_TRANSLATER, where MSIs are written.
pub const GITS_TRANSLATER: u64 = devices::dma::GITS_TRANSLATER;
/// GIC redistributors, 128 KiB a vCPU.
pub const GICR: Window = Window::new(0x080a_0000, 0xf6_0000);
/// Size of one vCPU's redistributor frames.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// PL011 UART.
pub const UART: Window = Window::new(0x0900_0000, 0x1000);
/// PL031 real-time clock.
pub const RTC: Window = Window::new(0x0901_0000, 0x1000);
/// SMMUv3: register pages 0 and 1.
pub const SMMU: Window = Window::new(0x0905_0000, 0x2_0000);
/// The same with all that may be behind them: the pages of enhanced command queues and of VATOS.
pub const SMMU_ALL: Window = Window::new(SMMU.base, SMMU_SPAN);
/// Bytes from one SMMU beside the first to the next: room for the same.
pub const SMMU_SPAN: u64 = 0x4_0000;
/// Where `virt` puts devices that an option adds: its platform bus.
pub const PLATFORM_BUS: Window = Window::new(0x0c00_0000, 0x0200_0000);
/// The lab device, where the platform bus begins.
pub const LAB: Window = Window::new(PLATFORM_BUS.base, 0x1000);
/// SMMUs beside the first, at most [`MAX_SMMUS`] in all, one after the other.
pub const MORE_SMMUS: Window = Window::new(PLATFORM_BUS.base + 0x10_0000, (MAX_SMMUS as u64 - 1) * SMMU_SPAN);
/// Performance monitors of the SMMUs, one after the other.
pub const PMCGS: Window =
    Window::new(PLATFORM_BUS.base + 0x0180_0000, MAX_SMMUS as u64 * smmu_model::pmcg::WINDOW);
/// Test engines in the device tree, at most [`MAX_ENGINES`], one after the other.
pub const ENGINES: Window =
    Window::new(PLATFORM_BUS.base + 0x0100_0000, MAX_ENGINES as u64 * PlatformEngine::WINDOW);
/// PCIe 32-bit memory window.
pub const PCI_MMIO: Window = Window::of(pci::MMIO32);
/// PCIe I/O window.
pub const PCI_PIO: Window = Window::of(pci::PIO);
/// First byte of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// PCIe configuration space (ECAM), buses 0 to 255.
pub const PCI_ECAM: Window = Window::of(pci::ECAM);
/// PCIe 64-bit memory window.
pub const PCI_MMIO64: Window = Window::of(pci::MMIO64);
/// RAM ends below the redistributors' high twin, as in `virt`.
pub const RAM_MAX: u64 = 0x40_0000_0000 - RAM_BASE;

/// First INTID of a shared peripheral interrupt.
pub const SPI_BASE: u32 = 32;
/// Shared peripheral interrupts that the distributor has.
pub const SPIS: u32 = 256;
/// UART interrupt, as an SPI number.
pub const UART_SPI: u32 = 1;
/// RTC interrupt, as an SPI number.
pub const RTC_SPI: u32 = 2;
/// First of the SMMU's four wired interrupts: eventq, priq, cmdq-sync, gerror, as SPI numbers.
pub const SMMU_SPI: u32 = 74;
/// Where an SMMU is.
pub const fn smmu(index: usize) -> Window {
    match index {
        0 => SMMU,
        _ => Window::new(MORE_SMMUS.base + (index as u64 - 1) * SMMU_SPAN, SMMU.size),
    }
}

/// First of the wired interrupts of an SMMU, as an SPI number.
pub const fn smmu_spi(index: usize) -> u32 {
    if index == 0 { SMMU_SPI } else { MORE_SMMUS_SPI + 4 * (index as u32 - 1) }
}

/// The most SMMUs.
pub const MAX_SMMUS: usize = 8;
/// First of the wired interrupts of SMMUs beside the first: where `virt`'s platform bus has its interrupts.
const MORE_SMMUS_SPI: u32 = 112;
/// DeviceID with which the first SMMU's own MSIs reach the ITS, past all of PCI; the others follow.
pub const SMMU_DEVICE_ID: u32 = 0x1_0000;
/// First of the wired interrupts of the SMMUs' performance monitors, as an SPI number.
pub const PMCG_SPI: u32 = 176;
/// DeviceID of the first SMMU's performance monitors; the others follow.
pub const PMCG_DEVICE_ID: u32 = 0x1_0200;
/// DeviceID of the first test engine in the device tree; the others follow.
pub const ENGINE_DEVICE_ID: u32 = 0x1_0100;
/// First of the wired interrupts of test engines, [`PlatformEngine::WIRES`] each, as SPI numbers.
pub const ENGINE_SPI: u32 = 144;
/// The most test engines in the device tree.
pub const MAX_ENGINES: usize = 8;
/// StreamID of the first test engine in the device tree; the others follow. All of PCI is below.
pub const ENGINE_SID: u32 = 0x1_0000;
/// The most vCPUs a machine may have.
pub const MAX_CPUS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap() {
        let mut all =
            [GICD, ITS, GICR, UART, RTC, SMMU_ALL, PLATFORM_BUS, PCI_MMIO, PCI_PIO, PCI_ECAM, PCI_MMIO64];
        all.sort_by_key(|w| w.base);
        for pair in all.windows(2) {
            assert!(pair[0].base + pair[0].size <= pair[1].base, "{pair:x?}");
        }
        for pair in [LAB, MORE_SMMUS, ENGINES, PMCGS].windows(2) {
            assert!(pair[0].base + pair[0].size <= pair[1].base, "{pair:x?}");
        }
        assert!(PLATFORM_BUS.offset(PMCGS.base + PMCGS.size - 1).is_some());
        assert!(smmu_spi(MAX_SMMUS - 1) + 4 <= ENGINE_SPI);
    }
}
