//! The ATS and PRI extended capabilities of a function (PCIe 4.0 §10.5): software enables there what the port then does.

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use crate::dma::{AtcConfig, AtsControl, DmaPort, PriStatus};

const EXT_CAP_ATS: u16 = 0x000f;
const EXT_CAP_PRI: u16 = 0x0013;

/// Registers of the ATS capability.
const ATS_CONTROL: u16 = 6;
/// ATS Capability: as many invalidations as there are tags (0), page-aligned requests, Global Invalidate.
const ATS_CAPABILITY: u16 = 1 << 5 | 1 << 6;
const ATS_ENABLE: u16 = 1 << 15;
/// Smallest Translation Unit.
const ATS_STU: u16 = 0x1f;

/// Registers of the PRI capability.
const PRI_CONTROL: u16 = 4;
const PRI_STATUS: u16 = 6;
const PRI_ALLOCATION: u16 = 12;
const PRI_ENABLE: u16 = 1 << 0;
const PRI_RESET: u16 = 1 << 1;
const PRI_FAILURE: u16 = 1 << 0;
const PRI_UNEXPECTED: u16 = 1 << 1;
const PRI_STOPPED: u16 = 1 << 8;
/// Responses to requests with a PASID have to have it.
const PRI_PASID_REQUIRED: u16 = 1 << 15;

/// What ATS a function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtsOptions {
    /// Its translation cache.
    pub atc: AtcConfig,
    /// Page requests that it can have outstanding; `None`: it makes none.
    pub pri: Option<u32>,
}

/// Where the capabilities are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtsCapabilities {
    ats: u16,
    pri: Option<u16>,
}

impl AtsCapabilities {
    /// Adds the capabilities, and the translation cache to the port. The PCI Express capability must be there.
    pub(crate) fn add(config: &mut ConfigSpace, port: &DmaPort, options: &AtsOptions) -> Self {
        port.add_atc(options.atc);
        let registers = [ATS_CAPABILITY.to_le_bytes(), [0; 2]].concat();
        let writable = [[0; 2], (ATS_ENABLE | ATS_STU).to_le_bytes()].concat();
        let ats = config.add_extended_capability(EXT_CAP_ATS, 1, &registers, &writable);
        let pri = options.pri.map(|capacity| {
            let mut registers = [0; 12];
            registers[2..4].copy_from_slice(&PRI_PASID_REQUIRED.to_le_bytes());
            registers[4..8].copy_from_slice(&capacity.to_le_bytes());
            let mut writable = [0; 12];
            writable[0] = PRI_ENABLE as u8;
            writable[8..12].fill(0xff);
            config.add_extended_capability(EXT_CAP_PRI, 1, &registers, &writable)
        });
        Self { ats, pri }
    }

    /// What configuration space reads where the status of PRI is: bits that come and go by themselves.
    pub(crate) fn read(&self, config: &ConfigSpace, port: &DmaPort, offset: u16, size: u8) -> u32 {
        let value = config.read(offset, size);
        let Some(pri) = self.pri else { return value };
        let PriStatus { failure, unexpected } = port.pri_status();
        let enabled = config.read(pri + PRI_CONTROL, 2) as u16 & PRI_ENABLE != 0;
        let stopped = !enabled && !port.pages_outstanding();
        let bit = |on: bool, bit: u16| if on { bit } else { 0 };
        let status = bit(failure, PRI_FAILURE) | bit(unexpected, PRI_UNEXPECTED) | bit(stopped, PRI_STOPPED);
        // The register, byte by byte, where the access covers it.
        status.to_le_bytes().into_iter().zip(pri + PRI_STATUS..).fold(value, |value, (byte, at)| {
            match at.checked_sub(offset) {
                Some(n) if n < u16::from(size) => value | u32::from(byte) << (8 * n),
                _ => value,
            }
        })
    }

    /// Configuration space was written.
    pub(crate) fn written(&self, config: &ConfigSpace, port: &DmaPort, offset: u16, size: u8, value: u32) {
        let ats = config.read(self.ats + ATS_CONTROL, 2) as u16 & ATS_ENABLE != 0;
        let mut control = AtsControl { ats, ..AtsControl::default() };
        if let Some(pri) = self.pri {
            control.pri = config.read(pri + PRI_CONTROL, 2) as u16 & PRI_ENABLE != 0;
            control.allocation = config.read(pri + PRI_ALLOCATION, 4);
            let byte = |at: u16| match at.checked_sub(offset) {
                Some(n) if n < u16::from(size) => (value >> (8 * n)) as u8,
                _ => 0,
            };
            // Status is cleared by writing ones.
            let status = u16::from(byte(pri + PRI_STATUS));
            let (failure, unexpected) = (status & PRI_FAILURE != 0, status & PRI_UNEXPECTED != 0);
            port.clear_pri_status(PriStatus { failure, unexpected });
            // Reset is for PRI that is not enabled.
            if u16::from(byte(pri + PRI_CONTROL)) & PRI_RESET != 0 && !control.pri {
                port.reset_pri();
            }
        }
        port.set_ats(control);
    }
}
