//! Snapshots on disk: a whole machine in one file, from which the same future follows.
//!
//! | Bytes | What |
//! |---|---|
//! | 8 | `SMMULAB` and a zero |
//! | 4 | version of the format |
//! | 8 | length of the header |
//! | … | the header: a JSON object with the program's version, the machine's options and its state |
//! | 8 | number of pages |
//! | 8 + 4096 each | offset in RAM and content of each page that is not all zeroes, in ascending order |
//! | 16 | XXH3-128 of everything before |
//!
//! Numbers are little-endian. A file of another version is refused: states of other programs mean other things.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use guest_ram::PAGE_SIZE;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::assemble::build;
use crate::machine::Machine;
use crate::options::MachineOptions;
use crate::state::MachineState;

const MAGIC: &[u8; 8] = b"SMMULAB\0";
/// Version of the format, raised whenever a state changes its meaning.
const VERSION: u32 = 2;
/// No header is longer: a damaged length must not become an allocation.
const HEADER_MAX: u64 = 1 << 30;
/// How much is read or written at once.
const BUFFER: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    smmulab: String,
    /// The guest runs a `--exec` command.
    exec: bool,
    options: MachineOptions,
    state: MachineState,
}

/// What a snapshot holds.
pub struct Snapshot {
    /// The machine, ready to go on.
    pub machine: Machine,
    /// What it was built from.
    pub options: MachineOptions,
    /// Whether its guest runs a `--exec` command.
    pub exec: bool,
}

/// Writes a machine to a file. What was at `path` before is replaced only when the snapshot is complete.
///
/// # Errors
/// When a disk could change under the snapshot, or the file cannot be written: one line for the user.
pub fn save(machine: &Machine, options: &MachineOptions, exec: bool, path: &Path) -> Result<()> {
    if let Some(disk) = options.all_disks().find(|disk| !disk.read_only) {
        bail!("a snapshot cannot keep what is on the disk {}: give it as FILE,ro", disk.path.display());
    }
    if !options.remote.is_empty() {
        bail!("a snapshot cannot keep what is on a disk that another process serves");
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write the snapshot {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(cannot)?;
    write(machine, options, exec, file.as_file_mut()).with_context(cannot)?;
    file.persist(path).map_err(|e| e.error).with_context(cannot)?;
    Ok(())
}

fn write(machine: &Machine, options: &MachineOptions, exec: bool, file: &mut File) -> Result<()> {
    let header = serde_json::to_vec(&Header {
        smmulab: env!("CARGO_PKG_VERSION").into(),
        exec,
        options: options.clone(),
        state: MachineState::save(machine),
    })?;
    let mut pages = 0u64;
    machine.board.ram.for_each_nonzero_page(|_, _| pages += 1);
    let mut out = Hashing { inner: BufWriter::with_capacity(BUFFER, file), hash: Xxh3::new() };
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&(header.len() as u64).to_le_bytes())?;
    out.put(&header)?;
    out.put(&pages.to_le_bytes())?;
    let mut written = Ok(());
    machine.board.ram.for_each_nonzero_page(|offset, page| {
        if written.is_ok() {
            written = out.put(&offset.to_le_bytes()).and_then(|()| out.put(page));
        }
    });
    written?;
    let digest = out.hash.digest128();
    out.inner.write_all(&digest.to_le_bytes())?;
    out.inner.flush()?;
    Ok(())
}

/// Makes the machine that a snapshot is of, in the state that it was in, with its options.
///
/// # Errors
/// When the file cannot be read, is damaged or of another version, or the machine cannot be built: one line for the user.
pub fn load(path: &Path) -> Result<Snapshot> {
    let file = File::open(path).with_context(|| format!("cannot read the snapshot {}", path.display()))?;
    read(file).with_context(|| format!("cannot use the snapshot {}", path.display()))
}

fn read(file: File) -> Result<Snapshot> {
    let size = file.metadata()?.len();
    let mut input = Hashing { inner: BufReader::with_capacity(BUFFER, file), hash: Xxh3::new() };
    let mut magic = [0; 8];
    input.get(&mut magic)?;
    ensure!(magic == *MAGIC, "it is not a snapshot");
    let version = u32::from_le_bytes(input.array()?);
    ensure!(
        version == VERSION,
        "it is of version {version} of the format, and this program reads version {VERSION}"
    );
    let length = u64::from_le_bytes(input.array()?);
    ensure!(length <= HEADER_MAX.min(size), "it is damaged");
    let mut header = vec![0; length as usize];
    input.get(&mut header)?;
    let header: Header = serde_json::from_slice(&header).context("it is damaged, or of another program")?;
    let Header { smmulab, exec, options, state } = header;
    ensure!(
        smmulab == env!("CARGO_PKG_VERSION"),
        "it is of smmulab {smmulab}, not {}",
        env!("CARGO_PKG_VERSION")
    );
    options.check().map_err(anyhow::Error::msg)?;
    let mut machine = build(&options)?;
    let pages = u64::from_le_bytes(input.array()?);
    let ram = machine.board.ram.clone();
    let mut page = [0; PAGE_SIZE];
    for _ in 0..pages {
        let offset = u64::from_le_bytes(input.array()?);
        input.get(&mut page)?;
        let fits = offset.checked_add(ram.base()).is_some_and(|pa| ram.write(pa, &page));
        ensure!(fits, "it is damaged");
    }
    let digest = input.hash.digest128();
    let mut end = [0; 16];
    input.get(&mut end)?;
    let complete = u128::from_le_bytes(end) == digest && input.inner.read(&mut [0])? == 0;
    ensure!(complete, "it is damaged: its checksum is wrong");
    state.restore(&mut machine)?;
    Ok(Snapshot { machine, options, exec })
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hash: Xxh3,
}

impl<T: Write> Hashing<T> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Hashing<T> {
    fn get(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).context("it is cut short")?;
        self.hash.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.get(&mut bytes)?;
        Ok(bytes)
    }
}
