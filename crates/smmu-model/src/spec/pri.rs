//! Records of the PRI queue: 16 bytes for each page request (chapter 8).

use crate::pri::PageRequest;

/// Size of a record, log2 of bytes.
pub const PRI_SHIFT: u32 = 4;

impl PageRequest {
    /// The record as it lies in memory.
    #[must_use]
    pub fn record(&self) -> [u64; 2] {
        let (ssid, with_ssid) = match self.ssid {
            Some(ssid) => (u64::from(ssid & 0xf_ffff), true),
            None => (0, false),
        };
        // Without a PASID, X and Priv are 0.
        let word = u64::from(self.sid)
            | ssid << 32
            | u64::from(self.privileged && with_ssid) << 58
            | u64::from(self.execute && with_ssid) << 59
            | u64::from(self.read) << 60
            | u64::from(self.write) << 61
            | u64::from(self.last) << 62
            | u64::from(with_ssid) << 63;
        [word, u64::from(self.prg_index & 0x1ff) | super::keep(self.address, 63, 12)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_manual_has_them() {
        let request = PageRequest {
            sid: 0x0102_0304,
            ssid: Some(0xa_bcde),
            address: 0x1234_5678_9abc_def0,
            prg_index: 0x1ff,
            last: true,
            read: true,
            write: true,
            execute: false,
            privileged: true,
        };
        assert_eq!(request.record(), [0xf40a_bcde_0102_0304, 0x1234_5678_9abc_d1ff]);
        let without = PageRequest { ssid: None, execute: true, ..request };
        assert_eq!(without.record()[0], 0x7000_0000_0102_0304);
    }
}
