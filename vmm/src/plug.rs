//! Hot plug as the command line scripts it: what comes into which root port's slot, or leaves it, and when.

use std::str::FromStr;

use devices::Time;
use devices::dma::DmaPort;
use devices::pci::{PciFunction, PciHost, PciHostState, Slot};
use serde::{Deserialize, Serialize};

use crate::options::{Disk, Span, TestDevice};

/// A PCIe root port with a hot-plug slot: `--root-port KIND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum RootPortKind {
    /// A slot inside the machine
    Internal,
    /// One whose devices a kernel does not trust (`external-facing` in the device tree)
    External,
}

/// What can be put into a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pluggable {
    /// A test device that is a PCI function.
    Test(TestDevice),
    /// virtio entropy.
    Rng,
    /// A virtio disk.
    Disk(Disk),
}

/// `--plug TIME:PORT:DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    /// Virtual time; 0 is before power-on.
    pub at: Time,
    /// Root port, from 1.
    pub port: usize,
    /// What comes.
    pub device: Pluggable,
}

/// `--unplug TIME:PORT[:surprise]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplug {
    /// Virtual time.
    pub at: Time,
    /// Root port, from 1.
    pub port: usize,
    /// At once, not when the guest has let go of it.
    pub surprise: bool,
}

fn time_and_port(time: &str, port: &str) -> Result<(Time, usize), String> {
    let port = port.parse().ok().filter(|&n| n > 0).ok_or("a root port is a number from 1")?;
    Ok((time.parse::<Span>()?.0, port))
}

impl FromStr for Plug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(time), Some(port), Some(device)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("a plug is TIME:PORT:DEVICE, as in 5s:1:engine".into());
        };
        let (at, port) = time_and_port(time, port)?;
        let device = match device {
            "rng" => Pluggable::Rng,
            "engine" => Pluggable::Test(TestDevice::Engine),
            "testdev" => Pluggable::Test(TestDevice::Testdev),
            _ => match device.strip_prefix("disk=") {
                Some(disk) => Pluggable::Disk(disk.parse()?),
                None => return Err(format!("'{device}' is not rng, engine, testdev or disk=FILE[,ro]")),
            },
        };
        Ok(Self { at, port, device })
    }
}

impl FromStr for Unplug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (time, port, surprise) = match parts[..] {
            [time, port] => (time, port, false),
            [time, port, "surprise"] => (time, port, true),
            _ => return Err("an unplug is TIME:PORT or TIME:PORT:surprise".into()),
        };
        let (at, port) = time_and_port(time, port)?;
        Ok(Self { at, port, surprise })
    }
}

/// Makes a function on a port.
pub type Make = Box<dyn FnOnce(DmaPort) -> Box<dyn PciFunction> + Send>;

/// Something that the script does.
pub struct Event {
    /// When.
    pub at: Time,
    /// To which root port.
    pub port: Slot,
    /// What.
    pub what: What,
}

/// What the script does to a root port.
pub enum What {
    /// This comes into its slot; `None` when it has.
    Plug(Option<Make>),
    /// Who is in it leaves.
    Unplug {
        /// At once.
        surprise: bool,
    },
}

/// The script of a run, as an agent: its events are steps at their times.
#[derive(Default)]
pub struct Script {
    events: Vec<Event>,
    progress: Progress,
}

/// How far a script is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Events that are done.
    done: usize,
    /// Those of them that brought somebody.
    placed: Vec<usize>,
}

impl Script {
    /// A script of these events, which need not be in order; of two at one time the first given is first.
    pub fn new(mut events: Vec<Event>) -> Self {
        events.sort_by_key(|event| event.at);
        Self { events, progress: Progress::default() }
    }

    /// When the next event is.
    pub fn next_step(&self) -> Option<Time> {
        self.events.get(self.progress.done).map(|event| event.at)
    }

    /// Does what is to be done before power-on.
    pub fn start(&mut self, pci: &mut PciHost) {
        while self.next_step() == Some(0) {
            self.step(pci, 0);
        }
    }

    /// Does the next event. One that is not possible (somebody is in the slot already, or nobody) is left out.
    pub fn step(&mut self, pci: &mut PciHost, now: Time) {
        let Some(event) = self.events.get_mut(self.progress.done) else { return };
        let possible = match &mut event.what {
            What::Unplug { surprise } => pci.unplug(now, event.port, *surprise),
            What::Plug(_) if pci.occupied(event.port) => false,
            What::Plug(make) => match make.take() {
                None => false,
                Some(make) => {
                    self.progress.placed.push(self.progress.done);
                    match now {
                        0 => pci.plug_cold(event.port, make),
                        _ => pci.plug(now, event.port, make),
                    }
                }
            },
        };
        if !possible {
            let slot = event.port.device_number();
            log::warn!("nothing to plug or unplug at {} ns at the port in slot {slot:02x}", event.at);
        }
        self.progress.done += 1;
    }

    /// How much of it is done, for a snapshot.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The last of `placed` that is for a port.
    fn occupant(&self, placed: &[usize], port: Slot) -> Option<usize> {
        let of_port = |&&index: &&usize| self.events.get(index).is_some_and(|event| event.port == port);
        placed.iter().rev().find(of_port).copied()
    }

    /// Takes a machine that has not run yet to where the script is at `progress` and the root ports are as in `state`:
    /// the functions that are in their slots then are put there, without their state. `false` if there is no such place.
    pub fn resume(&mut self, progress: Progress, pci: &mut PciHost, state: &PciHostState) -> bool {
        if progress.done > self.events.len() {
            return false;
        }
        let mut ports: Vec<Slot> = self.events.iter().map(|event| event.port).collect();
        ports.sort();
        ports.dedup();
        for port in ports {
            let then = self.occupant(&progress.placed, port).filter(|_| state.occupied(Slot::behind(port)));
            let now = self.occupant(&self.progress.placed, port);
            if then == now {
                continue;
            }
            pci.empty_cold(port);
            let Some(then) = then else { continue };
            match self.events.get_mut(then).map(|event| &mut event.what) {
                Some(What::Plug(make)) => match make.take() {
                    Some(make) => pci.plug_cold(port, make),
                    None => return false,
                },
                _ => return false,
            };
        }
        self.progress = progress;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugs_and_unplugs_parse() {
        let plug = |text: &str| text.parse::<Plug>();
        let (at, port) = (5_000_000_000, 2);
        let device = Pluggable::Test(TestDevice::Engine);
        assert_eq!(plug("5s:2:engine"), Ok(Plug { at, port, device }));
        let disk = Disk { path: "a:b".into(), read_only: true };
        assert_eq!(plug("0:1:disk=a:b,ro"), Ok(Plug { at: 0, port: 1, device: Pluggable::Disk(disk) }));
        for bad in ["", "5s", "5s:1", "5s:0:rng", "x:1:rng", "5s:1:platform-engine", "5s:1:disk="] {
            assert!(plug(bad).is_err(), "{bad}");
        }
        assert_eq!("5s:2".parse(), Ok(Unplug { at, port, surprise: false }));
        assert_eq!("5s:2:surprise".parse(), Ok(Unplug { at, port, surprise: true }));
        assert!("5s:2:now".parse::<Unplug>().is_err());
    }
}
