//! Why a walk or a permission check failed.

use serde::{Deserialize, Serialize};

/// The kind of an MMU fault (DDI 0487, D8.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// Invalid or reserved descriptor, input address out of range, walk disabled, unusable table configuration.
    Translation,
    /// A table base, table address or output address is wider than the output size.
    AddressSize,
    /// The leaf's Access flag is clear and hardware does not manage it.
    AccessFlag,
    /// The leaf does not permit the access. Walks never give this; [`Leaf::check`](crate::Leaf::check) does.
    Permission,
    /// A descriptor could not be fetched. Walks never give this; whoever fetches does.
    External,
}

/// A fault and the lookup level that it is reported at.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error,
)]
#[error("{kind:?} fault, level {level}")]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The lookup level, -1 to 3; 0 for faults found before the first fetch.
    pub level: i8,
}

impl Fault {
    /// A fault of `kind` at `level`.
    pub const fn new(kind: FaultKind, level: i8) -> Self {
        Self { kind, level }
    }

    /// The six-bit fault status code of `ESR_ELx.ISS.{DFSC,IFSC}` and `PAR_EL1.FST`. `External` gives the code of a
    /// synchronous external abort on a translation table walk.
    pub const fn status_code(self) -> u8 {
        if self.level < 0 {
            return match self.kind {
                FaultKind::AddressSize => 0b10_1001,
                FaultKind::Translation => 0b10_1011,
                FaultKind::External => 0b01_0011,
                // No leaf exists at level -1, so neither of these can be reported there.
                FaultKind::AccessFlag => 0b00_1000,
                FaultKind::Permission => 0b00_1100,
            };
        }
        let level = self.level as u8 & 3;
        level
            | match self.kind {
                FaultKind::AddressSize => 0b00_0000,
                FaultKind::Translation => 0b00_0100,
                FaultKind::AccessFlag => 0b00_1000,
                FaultKind::Permission => 0b00_1100,
                FaultKind::External => 0b01_0100,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes() {
        assert_eq!(Fault::new(FaultKind::Translation, 0).status_code(), 0x04);
        assert_eq!(Fault::new(FaultKind::Translation, 3).status_code(), 0x07);
        assert_eq!(Fault::new(FaultKind::AccessFlag, 2).status_code(), 0x0a);
        assert_eq!(Fault::new(FaultKind::Permission, 3).status_code(), 0x0f);
        assert_eq!(Fault::new(FaultKind::External, 1).status_code(), 0x15);
        assert_eq!(Fault::new(FaultKind::Translation, -1).status_code(), 0x2b);
    }
}
