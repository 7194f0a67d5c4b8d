//! The lab device: how a guest tells the host where a scenario begins and how it ended, and gets its parameters.
//!
//! One page of 32-bit registers (64-bit accesses reach two), no interrupt, no DMA. A shell in the guest drives it with
//! `devmem`, a driver or bare-metal program with plain stores.
//!
//! | Offset | Register | Access | |
//! |---|---|---|---|
//! | 0x000 | ID | RO | 0x4241_4c53, `SLAB` |
//! | 0x004 | VERSION | RO | 1 |
//! | 0x008 | MARK | WO | what happened: see [`Mark`]; any other value does nothing |
//! | 0x00c | CODE | RW | goes with the mark, for people to read |
//! | 0x010 | PARAMS | RO | how many parameters there are |
//! | 0x100 + 8 n | PARAM n | RO | parameter n, 64 bits; 0 past the last |

use serde::{Deserialize, Serialize};

use crate::agent::Time;
use crate::bus::MmioDevice;

const ID: u32 = u32::from_le_bytes(*b"SLAB");
const VERSION: u32 = 1;
/// Parameters that there is room for.
pub const MAX_PARAMS: usize = 32;

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// 1: the scenario begins here; what is explored is from here on.
    Begin,
    /// 2: the scenario is over, and whether it went well is for others to say.
    End,
    /// 3: over, and all was as it should be.
    Pass,
    /// 4: over, and something was wrong.
    Fail,
    /// 5: a good place for a snapshot.
    Snapshot,
}

impl Mark {
    fn from_value(value: u32) -> Option<Self> {
        [Self::Begin, Self::End, Self::Pass, Self::Fail, Self::Snapshot]
            .get(value.wrapping_sub(1) as usize)
            .copied()
    }
}

/// The device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    params: Vec<u64>,
    code: u32,
    /// The mark that nobody has taken yet, and its code.
    mark: Option<(Mark, u32)>,
}

impl Lab {
    /// A device with parameters; those past [`MAX_PARAMS`] are dropped.
    pub fn new(mut params: Vec<u64>) -> Self {
        params.truncate(MAX_PARAMS);
        Self { params, code: 0, mark: None }
    }

    /// Gives it other parameters.
    pub fn set_params(&mut self, params: Vec<u64>) {
        let Self { code, mark, .. } = *self;
        *self = Self { code, mark, ..Self::new(params) };
    }

    /// Whether there is a mark to take.
    pub fn marked(&self) -> bool {
        self.mark.is_some()
    }

    /// The last mark, with the guest's code.
    pub fn take_mark(&mut self) -> Option<(Mark, u32)> {
        self.mark.take()
    }

    fn word(&self, offset: u64) -> u32 {
        match offset {
            0x00 => ID,
            0x04 => VERSION,
            0x0c => self.code,
            0x10 => self.params.len() as u32,
            0x100.. => {
                let param = self.params.get((offset as usize - 0x100) / 8).copied().unwrap_or(0);
                (param >> (offset % 8 * 8)) as u32
            }
            _ => 0,
        }
    }
}

impl MmioDevice for Lab {
    fn read(&mut self, _at: Time, offset: u64, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => u64::from(self.word(offset)),
            8 if offset.is_multiple_of(8) => {
                u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
            }
            _ => 0,
        }
    }

    fn write(&mut self, _at: Time, offset: u64, size: u8, value: u64) {
        match (size, offset) {
            (4, 0x08) => {
                self.mark = Mark::from_value(value as u32).map(|mark| (mark, self.code)).or(self.mark)
            }
            (4, 0x0c) => self.code = value as u32,
            // Both at once: the code is there before the mark.
            (8, 0x08) => {
                self.code = (value >> 32) as u32;
                self.write(0, 0x08, 4, value & 0xffff_ffff);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_carry_their_code_and_parameters_are_read_back() {
        let mut lab = Lab::new(vec![5, 0x1_0000_0002]);
        assert_eq!((lab.read(0, 0, 4), lab.read(0, 0x10, 4)), (0x4241_4c53, 2));
        assert_eq!(
            (lab.read(0, 0x100, 8), lab.read(0, 0x108, 8), lab.read(0, 0x10c, 4)),
            (5, 0x1_0000_0002, 1)
        );
        assert_eq!((lab.read(0, 0x110, 8), lab.read(0, 0xff8, 8), lab.read(0, 2, 4)), (0, 0, 0));
        lab.write(0, 0x0c, 4, 7);
        lab.write(0, 0x08, 4, 4);
        assert_eq!(lab.take_mark(), Some((Mark::Fail, 7)));
        lab.write(0, 0x08, 8, 9 << 32 | 3);
        lab.write(0, 0x08, 4, 99);
        assert_eq!(lab.take_mark(), Some((Mark::Pass, 9)));
        assert!(!lab.marked());
    }
}
