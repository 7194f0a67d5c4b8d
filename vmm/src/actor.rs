//! Names for everything that acts on its own: what a schedule orders, and what a report calls by name.

use std::fmt;
use std::str::FromStr;

use devices::pci::Slot;
use serde::{Deserialize, Serialize};

/// One of the SMMU's agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SmmuAgent {
    /// Writes MSIs.
    Msi,
    /// Writes event records.
    Event,
    /// Consumes commands.
    Command,
    /// Writes page requests to their queue, or responds to them.
    Pri,
    /// Sends ATS Invalidate Requests, and gives up on those that nobody confirms.
    Atc,
    /// Sends PRG responses.
    Response,
}

/// Something that takes steps of its own (design contract 3). Those that are due at one time step in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// An agent of the SMMU.
    Smmu(SmmuAgent),
    /// A lane of a PCI function: a request, a frame, a queue.
    Pci(Slot, usize),
    /// A lane of a test engine in the device tree.
    Engine(usize, usize),
    /// The ITS.
    Its,
    /// The console UART.
    Uart,
    /// The real-time clock.
    Rtc,
    /// A vCPU.
    Cpu(usize),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Smmu(SmmuAgent::Msi) => f.write_str("smmu.msi"),
            Self::Smmu(SmmuAgent::Event) => f.write_str("smmu.event"),
            Self::Smmu(SmmuAgent::Command) => f.write_str("smmu.command"),
            Self::Smmu(SmmuAgent::Pri) => f.write_str("smmu.pri"),
            Self::Smmu(SmmuAgent::Atc) => f.write_str("smmu.atc"),
            Self::Smmu(SmmuAgent::Response) => f.write_str("smmu.response"),
            Self::Pci(slot, lane) => write!(f, "pci.{:02x}.{}.{lane}", slot.0 >> 3, slot.0 & 7),
            Self::Engine(index, lane) => write!(f, "engine.{index}.{lane}"),
            Self::Its => f.write_str("its"),
            Self::Uart => f.write_str("uart"),
            Self::Rtc => f.write_str("rtc"),
            Self::Cpu(cpu) => write!(f, "cpu{cpu}"),
        }
    }
}

/// A text that names no actor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no actor: cpuN, smmu.command, smmu.event, smmu.msi, smmu.pri, smmu.atc, smmu.response, \
     pci.DEVICE.FUNCTION.LANE, engine.N.LANE, its, uart or rtc"
)]
pub struct UnknownActor(String);

impl FromStr for Actor {
    type Err = UnknownActor;

    fn from_str(text: &str) -> Result<Self, UnknownActor> {
        let unknown = || UnknownActor(text.into());
        Ok(match text {
            "smmu.msi" => Self::Smmu(SmmuAgent::Msi),
            "smmu.event" => Self::Smmu(SmmuAgent::Event),
            "smmu.command" => Self::Smmu(SmmuAgent::Command),
            "smmu.pri" => Self::Smmu(SmmuAgent::Pri),
            "smmu.atc" => Self::Smmu(SmmuAgent::Atc),
            "smmu.response" => Self::Smmu(SmmuAgent::Response),
            "its" => Self::Its,
            "uart" => Self::Uart,
            "rtc" => Self::Rtc,
            _ => {
                if let Some(cpu) = text.strip_prefix("cpu") {
                    return cpu.parse().map(Self::Cpu).map_err(|_| unknown());
                }
                if let Some((index, lane)) = text.strip_prefix("engine.").and_then(|t| t.split_once('.')) {
                    let number = |text: &str| text.parse().map_err(|_| unknown());
                    return Ok(Self::Engine(number(index)?, number(lane)?));
                }
                let mut parts = text.strip_prefix("pci.").ok_or_else(unknown)?.splitn(3, '.');
                let mut part = |radix, most| {
                    let value = parts.next().and_then(|p| usize::from_str_radix(p, radix).ok());
                    value.filter(|&v| v <= most).ok_or_else(unknown)
                };
                let (device, function) = (part(16, 31)?, part(16, 7)?);
                Self::Pci(Slot((device << 3 | function) as u8), part(10, usize::MAX)?)
            }
        })
    }
}

impl Serialize for Actor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let all = [
            Actor::Smmu(SmmuAgent::Command),
            Actor::Smmu(SmmuAgent::Event),
            Actor::Smmu(SmmuAgent::Msi),
            Actor::Smmu(SmmuAgent::Pri),
            Actor::Smmu(SmmuAgent::Atc),
            Actor::Smmu(SmmuAgent::Response),
            Actor::Pci(Slot::device(30), 17),
            Actor::Engine(7, 512),
            Actor::Its,
            Actor::Uart,
            Actor::Rtc,
            Actor::Cpu(3),
        ];
        for actor in all {
            assert_eq!(actor.to_string().parse(), Ok(actor));
        }
        for bad in ["cpu", "cpux", "pci.20.0.0", "pci.01.8.0", "pci.01.0", "engine.1", "smmu", ""] {
            assert!(bad.parse::<Actor>().is_err(), "{bad}");
        }
    }
}
