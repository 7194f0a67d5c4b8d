//! The two memories that bytes move between: the pool's own, and the original's.

use vm_memory::bitmap::{BS, Bitmap, BitmapSlice};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, MmapRegion,
    Permissions, VolatileMemory, VolatileSlice,
};

/// Memory that a pool lives in. Dropping it gives the memory back; a pool's is dropped when nobody can be using it.
pub trait Memory: Send + Sync + 'static {
    /// Tracks which bytes have been written.
    type B: Bitmap;

    /// The address of the first byte, as the device sees it. A multiple of [`crate::IO_TLB_SIZE`].
    fn start(&self) -> u64;

    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `len` bytes from `offset`, which the caller has checked to be inside.
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_, BS<'_, Self::B>>;
}

/// Where further pools get their memory from.
pub trait Provider<M>: Send + Sync {
    /// `bytes` of memory that nothing else uses, and no other pool; aligned to `align`, a power of two of at least
    /// [`crate::PAGE_SIZE`]; none of it above the address `limit`. `None` when there is none. Called while mappings go on,
    /// by whatever thread maps or grows.
    fn allocate(&self, bytes: usize, align: u64, limit: u64) -> Option<M>;

    /// `bytes` of memory that a saved pool had at `start`, for one that takes its place
    /// ([`crate::Swiotlb::restore`]). `None` when there is none; a provider that cannot do it needs to do nothing.
    fn allocate_at(&self, _start: u64, _bytes: usize) -> Option<M> {
        None
    }
}

/// The original buffer cannot be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the original buffer at {address:#x} cannot be accessed")]
pub struct Fault {
    /// Start of the access.
    pub address: u64,
}

/// Memory that holds the originals: what the device would have accessed without a bounce pool. Implemented for all of
/// vm-memory's `GuestMemory`.
pub trait Original {
    /// Where a buffer is, as far as that can be said before it is read.
    type Place<'a>
    where
        Self: 'a;

    /// Finds the `len` bytes at `address`. A mapping does so before it takes its slots: the processor then does not wait for
    /// it between the lock and the copy.
    fn find(&self, address: u64, len: usize) -> Self::Place<'_>;

    /// Copies from `address` on, which was found to be `place`, into the whole of `to`.
    ///
    /// # Errors
    /// Some of it cannot be read; `to` is then partly written.
    fn read<'a, B: BitmapSlice>(
        &'a self,
        place: Self::Place<'a>,
        address: u64,
        to: &VolatileSlice<'_, B>,
    ) -> Result<(), Fault>;

    /// Copies the whole of `from` to `address`.
    ///
    /// # Errors
    /// Some of it cannot be written; what comes before has been.
    fn write<B: BitmapSlice>(&self, address: u64, from: &VolatileSlice<'_, B>) -> Result<(), Fault>;
}

/// A buffer that is in one piece of memory without an IOMMU before it, as most are: found with less ado than by the slices
/// of any buffer.
#[inline]
fn plain<T: GuestMemory + ?Sized>(memory: &T, address: u64, len: usize) -> Option<Plain<'_, T>> {
    let address = GuestAddress(address);
    let memory = memory.physical_memory()?;
    // Most memories have few regions. With these, comparisons that a processor can predict are faster than a search.
    let mut few = memory.iter().take(4);
    let region = few
        .find(|region| address.0.wrapping_sub(region.start_addr().0) < region.len())
        .or_else(|| memory.find_region(address))?;
    region.get_slice(MemoryRegionAddress(address.0.wrapping_sub(region.start_addr().0)), len).ok()
}

/// A slice of the memory that `T` is, or gives access to.
pub type Plain<'a, T> = VolatileSlice<
    'a,
    BS<'a, <<<T as GuestMemory>::PhysicalMemory as GuestMemoryBackend>::R as GuestMemoryRegion>::B>,
>;

impl<T: GuestMemory + ?Sized> Original for T {
    type Place<'a>
        = Option<Plain<'a, T>>
    where
        Self: 'a;

    #[inline]
    fn find(&self, address: u64, len: usize) -> Self::Place<'_> {
        plain(self, address, len)
    }

    #[inline]
    fn read<'a, B: BitmapSlice>(
        &'a self,
        place: Self::Place<'a>,
        address: u64,
        to: &VolatileSlice<'_, B>,
    ) -> Result<(), Fault> {
        match place {
            Some(from) => from.copy_to_volatile_slice(to.clone()),
            None => in_parts(self, address, to.len(), Permissions::Read, |done, part| {
                part.copy_to_volatile_slice(to.subslice(done, part.len()).ok()?);
                Some(())
            })?,
        }
        Ok(())
    }

    #[inline]
    fn write<B: BitmapSlice>(&self, address: u64, from: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        match plain(self, address, from.len()) {
            Some(to) => from.copy_to_volatile_slice(to),
            None => in_parts(self, address, from.len(), Permissions::Write, |done, part| {
                from.subslice(done, part.len()).ok()?.copy_to_volatile_slice(part);
                Some(())
            })?,
        }
        Ok(())
    }
}

/// Any buffer, in the parts that it has: `copy` is given each, and how many bytes came before it.
#[cold]
#[inline(never)]
fn in_parts<'a, T: GuestMemory + ?Sized>(
    memory: &'a T,
    address: u64,
    len: usize,
    access: Permissions,
    copy: impl Fn(usize, VolatileSlice<'a, BS<'a, T::Bitmap>>) -> Option<()>,
) -> Result<(), Fault> {
    let fault = Fault { address };
    let mut done = 0;
    for part in memory.get_slices(GuestAddress(address), len, access).map_err(|_| fault)? {
        let part = part.map_err(|_| fault)?;
        let bytes = part.len();
        copy(done, part).ok_or(fault)?;
        done += bytes;
    }
    if done == len { Ok(()) } else { Err(fault) }
}

/// Pool memory that is a mapping of this process: anonymous, or anything else vm-memory can map (a memfd to share with
/// a backend in another process).
#[derive(Debug)]
pub struct PoolMemory {
    start: u64,
    region: MmapRegion,
}

impl PoolMemory {
    /// `bytes` of fresh zeroed memory that the device sees at `start`.
    ///
    /// # Errors
    /// The host has no memory.
    pub fn anonymous(start: u64, bytes: usize) -> Result<Self, MmapRegionError> {
        Ok(PoolMemory { start, region: MmapRegion::new(bytes)? })
    }

    /// The memory of `region`, which the device sees at `start`.
    pub fn new(start: u64, region: MmapRegion) -> Self {
        PoolMemory { start, region }
    }
}

impl Memory for PoolMemory {
    type B = ();

    #[inline]
    fn start(&self) -> u64 {
        self.start
    }

    #[inline]
    fn len(&self) -> usize {
        self.region.size()
    }

    #[inline]
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_, ()> {
        self.region.get_slice(offset, len).expect("a range inside the pool")
    }
}

/// Overwrites `range` of `slice` with zeroes.
pub(crate) fn zero<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    const ZEROES: [u8; crate::IO_TLB_SIZE] = [0; crate::IO_TLB_SIZE];
    let mut done = 0;
    while done < slice.len() {
        let n = ZEROES.len().min(slice.len() - done);
        slice.write_slice(&ZEROES[..n], done).expect("a range inside the slice");
        done += n;
    }
}
