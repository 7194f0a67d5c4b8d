//! What is behind a block device.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes of a sector, the unit of virtio-blk.
pub const SECTOR: u64 = 512;

/// Storage of a block device. Offsets and lengths are in bytes and lie within [`BlockBackend::size`]: the device has
/// checked them.
pub trait BlockBackend: Send + 'static {
    /// Size, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// The host's; the guest gets an I/O error.
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The host's; the guest gets an I/O error.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// The host's; the guest gets an I/O error.
    fn flush(&mut self) -> io::Result<()>;

    /// Begins what ends later, when [`super::Blk::complete`] is called with `token`. Gives the operation back if this
    /// backend does everything at once, by the other methods.
    fn submit(&mut self, _token: u64, operation: Operation) -> Option<Operation> {
        Some(operation)
    }

    /// Whether [`BlockBackend::zero`] is there.
    fn can_zero(&self) -> bool {
        true
    }

    /// What was begun since the last call, for whoever carries it out.
    fn take_submitted(&mut self) -> Vec<Submission> {
        Vec::new()
    }

    /// Makes `len` bytes at `offset` zero, giving back their storage if it can be.
    ///
    /// # Errors
    /// The host's; the guest gets an I/O error.
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        write_zeroes(self, offset, len)
    }
}

/// What a block device asks of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `len` bytes from `offset`.
    Read {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: usize,
    },
    /// Bytes to be written at `offset`.
    Write {
        /// In bytes.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// It ends when they are durable.
        through: bool,
    },
    /// All completed writes are to be durable.
    Flush,
}

/// An operation that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Names it; never used again.
    pub token: u64,
    /// What is to be done.
    pub operation: Operation,
}

/// A disk that something outside the machine serves. What it answers is input from the host.
#[derive(Clone, Debug, Default)]
pub struct RemoteBackend {
    sectors: u64,
    read_only: bool,
    submitted: Vec<Submission>,
}

impl RemoteBackend {
    /// A disk of so many sectors.
    pub fn new(sectors: u64, read_only: bool) -> Self {
        Self { sectors, read_only, submitted: Vec::new() }
    }
}

impl BlockBackend for RemoteBackend {
    fn size(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, _offset: u64, _data: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&mut self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn submit(&mut self, token: u64, operation: Operation) -> Option<Operation> {
        self.submitted.push(Submission { token, operation });
        None
    }

    fn can_zero(&self) -> bool {
        false
    }

    fn take_submitted(&mut self) -> Vec<Submission> {
        std::mem::take(&mut self.submitted)
    }
}

fn write_zeroes<B: BlockBackend + ?Sized>(backend: &mut B, offset: u64, len: u64) -> io::Result<()> {
    let zeroes = [0; 1 << 16];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(zeroes.len() as u64);
        backend.write_at(offset + done, &zeroes[..n as usize])?;
        done += n;
    }
    Ok(())
}

/// A raw image file or block device of the host.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    size: u64,
    read_only: bool,
}

impl FileBackend {
    /// Opens `path`, and locks it: a disk has one writer, or any number of readers. The last sector of a file that is
    /// not a whole number of sectors reads as if zeroes followed.
    ///
    /// # Errors
    /// When the file cannot be opened, is in use by another disk, is no file or block device, or is empty.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        // Before it is opened: opening a FIFO would wait.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file nor a block device",
            ));
        }
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        // Where a file system has no locks there are none.
        if let Err(TryLockError::WouldBlock) = locked {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "it is in use (`,ro` disks can be shared)",
            ));
        }
        let disk = Self::new(file, read_only)?;
        if disk.size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is empty"));
        }
        Ok(disk)
    }

    /// Uses an open file.
    ///
    /// # Errors
    /// When it has no size.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        // Not the metadata's length: block devices have none.
        let size = file.seek(SeekFrom::End(0))?;
        let size = size.checked_next_multiple_of(SECTOR).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(Self { file, size, read_only })
    }
}

impl BlockBackend for FileBackend {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            match self.file.read_at(&mut data[done..], offset + done as u64) {
                Ok(0) => {
                    data[done..].fill(0);
                    break;
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let (Ok(at), Ok(n)) = (i64::try_from(offset), i64::try_from(len))
            && fallocate(&self.file, flags, at, n).is_ok()
        {
            return Ok(());
        }
        // Not every file system can.
        write_zeroes(self, offset, len)
    }
}

/// A disk in the host's memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackend {
    /// The content; a multiple of [`SECTOR`] long.
    pub data: Vec<u8>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether every access fails, as a broken disk's.
    pub broken: bool,
}

impl MemoryBackend {
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = start.checked_add(len).filter(|&end| end <= self.data.len() && !self.broken);
        Ok(start..end.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

impl BlockBackend for MemoryBackend {
    fn size(&self) -> u64 {
        self.data.len() as u64 / SECTOR * SECTOR
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, data.len())?;
        data.copy_from_slice(&self.data[range]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = self.range(offset, data.len())?;
        self.data[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.range(0, 0).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let error = |path: &Path, read_only| FileBackend::open(path, read_only).unwrap_err().to_string();
        std::fs::write(&path, []).unwrap();
        assert_eq!(error(&path, true), "it is empty");
        assert!(error(dir.path(), true).contains("neither"));
        std::fs::write(&path, [0; 512]).unwrap();
        let readers = [FileBackend::open(&path, true).unwrap(), FileBackend::open(&path, true).unwrap()];
        assert!(error(&path, false).contains("in use"));
        drop(readers);
        let _writer = FileBackend::open(&path, false).unwrap();
        assert!(error(&path, true).contains("in use") && error(&path, false).contains("in use"));
    }

    #[test]
    fn files_are_padded_to_sectors_and_punched() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[7; 1000]).unwrap();
        let mut disk = FileBackend::new(file, false).unwrap();
        assert_eq!(disk.size(), 1024);
        let mut data = [1; 1024];
        disk.read_at(0, &mut data).unwrap();
        assert_eq!((data[999], data[1000], data[1023]), (7, 0, 0));
        disk.zero(512, 512).unwrap();
        disk.write_at(520, &[9]).unwrap();
        disk.flush().unwrap();
        disk.read_at(0, &mut data).unwrap();
        assert_eq!((data[511], data[512], data[520], data[999]), (7, 0, 9, 0));
    }
}
