//! Devices of the machine: interrupt controllers, UART, clock, PCI Express, virtio, devices that test an SMMU, and
//! the port through which all of them reach memory.
//!
//! Registers are [`bus::MmioDevice`]s; whatever a device does by itself is a step of an [`agent::Agent`]; every byte it
//! moves goes through a [`dma::DmaPort`].
#![forbid(unsafe_code)]

pub mod agent;
pub mod bounce;
pub mod bus;
pub mod dma;
pub mod gic;
pub mod lab;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod testdev;
pub mod virtio;

pub use agent::{Agent, Time};
pub use bus::MmioDevice;
