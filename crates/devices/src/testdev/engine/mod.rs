//! Arm's SMMUv3TestEngine: frames of registers, each of which can run a command of its own. It comes as a PCI function
//! ([`Engine`]) and as a device of the device tree ([`PlatformEngine`]).
//!
//! Registers are pairs of 64 KiB pages of 512 frames: the user halves in the first page, the privileged halves in the
//! second. A frame runs from the write of its cmd until cmd reads HALTED or ERROR; each running frame is a lane, so that
//! a scheduler may let them overtake each other at every fetch and every beat.

mod attributes;
mod frame;
mod frames;
mod job;
mod pci;
mod platform;
mod random;
mod work;

pub use frames::FRAMES_PER_PAIR;
pub use pci::{Engine, EngineState};
pub use platform::{PlatformEngine, PlatformEngineState};

use super::Timing;
