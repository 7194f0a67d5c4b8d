//! `--bounce`: which devices are bounced, and the pools that they are bounced through.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use devices::bounce::{Bounce, BounceStats, Counters, Onlooker, Pool, PoolConfig, PoolStats, SwiotlbState};
use serde::{Deserialize, Serialize};

use crate::options::Size;

/// Bytes of a pool whose size is not given: what Linux's default is.
pub const DEFAULT_SIZE: u64 = 64 << 20;
/// Bytes that the pools of a machine may have in all, growth included.
const MOST: u64 = 16 << 30;
/// Where the first pool is, as devices see it, and how far the next is behind it: further than any pool grows.
const FIRST: u64 = 1 << 40;
const APART: u64 = 1 << 40;
/// Bytes of a slot.
const SLOT: u64 = 2048;

/// One `--bounce`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BounceOption {
    /// No device is bounced.
    Off,
    /// Every virtio device is, or the one with this name.
    On {
        /// `console`, `rng`, `net`, `disk0`, `plug0` and so on; none for all.
        device: Option<String>,
        /// What the pool is to be, as far as it was said.
        pool: PoolOption,
    },
}

/// What was said of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOption {
    /// Bytes.
    pub size: Option<u64>,
    /// Bytes that may be added.
    pub dynamic: Option<u64>,
    /// The device has a pool of its own.
    pub restricted: bool,
}

fn bytes(key: &str, text: &str) -> Result<u64, String> {
    let Size(bytes) = text.parse().map_err(|e| format!("{key}: {e}"))?;
    if !bytes.is_multiple_of(SLOT) || bytes > MOST {
        return Err(format!("{key} takes multiples of 2K up to {}G, not {text}", MOST >> 30));
    }
    Ok(bytes)
}

impl FromStr for BounceOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let device = match words.next().unwrap_or_default() {
            "off" if text == "off" => return Ok(Self::Off),
            "all" => None,
            name => Some(name.to_owned()),
        };
        if let Some(name) = &device {
            let number = name.strip_prefix("disk").or(name.strip_prefix("plug"));
            let number = number.is_some_and(|n| n.parse::<u8>().is_ok());
            if !number && !["console", "rng", "net"].contains(&name.as_str()) {
                return Err(format!(
                    "it is off, all or one of console, rng, net, disk0, disk1, …, plug0, …; not `{name}`"
                ));
            }
        }
        let mut pool = PoolOption::default();
        for word in words {
            match word.split_once('=') {
                Some(("size", value)) => pool.size = Some(bytes("size", value)?).filter(|&n| n > 0),
                Some(("dynamic", value)) => pool.dynamic = Some(bytes("dynamic", value)?),
                Some(("restricted", "on")) if device.is_some() => pool.restricted = true,
                Some(("restricted", "off")) => pool.restricted = false,
                _ => {
                    return Err(format!(
                        "after a device come size=, dynamic= and restricted=on, not `{word}`"
                    ));
                }
            }
        }
        if pool.restricted && pool.dynamic.is_some_and(|n| n > 0) {
            return Err("a restricted pool does not grow".into());
        }
        Ok(Self::On { device, pool })
    }
}

/// A pool and its name: `shared`, or that of the device that it is restricted to.
struct Named {
    name: String,
    pool: Pool,
}

/// The pools of a machine.
#[derive(Default)]
pub struct Pools {
    pools: Vec<Named>,
    /// By device: which pool, and its counters once it has been made.
    devices: BTreeMap<String, (usize, Option<Counters>)>,
}

/// The state of all pools, and the counters of all devices, also of those that have been unplugged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolsState {
    pools: Vec<SwiotlbState>,
    devices: BTreeMap<String, BounceStats>,
}

/// A pool's part of the statistics.
#[derive(Clone, Debug, Serialize)]
pub struct PoolReport {
    /// `shared`, or the device that it is restricted to.
    pub name: String,
    /// Its counters.
    #[serde(flatten)]
    pub stats: PoolStats,
    /// Its devices' counters.
    pub devices: BTreeMap<String, BounceStats>,
}

impl Pools {
    /// The pools that the options ask for, in a machine with these devices.
    ///
    /// # Errors
    /// When options contradict each other, name a device that there is not, or the host has not the memory.
    pub fn new(options: &[BounceOption], devices: &[String]) -> Result<Self> {
        let mut this = Self::default();
        let (mut shared, mut members) = (PoolOption::default(), Vec::new());
        if options.len() > 1 && options.contains(&BounceOption::Off) {
            bail!("--bounce off goes with no other --bounce");
        }
        for option in options {
            let BounceOption::On { device, pool } = option else { continue };
            if let Some(name) = device {
                ensure!(devices.contains(name), "--bounce {name}: the machine has no such device");
            }
            if pool.restricted {
                let name = device.clone().unwrap_or_default();
                ensure!(!this.devices.contains_key(&name), "--bounce {name} is given twice");
                this.devices.insert(name.clone(), (this.pools.len(), None));
                this.make(name, pool)?;
                continue;
            }
            for (known, said) in [(&mut shared.size, pool.size), (&mut shared.dynamic, pool.dynamic)] {
                if let (Some(a), Some(b)) = (*known, said) {
                    ensure!(
                        a == b,
                        "--bounce: the shared pool has one size; restricted=on gives a device its own"
                    );
                }
                *known = said.or(*known);
            }
            match device {
                Some(name) => members.push(name.clone()),
                None => members.extend_from_slice(devices),
            }
        }
        members.retain(|name| !this.devices.contains_key(name));
        if !members.is_empty() {
            let index = this.pools.len();
            this.devices.extend(members.into_iter().map(|name| (name, (index, None))));
            this.make("shared".into(), &shared)?;
        }
        Ok(this)
    }

    fn make(&mut self, name: String, option: &PoolOption) -> Result<()> {
        let config = PoolConfig {
            start: FIRST + self.pools.len() as u64 * APART,
            bytes: option.size.unwrap_or(DEFAULT_SIZE),
            dynamic: option.dynamic.unwrap_or(0),
            restricted: option.restricted,
        };
        self.pools.push(Named { name, pool: Pool::new(&config).context("--bounce")? });
        Ok(())
    }

    /// The share of the device with this name, if it is bounced.
    pub fn share(&mut self, name: &str) -> Option<Bounce> {
        let (index, counters) = self.devices.get_mut(name)?;
        let bounce = self.pools.get(*index)?.pool.bounce().ok()?;
        *counters = Some(bounce.shared_counters());
        Some(bounce)
    }

    fn counters(&self) -> impl Iterator<Item = (&String, &Counters)> {
        self.devices.iter().filter_map(|(name, (_, counters))| Some((name, counters.as_ref()?)))
    }

    /// Lets somebody watch the buffers of the devices that use them.
    pub fn watch(&self, onlooker: &Arc<dyn Onlooker>) {
        self.pools.iter().for_each(|named| named.pool.watch(Arc::clone(onlooker)));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// The state of all pools.
    pub fn save(&self) -> PoolsState {
        PoolsState {
            pools: self.pools.iter().map(|named| named.pool.save()).collect(),
            devices: self.counters().map(|(name, counters)| (name.clone(), counters.get())).collect(),
        }
    }

    /// Takes over a state. `false` when it is not one of these pools.
    pub fn restore(&self, state: &PoolsState) -> bool {
        let each = |(named, state): (&Named, &SwiotlbState)| named.pool.restore(state).is_ok();
        let mut same = self.counters().map(|(name, _)| name).eq(state.devices.keys());
        same &= self.pools.len() == state.pools.len() && self.pools.iter().zip(&state.pools).all(each);
        for ((_, counters), stats) in self.counters().zip(state.devices.values()) {
            counters.set(stats);
        }
        same
    }

    /// Their counters, and those of the devices that use them.
    pub fn report(&self) -> Vec<PoolReport> {
        let report = |(index, named): (usize, &Named)| {
            let mine = self.devices.iter().filter(|(_, (pool, _))| *pool == index);
            PoolReport {
                name: named.name.clone(),
                stats: named.pool.stats(),
                devices: mine
                    .map(|(name, (_, counters))| {
                        (name.clone(), counters.as_ref().map(Counters::get).unwrap_or_default())
                    })
                    .collect(),
            }
        };
        self.pools.iter().enumerate().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(device: Option<&str>, pool: PoolOption) -> BounceOption {
        BounceOption::On { device: device.map(String::from), pool }
    }

    #[test]
    fn options_parse() {
        let none = PoolOption::default();
        assert_eq!("off".parse(), Ok(BounceOption::Off));
        assert_eq!("all".parse(), Ok(on(None, none)));
        let pool = PoolOption { size: Some(1 << 20), dynamic: Some(4096), ..none };
        assert_eq!("all,size=1M,dynamic=4K".parse(), Ok(on(None, pool)));
        let pool = PoolOption { size: Some(1 << 20), restricted: true, ..none };
        assert_eq!("disk1,size=1M,restricted=on".parse(), Ok(on(Some("disk1"), pool)));
        for bad in [
            "",
            "off,size=1M",
            "tape",
            "disk",
            "plug",
            "all,restricted=on",
            "net,size=1",
            "net,dynamic=1M,restricted=on",
        ] {
            assert!(bad.parse::<BounceOption>().is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_share_a_pool_or_have_their_own() {
        let devices = ["console", "rng", "disk0"].map(String::from);
        let option = |text: &str| text.parse::<BounceOption>().unwrap();
        let pools =
            Pools::new(&[option("all,size=1M"), option("rng,restricted=on,size=64K")], &devices).unwrap();
        assert_eq!(pools.pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["rng", "shared"]);
        assert_eq!(pools.devices.values().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(pools.pools[0].pool.stats().slots, 32);
        assert!(Pools::new(&[option("off")], &devices).unwrap().pools.is_empty());
        for bad in [["off", "all"], ["net", "all"], ["all,size=1M", "rng,size=2M"]] {
            assert!(Pools::new(&bad.map(option), &devices).is_err(), "{bad:?}");
        }
    }
}
