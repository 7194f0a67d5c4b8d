//! The command line's form of a [`Config`]: `key=value,…`.

use thiserror::Error;

use super::{Config, Replace, StallModel, Unaligned};

/// A bad `--smmu` option.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The key does not exist.
    #[error("unknown SMMU option '{0}'; known are preset, {known}", known = KEYS.join(", "))]
    UnknownKey(String),
    /// The preset does not exist.
    #[error("unknown SMMU preset '{0}'; known are linux, qemu, full")]
    UnknownPreset(String),
    /// There is no '=' in it.
    #[error("SMMU option '{0}' is not of the form key=value")]
    NoValue(String),
    /// The value does not fit.
    #[error("SMMU option {key}: '{value}' is not {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// The options contradict each other.
    #[error("SMMU: {0}")]
    Inconsistent(&'static str),
}

const ON_OFF: &str = "on or off";
const NUMBER: &str = "a number";

/// Reads one `value`.
trait Value: Sized {
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
}

impl Value for bool {
    const EXPECTED: &'static str = ON_OFF;
    fn read(text: &str) -> Option<Self> {
        match text {
            "on" | "1" | "true" | "yes" => Some(true),
            "off" | "0" | "false" | "no" => Some(false),
            _ => None,
        }
    }
}

impl Value for u32 {
    const EXPECTED: &'static str = NUMBER;
    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

impl Value for u64 {
    const EXPECTED: &'static str = NUMBER;
    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

impl Value for Replace {
    const EXPECTED: &'static str = "lru or random";
    fn read(text: &str) -> Option<Self> {
        match text {
            "lru" => Some(Replace::Lru),
            "random" => Some(Replace::Random),
            _ => None,
        }
    }
}

impl Value for Unaligned {
    const EXPECTED: &'static str = "granule, block or nothing";
    fn read(text: &str) -> Option<Self> {
        match text {
            "granule" => Some(Unaligned::Granule),
            "block" => Some(Unaligned::Block),
            "nothing" => Some(Unaligned::Nothing),
            _ => None,
        }
    }
}

impl Value for u16 {
    const EXPECTED: &'static str = NUMBER;
    fn read(text: &str) -> Option<Self> {
        u32::read(text).and_then(|n| n.try_into().ok())
    }
}

impl Value for u8 {
    const EXPECTED: &'static str = NUMBER;
    fn read(text: &str) -> Option<Self> {
        u32::read(text).and_then(|n| n.try_into().ok())
    }
}

impl Value for StallModel {
    const EXPECTED: &'static str = "both, none or forced";
    fn read(text: &str) -> Option<Self> {
        match text {
            "both" => Some(StallModel::Both),
            "none" => Some(StallModel::None),
            "forced" => Some(StallModel::Forced),
            _ => None,
        }
    }
}

/// Names every field once for the parser.
macro_rules! keys {
    ($($field:ident),* $(,)?) => {
        /// Keys that [`Config::parse`] knows, beside `preset`.
        pub const KEYS: &[&str] = &[$(stringify!($field)),*];

        impl Config {
            fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
                fn read<T: Value>(key: &str, value: &str) -> Result<T, ConfigError> {
                    T::read(value).ok_or(ConfigError::BadValue {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        expected: T::EXPECTED,
                    })
                }
                match key {
                    $(stringify!($field) => self.$field = read(key, value)?,)*
                    _ => return Err(ConfigError::UnknownKey(key.to_owned())),
                }
                Ok(())
            }
        }
    };
}

keys! {
    atos, vatos, ats, ats_split, atsrecerr, pri, pps, priqs, s1p, s2p, cohacc, asid16, vmid16, stall, term_razwi, vmw, st2l, cd2l, httu, hyp, sev, msi, sidsize, ssidsize, cmdqs, ecmdq, eventqs,
    had, xnx, fwb, stt, e0pd, mteperm, ril, bbml, gran4k, gran16k, gran64k, oas, vax52, ds, iidr, aidr, tlb, s2_cache, walk_cache,
    ste_cache, l1std_cache, cd_cache, l1cd_cache, replace, seed, keep_all, combined, cache_invalid, pmcg, pmcg_bits, merge, stall_suppress, stall_retry, wide_addresses, ste_truncate, cd_ipa_check, cr0_last, tlbi_unaligned,
    tlb_conflict, prefetch, strict_commands, wires, lat_cmd, lat_walk, lat_event, lat_msi, event_fifo,
    contiguous, split_fetch, gbpa_abort, page0_alias,
}

impl Config {
    /// Reads `key=value,…`. `preset=linux|qemu|full` sets all; later keys override. An empty text is the default.
    ///
    /// # Errors
    /// Says which option is wrong and what it could be.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config = Config::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) =
                option.split_once('=').ok_or_else(|| ConfigError::NoValue(option.to_owned()))?;
            if key == "preset" {
                config = match value {
                    "linux" => Config::linux(),
                    "qemu" => Config::qemu(),
                    "full" => Config::full(),
                    _ => return Err(ConfigError::UnknownPreset(value.to_owned())),
                };
            } else {
                config.option(key, value)?;
            }
        }
        config.validate()?;
        Ok(config)
    }

    /// One option beside `preset`; its words may be joined by `-` or `_`.
    fn option(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let key = key.replace('-', "_");
        if value == "unlimited"
            && let Some((_, size)) = self.caches().into_iter().find(|(name, _)| *name == key)
        {
            *size = Config::UNLIMITED;
            return Ok(());
        }
        self.set(&key, value)?;
        if key == "keep_all" && self.keep_all {
            for (_, size) in self.caches() {
                *size = Config::UNLIMITED;
            }
        }
        Ok(())
    }

    /// The caches' sizes, and the options' names.
    fn caches(&mut self) -> [(&'static str, &mut u32); 7] {
        [
            ("tlb", &mut self.tlb),
            ("s2_cache", &mut self.s2_cache),
            ("walk_cache", &mut self.walk_cache),
            ("ste_cache", &mut self.ste_cache),
            ("l1std_cache", &mut self.l1std_cache),
            ("cd_cache", &mut self.cd_cache),
            ("l1cd_cache", &mut self.l1cd_cache),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_presets_and_keys_in_order() {
        assert_eq!(Config::parse(""), Ok(Config::linux()));
        let c = Config::parse("preset=qemu, msi=on,oas=48,stall=none").unwrap();
        assert!(c.msi && !c.sev);
        assert_eq!((c.oas, c.cmdqs), (48, 19));
        assert_eq!(Config::parse("oas=48,preset=linux").unwrap().oas, 44);
    }

    #[test]
    fn keeping_all_has_no_limits() {
        let c = Config::parse("tlb=unlimited,replace=random,seed=0x10,ste-cache=2").unwrap();
        assert_eq!((c.tlb, c.replace, c.seed, c.ste_cache), (Config::UNLIMITED, Replace::Random, 16, 2));
        let c = Config::parse("keep-all=on,cd_cache=8").unwrap();
        assert_eq!((c.tlb, c.l1cd_cache, c.cd_cache), (Config::UNLIMITED, Config::UNLIMITED, 8));
        assert!(Config::parse("event_fifo=unlimited").is_err());
    }

    #[test]
    fn says_what_is_wrong() {
        let message = |text| Config::parse(text).unwrap_err().to_string();
        assert_eq!(message("ril"), "SMMU option 'ril' is not of the form key=value");
        assert_eq!(message("ril=perhaps"), "SMMU option ril: 'perhaps' is not on or off");
        assert_eq!(message("cmdqs=300"), "SMMU option cmdqs: '300' is not a number");
        assert!(message("nonsense=1").starts_with("unknown SMMU option 'nonsense'; known are preset, atos"));
        assert_eq!(message("preset=x"), "unknown SMMU preset 'x'; known are linux, qemu, full");
        assert_eq!(message("oas=45"), "SMMU: oas is 32, 36, 40, 42, 44, 48 or 52");
    }
}
