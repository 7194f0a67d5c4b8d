//! Identification registers of the GIC's frames (IHI 0069 12.1.4).

/// GICD_IIDR, GICR_IIDR, GITS_IIDR: implementer Arm, nothing else said.
pub(crate) const IIDR: u64 = 0x43b;
/// Part number of the distributor.
pub(crate) const GICD: u16 = 0x492;
/// Part number of a redistributor.
pub(crate) const GICR: u16 = 0x493;
/// Part number of the ITS.
pub(crate) const GITS: u16 = 0x494;

/// The word at `offset` of a 64 KiB frame's identification space: PIDR4-7, PIDR0-3 (ArchRev 3 in PIDR2), CIDR0-3; zero
/// elsewhere.
pub(crate) fn component(offset: u64, part: u16) -> u64 {
    match offset {
        0xffd0 => 0x44,
        0xffe0 => u64::from(part & 0xff),
        0xffe4 => 0xb0 | u64::from(part >> 8),
        0xffe8 => 0x3b,
        0xfff0 => 0x0d,
        0xfff4 => 0xf0,
        0xfff8 => 0x05,
        0xfffc => 0xb1,
        _ => 0,
    }
}
