//! `--ats`: PCIe ATS of the machine's functions, and of the root complex between them and the SMMU.

use std::str::FromStr;

use devices::dma::{AtcConfig, Denied, Replacement, Retention};
use devices::pci::AtsOptions;
use serde::{Deserialize, Serialize};

use crate::options::Span;

/// `--ats on|KEY=VALUE,…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ats {
    /// What every function has.
    pub function: AtsOptions,
    /// How long the root complex waits for a function to confirm an invalidation, in ns of virtual time. The PCIe
    /// specification's minute is longer than any driver's patience.
    pub timeout: u64,
}

/// Page requests that a test engine can have outstanding.
const PAGE_REQUESTS: u32 = 32;

impl Default for Ats {
    fn default() -> Self {
        let function = AtsOptions { atc: AtcConfig::default(), pri: Some(PAGE_REQUESTS) };
        Self { function, timeout: 60_000_000_000 }
    }
}

const KEYS: &str = "an --ats option is on or KEY=VALUE,… of: entries=N|unlimited, replacement=lru|random, \
     retention=keep-all|honest, denied=untranslated|abort, confirm=TIME|never, timeout=TIME, pri=N (0: no page requests)";

impl FromStr for Ats {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ats = Self::default();
        if text == "on" {
            return Ok(ats);
        }
        let atc = &mut ats.function.atc;
        for option in text.split(',') {
            let time = |value: &str| value.parse::<Span>().map(|span| span.0);
            match option.split_once('=').ok_or(KEYS)? {
                ("entries", "unlimited") => atc.entries = u32::MAX,
                ("entries", n) => atc.entries = n.parse().map_err(|_| KEYS)?,
                ("replacement", "lru") => atc.replacement = Replacement::Lru,
                ("replacement", "random") => atc.replacement = Replacement::Random(0),
                ("retention", "keep-all") => atc.retention = Retention::KeepAll,
                ("retention", "honest") => atc.retention = Retention::Honest,
                ("denied", "untranslated") => atc.denied = Denied::Untranslated,
                ("denied", "abort") => atc.denied = Denied::Abort,
                ("confirm", "never") => atc.confirm = None,
                ("confirm", delay) => atc.confirm = Some(time(delay)?),
                ("timeout", limit) => ats.timeout = time(limit)?,
                ("pri", n) => {
                    let n = n.parse().map_err(|_| KEYS)?;
                    ats.function.pri = (n > 0).then_some(n);
                }
                _ => return Err(KEYS.into()),
            }
        }
        Ok(ats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse() {
        assert_eq!("on".parse(), Ok(Ats::default()));
        let ats: Ats = "entries=unlimited,confirm=never,timeout=5ms,pri=0".parse().unwrap();
        assert_eq!((ats.function.atc.entries, ats.function.atc.confirm), (u32::MAX, None));
        assert_eq!((ats.timeout, ats.function.pri), (5_000_000, None));
        for bad in ["", "off", "entries", "entries=x", "confirm=soon", "pri=-1"] {
            assert!(bad.parse::<Ats>().is_err(), "{bad}");
        }
    }
}
