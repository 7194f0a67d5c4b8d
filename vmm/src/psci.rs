//! PSCI 1.1 by HVC (Arm DEN 0022): turning vCPUs and the machine on and off.

/// A decoded PSCI call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// PSCI_VERSION.
    Version,
    /// CPU_SUSPEND: wait for an interrupt. A power-down request is treated as standby, so its entry is not needed.
    Suspend,
    /// CPU_OFF.
    Off,
    /// CPU_ON.
    On {
        /// MPIDR affinity fields of the vCPU.
        target: u64,
        /// Its first instruction.
        entry: u64,
        /// Its x0.
        context: u64,
    },
    /// AFFINITY_INFO.
    AffinityInfo {
        /// MPIDR affinity fields of the vCPU.
        target: u64,
        /// Lowest affinity level meant.
        level: u64,
    },
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType,
    /// SYSTEM_OFF.
    SystemOff,
    /// SYSTEM_RESET, and SYSTEM_RESET2 with the architectural warm reset.
    SystemReset,
    /// PSCI_FEATURES for this function.
    Features(u32),
    /// SMCCC_VERSION.
    SmcccVersion,
    /// SMCCC_ARCH_FEATURES for this function (DEN 0028 §7.3), which SMCCC 1.1 requires.
    ArchFeatures(u32),
    /// Anything else.
    Unknown,
}

/// Return codes (DEN 0022 §5.2.2), as the guest sees them.
pub mod code {
    /// SUCCESS.
    pub const SUCCESS: u64 = 0;
    /// NOT_SUPPORTED.
    pub const NOT_SUPPORTED: u64 = -1i64 as u64;
    /// INVALID_PARAMETERS.
    pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
    /// ALREADY_ON.
    pub const ALREADY_ON: u64 = -4i64 as u64;
    /// INVALID_ADDRESS.
    pub const INVALID_ADDRESS: u64 = -9i64 as u64;
    /// AFFINITY_INFO: on.
    pub const AFFINITY_ON: u64 = 0;
    /// AFFINITY_INFO: off.
    pub const AFFINITY_OFF: u64 = 1;
    /// MIGRATE_INFO_TYPE: no trusted OS to migrate.
    pub const NO_TRUSTED_OS: u64 = 2;
    /// PSCI_VERSION 1.1.
    pub const VERSION_1_1: u64 = 0x1_0001;
    /// SMCCC_VERSION 1.1.
    pub const SMCCC_1_1: u64 = 0x1_0001;
}

const SMC64: u32 = 1 << 30;

impl Call {
    /// From the registers x0 to x3 at the HVC. 32-bit calls take their arguments' low halves.
    pub fn decode(x: [u64; 4]) -> Self {
        let function = x[0] as u32;
        let [a, b, c] = if function & SMC64 != 0 {
            [x[1], x[2], x[3]]
        } else {
            [x[1], x[2], x[3]].map(|v| u64::from(v as u32))
        };
        match function {
            0x8400_0000 => Self::Version,
            0x8400_0001 | 0xc400_0001 => Self::Suspend,
            0x8400_0002 => Self::Off,
            0x8400_0003 | 0xc400_0003 => Self::On { target: a, entry: b, context: c },
            0x8400_0004 | 0xc400_0004 => Self::AffinityInfo { target: a, level: b },
            0x8400_0006 => Self::MigrateInfoType,
            0x8400_0008 => Self::SystemOff,
            0x8400_0009 => Self::SystemReset,
            0x8400_0012 | 0xc400_0012 if a == 0 => Self::SystemReset,
            0x8400_000a => Self::Features(a as u32),
            0x8000_0000 => Self::SmcccVersion,
            0x8000_0001 => Self::ArchFeatures(a as u32),
            _ => Self::Unknown,
        }
    }

    /// PSCI_FEATURES' answer for a function: zero where it is implemented.
    pub fn features(function: u32) -> u64 {
        match Self::decode([u64::from(function), 0, 0, 0]) {
            // SMCCC_VERSION is discoverable this way; the rest is PSCI's own.
            Self::Unknown | Self::ArchFeatures(_) => code::NOT_SUPPORTED,
            _ => code::SUCCESS,
        }
    }

    /// SMCCC_ARCH_FEATURES' answer for a function: there are no workarounds to offer.
    pub fn arch_features(function: u32) -> u64 {
        match Self::decode([u64::from(function), 0, 0, 0]) {
            Self::SmcccVersion | Self::ArchFeatures(_) => code::SUCCESS,
            _ => code::NOT_SUPPORTED,
        }
    }
}

/// Index of the vCPU with these affinity fields: Aff0 counts vCPUs, all else is zero.
pub fn target_index(affinity: u64, cpus: usize) -> Option<usize> {
    usize::try_from(affinity).ok().filter(|&i| i < cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_decode_by_width() {
        let on = Call::decode([0xc400_0003, 1, 0xffff_0000_4000_0000, 7]);
        assert_eq!(on, Call::On { target: 1, entry: 0xffff_0000_4000_0000, context: 7 });
        let on = Call::decode([0x8400_0003, 1, 0xffff_0000_4000_0000, 7]);
        assert_eq!(on, Call::On { target: 1, entry: 0x4000_0000, context: 7 });
        assert_eq!(Call::decode([0x8400_0012, 0x8000_0000, 0, 0]), Call::Unknown);
        assert_eq!(Call::decode([0xdead_beef, 0, 0, 0]), Call::Unknown);
    }

    #[test]
    fn features_tell_what_there_is() {
        assert_eq!(Call::features(0xc400_0001), code::SUCCESS);
        assert_eq!(Call::features(0x8400_0005), code::NOT_SUPPORTED);
        assert_eq!(Call::features(0x8000_0000), code::SUCCESS);
        assert_eq!(Call::arch_features(0x8000_0001), code::SUCCESS);
        assert_eq!(Call::arch_features(0x8000_8000), code::NOT_SUPPORTED);
    }

    #[test]
    fn only_existing_vcpus_are_targets() {
        assert_eq!(target_index(1, 2), Some(1));
        assert_eq!(target_index(2, 2), None);
        assert_eq!(target_index(0x100, 8), None);
    }
}
