//! Commands: 16-byte entries of the command queue (chapter 4).

use serde::{Deserialize, Serialize};

use super::{bit, bits, keep};

/// Size of a command, log2 of bytes.
pub const COMMAND_SHIFT: u32 = 4;

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Operation codes that any NS SMMUv3 knows (section 4.1.1); the rest are illegal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Opcode { $($(#[$doc])* $name = $code,)* }

        impl Opcode {
            /// Of the first byte of a command.
            #[must_use]
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($code => Some(Opcode::$name),)*
                    _ => None,
                }
            }

            /// All of them, in order.
            pub const ALL: &[Opcode] = &[$(Opcode::$name),*];
        }
    };
}

opcodes! {
    PrefetchCfg = 0x01,
    PrefetchAddr = 0x02,
    CfgiSte = 0x03,
    /// CFGI_STE_RANGE, and CFGI_ALL when Range is 31.
    CfgiSteRange = 0x04,
    CfgiCd = 0x05,
    CfgiCdAll = 0x06,
    TlbiNhAll = 0x10,
    TlbiNhAsid = 0x11,
    TlbiNhVa = 0x12,
    TlbiNhVaa = 0x13,
    TlbiEl2All = 0x20,
    TlbiEl2Asid = 0x21,
    TlbiEl2Va = 0x22,
    TlbiEl2Vaa = 0x23,
    TlbiS12Vmall = 0x28,
    TlbiS2Ipa = 0x2a,
    TlbiNsnhAll = 0x30,
    AtcInv = 0x40,
    PriResp = 0x41,
    Resume = 0x44,
    StallTerm = 0x45,
    Sync = 0x46,
}

/// CMDQ_CONS.ERR: why the queue stopped (section 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Cerror {
    /// No error.
    None = 0,
    /// Illegal command.
    Ill = 1,
    /// The command could not be fetched.
    Abt = 2,
    /// An ATC invalidation that a CMD_SYNC waited for timed out.
    AtcInvSync = 3,
}

/// CMD_SYNC.CS: how completion is signalled (section 4.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// Not at all.
    None,
    /// By interrupt: an MSI if its address is not 0, else the wire.
    Irq,
    /// By an event to the CPUs.
    Sev,
}

/// One command as fetched. Accessors decode the fields of the commands that have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub [u64; 2]);

impl Command {
    /// The operation, if known.
    #[must_use]
    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::from_byte(self.0[0] as u8)
    }

    /// Whether a field that the operation does not have, or not without `ril`, is not 0 (section 4.1.5).
    #[must_use]
    pub fn has_reserved(&self, ril: bool, ds: bool) -> bool {
        const OP: u64 = 0xff;
        const SSEC: u64 = 1 << 10;
        const SUBSTREAM: u64 = 1 << 11 | 0xf_ffff << 12;
        const SID: u64 = 0xffff_ffff << 32;
        const VMID: u64 = 0xffff << 32;
        const ASID: u64 = 0xffff << 48;
        let scale = if ds { 0x3f << 20 } else { 0x1f << 20 };
        let (range, hints) = if ril { (0x1f << 12 | scale, 0xf << 8) } else { (0, 0) };
        let va = !0xfff | hints | 1;
        let defined = match self.opcode() {
            Some(Opcode::PrefetchCfg) => [OP | SSEC | SUBSTREAM | SID, 0],
            Some(Opcode::CfgiSte) => [OP | SSEC | SID, 1],
            Some(Opcode::CfgiSteRange) => [OP | SSEC | SID, 0x1f],
            Some(Opcode::CfgiCd) => [OP | SSEC | SUBSTREAM & !(1 << 11) | SID, 1],
            Some(Opcode::CfgiCdAll | Opcode::StallTerm) => [OP | SSEC | SID, 0],
            Some(Opcode::TlbiNhAll | Opcode::TlbiS12Vmall) => [OP | VMID, 0],
            Some(Opcode::TlbiNhAsid) => [OP | VMID | ASID, 0],
            Some(Opcode::TlbiNhVa) => [OP | VMID | ASID | range, va],
            Some(Opcode::TlbiNhVaa) => [OP | VMID | range, va],
            Some(Opcode::TlbiEl2All | Opcode::TlbiNsnhAll) => [OP, 0],
            Some(Opcode::TlbiEl2Asid) => [OP | ASID, 0],
            Some(Opcode::TlbiEl2Va) => [OP | ASID | range, va],
            Some(Opcode::TlbiEl2Vaa) => [OP | range, va],
            Some(Opcode::TlbiS2Ipa) => [OP | VMID | range, va & (u64::MAX >> 8)],
            Some(Opcode::Resume) => [OP | SSEC | 3 << 12 | SID, 0xffff],
            Some(Opcode::Sync) => [OP | 3 << 12 | 3 << 22 | 0xf << 24 | SID, 0x00ff_ffff_ffff_fffc],
            _ => [u64::MAX; 2],
        };
        self.0[0] & !defined[0] != 0 || self.0[1] & !defined[1] != 0
    }

    /// SSec: addresses the Secure state; illegal in a Non-secure queue.
    #[must_use]
    pub fn secure(&self) -> bool {
        bit(self.0[0], 10)
    }

    /// SSV: the SubstreamID is valid.
    #[must_use]
    pub fn ssv(&self) -> bool {
        bit(self.0[0], 11)
    }

    /// SubstreamID.
    #[must_use]
    pub fn ssid(&self) -> u32 {
        bits(self.0[0], 31, 12) as u32
    }

    /// StreamID.
    #[must_use]
    pub fn sid(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// Global of ATC_INV: whatever the PASID.
    #[must_use]
    pub fn global(&self) -> bool {
        bit(self.0[0], 9)
    }

    /// Size of ATC_INV: 2^Size pages of 4 KiB, 52 for everything.
    #[must_use]
    pub fn size(&self) -> u32 {
        bits(self.0[1], 5, 0) as u32
    }

    /// PRGIndex of PRI_RESP.
    #[must_use]
    pub fn prg_index(&self) -> u16 {
        bits(self.0[1], 8, 0) as u16
    }

    /// Resp of PRI_RESP.
    #[must_use]
    pub fn response(&self) -> u8 {
        bits(self.0[1], 13, 12) as u8
    }

    /// Leaf: only the last level of a table.
    #[must_use]
    pub fn leaf(&self) -> bool {
        bit(self.0[1], 0)
    }

    /// Range of CFGI_STE_RANGE: 2^(Range+1) StreamIDs.
    #[must_use]
    pub fn range(&self) -> u32 {
        bits(self.0[1], 4, 0) as u32
    }

    /// NUM of a TLBI.
    #[must_use]
    pub fn num(&self) -> u32 {
        bits(self.0[0], 16, 12) as u32
    }

    /// SCALE of a TLBI. Values above 39 are as 39; without IDR5.DS only the low 5 bits count.
    #[must_use]
    pub fn scale(&self) -> u32 {
        (bits(self.0[0], 25, 20) as u32).min(39)
    }

    /// VMID.
    #[must_use]
    pub fn vmid(&self) -> u16 {
        bits(self.0[0], 47, 32) as u16
    }

    /// ASID.
    #[must_use]
    pub fn asid(&self) -> u16 {
        bits(self.0[0], 63, 48) as u16
    }

    /// TTL: level of the leaf, 0 for any.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        bits(self.0[1], 9, 8) as u8
    }

    /// TG: granule of a range, 0 for none.
    #[must_use]
    pub fn tg(&self) -> u8 {
        bits(self.0[1], 11, 10) as u8
    }

    /// Address of a TLBI, or of a prefetch or ATC_INV.
    #[must_use]
    pub fn address(&self) -> u64 {
        keep(self.0[1], 63, 12)
    }

    /// Address of TLBI_S2_IPA.
    #[must_use]
    pub fn ipa(&self) -> u64 {
        keep(self.0[1], 51, 12)
    }

    /// CS; the reserved value is `None` here.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match bits(self.0[0], 13, 12) {
            0 => Some(Signal::None),
            1 => Some(Signal::Irq),
            2 => Some(Signal::Sev),
            _ => None,
        }
    }

    /// MSH of CMD_SYNC.
    #[must_use]
    pub fn msi_shareability(&self) -> u8 {
        bits(self.0[0], 23, 22) as u8
    }

    /// MSIAttr of CMD_SYNC.
    #[must_use]
    pub fn msi_attr(&self) -> u8 {
        bits(self.0[0], 27, 24) as u8
    }

    /// MSIData of CMD_SYNC.
    #[must_use]
    pub fn msi_data(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// MSIAddress of CMD_SYNC.
    #[must_use]
    pub fn msi_address(&self) -> u64 {
        keep(self.0[1], 55, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_manual_has_them() {
        let c = Command([0x1234_5678_08bf_f912, 0xffff_ffff_ffff_ffff]);
        assert_eq!(c.opcode(), Some(Opcode::TlbiNhVa));
        assert_eq!((c.asid(), c.vmid()), (0x1234, 0x5678));
        assert_eq!((c.num(), c.scale()), (0x1f, 0x0b));
        assert_eq!((c.ttl(), c.tg(), c.leaf()), (3, 3, true));
        assert_eq!(c.address(), 0xffff_ffff_ffff_f000);
        let sync = Command([0xcafe_0000_0f80_2046, 0x8000_0007]);
        assert_eq!(sync.signal(), Some(Signal::Sev));
        assert_eq!((sync.msi_shareability(), sync.msi_attr()), (2, 0xf));
        assert_eq!((sync.msi_data(), sync.msi_address()), (0xcafe_0000, 0x8000_0004));
    }

    #[test]
    fn opcodes_round_trip() {
        for &op in Opcode::ALL {
            assert_eq!(Opcode::from_byte(op as u8), Some(op));
        }
        assert_eq!(Opcode::from_byte(0), None);
    }
}
