//! What the SMMU needs of the memory system.

use thiserror::Error;

/// The memory system answered an access with an abort: nothing is there, or it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("external abort")]
pub struct Abort;

/// Physical memory as the SMMU sees it: structures, tables, queues.
///
/// Accesses are naturally aligned and at most 64 bytes. Each aligned 8-byte unit is single-copy atomic (IHI 0070
/// section 3.21.3). Contents are little-endian.
pub trait Memory {
    /// Reads `data.len()` bytes from `pa`.
    ///
    /// # Errors
    /// [`Abort`] if any byte of it is not readable memory.
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort>;

    /// Reads the 8 bytes at `pa`, as [`Memory::read`] does.
    ///
    /// # Errors
    /// [`Abort`] as for [`Memory::read`].
    #[inline]
    fn read_u64(&self, pa: u64) -> Result<u64, Abort> {
        let mut bytes = [0; 8];
        self.read(pa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes `data` to `pa`.
    ///
    /// # Errors
    /// [`Abort`] if any byte of it is not writable memory; nothing is written then.
    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort>;

    /// Writes `new` to the 8 bytes at `pa` if they hold `old`, and gives what they held.
    ///
    /// # Errors
    /// [`Abort`] as for [`Memory::write`].
    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort>;
}
