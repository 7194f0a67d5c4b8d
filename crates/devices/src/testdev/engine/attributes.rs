//! The halfwords of a frame's attributes field.

use smmu_model::{MemAttrs, Shareability};

use crate::dma::Attributes;

const INSTRUCTION: u16 = 1 << 10;
const PRIVILEGED: u16 = 1 << 8;
// Bit 9, non-secure: a non-secure stream's transactions are non-secure whatever they say (IHI 0070 §3.10.1).

/// What transactions with such a halfword carry; `None` for an encoding that is none.
pub(super) fn decode(half: u16, ssid: Option<u32>) -> Option<Attributes> {
    Some(Attributes {
        ssid,
        privileged: half & PRIVILEGED != 0,
        instruction: half & INSTRUCTION != 0,
        memory: memory(half)?,
    })
}

fn memory(half: u16) -> Option<MemAttrs> {
    let (outer, inner) = (half >> 4 & 15, half & 15);
    let device = |mair| Some(MemAttrs { mair, shareability: Shareability::Outer });
    match (outer, inner >> 2) {
        (0, _) => return device(0x00),
        // Gathering and reordering are bits 3 and 2; gathering alone is no Device type, and is not taken for one.
        (1, 0b00 | 0b10) => return device(0x04),
        (1, 0b01) => return device(0x08),
        (1, _) => return device(0x0c),
        _ => {}
    }
    let shareability = match half >> 14 {
        0 => Shareability::NonShareable,
        1 => Shareability::Inner,
        2 => Shareability::Outer,
        _ => return None,
    };
    let outer = nibble(outer, half & 1 << 13 != 0)?;
    let inner = nibble(inner, half & 1 << 12 != 0)?;
    Some(MemAttrs { mair: outer << 4 | inner, shareability })
}

/// Half a MAIR byte from an AxCACHE encoding of Normal memory.
fn nibble(cache: u16, transient: bool) -> Option<u8> {
    let allocate = |bits: u16| (bits & 0b0100 != 0, bits & 0b1000 != 0);
    let (read, write) = match cache {
        2 | 3 => return Some(0x4),
        6 | 7 | 10 | 11 | 14 | 15 => allocate(cache),
        _ => return None,
    };
    let write_back = cache & 1 != 0;
    let kind = match (transient, write_back) {
        (true, false) => 0b0000,
        (true, true) => 0b0100,
        (false, false) => 0b1000,
        (false, true) => 0b1100,
    };
    Some(kind | u8::from(read) << 1 | u8::from(write))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mair(half: u16) -> Option<u8> {
        memory(half).map(|m| m.mair)
    }

    #[test]
    fn memory_types() {
        assert_eq!([0x0000, 0x000c, 0x0010, 0x0014, 0x001c].map(mair), [0, 0, 4, 8, 0xc].map(Some));
        assert_eq!([0x0022, 0x0033, 0x00ff, 0x00ee].map(mair), [0x44, 0x44, 0xff, 0xbb].map(Some));
        assert_eq!([0x0076, 0x00ab].map(mair), [0xea, 0x9d].map(Some));
        assert_eq!(mair(0x30ff), Some(0x77), "transient");
        let none = [0x40, 0x50, 0x80, 0x90, 0xc0, 0xd0, 0xf0, 0xf1, 0xf4, 0x0f8, 0x0fc, 0xc0ff];
        assert_eq!(none.map(mair), [None; 12]);
    }

    #[test]
    fn shareability_and_kind() {
        let of = |half| memory(half).map(|m| m.shareability);
        assert_eq!(of(0x00ff), Some(Shareability::NonShareable));
        assert_eq!(of(0x40ff), Some(Shareability::Inner));
        assert_eq!(of(0x80ff), Some(Shareability::Outer));
        assert_eq!(of(0xc010), Some(Shareability::Outer), "ignored for a device");
        let all = decode(0x47ff, Some(5)).unwrap();
        assert_eq!((all.ssid, all.privileged, all.instruction), (Some(5), true, true));
        assert_eq!(all.memory, MemAttrs::WRITE_BACK);
    }
}
