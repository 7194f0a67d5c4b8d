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
    /// Counts time for the performance monitors, and interrupts for them.
    Pmu,
    /// Looks translations up for software.
    Atos,
}

impl SmmuAgent {
    const ALL: [Self; 8] =
        [Self::Msi, Self::Event, Self::Command, Self::Pri, Self::Atc, Self::Response, Self::Pmu, Self::Atos];

    fn name(self) -> &'static str {
        match self {
            Self::Msi => "msi",
            Self::Event => "event",
            Self::Command => "command",
            Self::Pri => "pri",
            Self::Atc => "atc",
            Self::Response => "response",
            Self::Pmu => "pmu",
            Self::Atos => "atos",
        }
    }
}

/// Something that takes steps of its own (design contract 3). Those that are due at one time step in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// An agent of an SMMU, which has a number.
    Smmu(usize, SmmuAgent),
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
    /// Whoever plugs and unplugs.
    Plug,
    /// A vCPU.
    Cpu(usize),
}

impl Actor {
    /// A number for each actor, for hashes.
    pub(crate) fn code(self) -> u64 {
        match self {
            Self::Smmu(index, agent) => (index as u64) << 16 | agent as u64,
            Self::Pci(slot, lane) => 1 << 32 | u64::from(slot.0) << 16 | lane as u64,
            Self::Engine(index, lane) => 6 << 32 | (index as u64) << 16 | lane as u64,
            Self::Its => 2 << 32,
            Self::Uart => 3 << 32,
            Self::Rtc => 4 << 32,
            Self::Plug => 7 << 32,
            Self::Cpu(cpu) => 5 << 32 | cpu as u64,
        }
    }

    /// Whether this is its name, or the beginning of it up to a dot: `smmu`, `pci.04`.
    pub fn is_called(self, name: &str) -> bool {
        let own = self.to_string();
        own.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Smmu(0, agent) => write!(f, "smmu.{}", agent.name()),
            Self::Smmu(index, agent) => write!(f, "smmu{index}.{}", agent.name()),
            Self::Pci(slot, lane) => {
                f.write_str("pci.")?;
                if let Some(port) = slot.root_port() {
                    write!(f, "{:02x}:", port.device_number())?;
                }
                write!(f, "{:02x}.{}.{lane}", slot.device_number(), slot.function_number())
            }
            Self::Engine(index, lane) => write!(f, "engine.{index}.{lane}"),
            Self::Its => f.write_str("its"),
            Self::Uart => f.write_str("uart"),
            Self::Rtc => f.write_str("rtc"),
            Self::Plug => f.write_str("plug"),
            Self::Cpu(cpu) => write!(f, "cpu{cpu}"),
        }
    }
}

/// A text that names no actor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no actor: cpuN, smmu.command, smmu.event, smmu.msi, smmu.pri, smmu.atc, smmu.response, smmu.pmu \
     (smmuN.… of SMMU N), pci.[PORT:]DEVICE.FUNCTION.LANE, engine.N.LANE, its, uart, rtc or plug"
)]
pub struct UnknownActor(String);

impl FromStr for Actor {
    type Err = UnknownActor;

    fn from_str(text: &str) -> Result<Self, UnknownActor> {
        let unknown = || UnknownActor(text.into());
        Ok(match text {
            "its" => Self::Its,
            "uart" => Self::Uart,
            "rtc" => Self::Rtc,
            "plug" => Self::Plug,
            _ => {
                if let Some(cpu) = text.strip_prefix("cpu") {
                    return cpu.parse().map(Self::Cpu).map_err(|_| unknown());
                }
                if let Some((index, agent)) = text.strip_prefix("smmu").and_then(|t| t.split_once('.')) {
                    let index = if index.is_empty() { 0 } else { index.parse().map_err(|_| unknown())? };
                    let agent = SmmuAgent::ALL.into_iter().find(|a| a.name() == agent).ok_or_else(unknown)?;
                    return Ok(Self::Smmu(index, agent));
                }
                if let Some((index, lane)) = text.strip_prefix("engine.").and_then(|t| t.split_once('.')) {
                    let number = |text: &str| text.parse().map_err(|_| unknown());
                    return Ok(Self::Engine(number(index)?, number(lane)?));
                }
                let text = text.strip_prefix("pci.").ok_or_else(unknown)?;
                let (port, text) = match text.split_once(':') {
                    Some((port, text)) => (u8::from_str_radix(port, 16).ok().filter(|&n| n < 32), text),
                    None => (Some(0), text),
                };
                let port = port.map(Slot::device).ok_or_else(unknown)?;
                let mut parts = text.splitn(3, '.');
                let mut part = |radix, most| {
                    let value = parts.next().and_then(|p| usize::from_str_radix(p, radix).ok());
                    value.filter(|&v| v <= most).ok_or_else(unknown)
                };
                let (device, function) = (part(16, 31)?, part(16, 7)?);
                Self::Pci(Slot(Slot::behind(port).0 | (device << 3 | function) as u16), part(10, usize::MAX)?)
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
            Actor::Smmu(0, SmmuAgent::Command),
            Actor::Smmu(1, SmmuAgent::Event),
            Actor::Smmu(7, SmmuAgent::Msi),
            Actor::Smmu(0, SmmuAgent::Pri),
            Actor::Smmu(0, SmmuAgent::Atc),
            Actor::Smmu(2, SmmuAgent::Response),
            Actor::Smmu(0, SmmuAgent::Pmu),
            Actor::Smmu(0, SmmuAgent::Atos),
            Actor::Pci(Slot::device(30), 17),
            Actor::Pci(Slot::behind(Slot::device(9)), 1),
            Actor::Engine(7, 512),
            Actor::Plug,
            Actor::Its,
            Actor::Uart,
            Actor::Rtc,
            Actor::Cpu(3),
        ];
        for actor in all {
            assert_eq!(actor.to_string().parse(), Ok(actor));
        }
        for bad in
            ["cpu", "cpux", "pci.20.0.0", "pci.01.8.0", "pci.01.0", "engine.1", "smmux.msi", "smmu", ""]
        {
            assert!(bad.parse::<Actor>().is_err(), "{bad}");
        }
    }
}
