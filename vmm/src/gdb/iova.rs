//! Memory at the address that a device uses: translated by a copy of its SMMU, so that nothing of the run changes.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use smmu_model::{AccessKind, LookOnly, Progress, Transaction};

use crate::machine::Machine;

/// The most bytes that are shown at once.
const MOST: u64 = 4096;
/// Bytes of a line.
const LINE: usize = 16;

/// What `monitor iova` asks for: a stream, an address and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    sid: u32,
    ssid: Option<u32>,
    address: u64,
    len: u64,
}

impl Request {
    /// `STREAM[:SUBSTREAM] ADDRESS [LENGTH]`; numbers are decimal, or hexadecimal behind `0x`.
    ///
    /// # Errors
    /// When that is not what it says.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut word = || words.next();
        let stream = word().context("which StreamID?")?;
        let address = word().context("which address?")?;
        let len = word().map_or(Ok(64), number)?;
        let (sid, ssid) = match stream.split_once(':') {
            Some((sid, ssid)) => (sid, Some(u32::try_from(number(ssid)?)?)),
            None => (stream, None),
        };
        ensure!((1..=MOST).contains(&len), "between 1 and {MOST} bytes");
        Ok(Self { sid: u32::try_from(number(sid)?)?, ssid, address: number(address)?, len })
    }
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("`{text}` is no number"))
}

/// What a device that reads there would get, in lines: the physical address of each piece, and the bytes.
///
/// # Errors
/// When no device has the stream, or its access would fault.
pub(super) fn look(machine: &Machine, request: Request) -> Result<String> {
    let board = &machine.board;
    let smmu = board.smmus.iter().find(|smmu| smmu.has(request.sid, board.pci.fabric()));
    let mut out = String::new();
    let (mut at, mut left) = (request.address, request.len);
    while left > 0 {
        let (pa, bytes) = match smmu {
            // Past no SMMU, addresses are physical.
            None => (at, left),
            Some(smmu) => {
                // A copy is not watched, and what it caches is lost with it.
                let mut copy = smmu.smmu().clone();
                let memory = LookOnly(|pa, data: &mut [u8]| board.ram.read(pa, data));
                let transaction = Transaction::new(request.sid, at, AccessKind::Read);
                let mut progress = copy.begin(&Transaction { ssid: request.ssid, ..transaction });
                loop {
                    match progress {
                        Progress::Walking(id) => progress = copy.step(id, &memory),
                        Progress::Latched(_, translation) => break (translation.pa, translation.bytes),
                        Progress::Stalled(_) => bail!("{at:#x}: a read stalls on a fault"),
                        Progress::Aborted => bail!("{at:#x}: a read is terminated with an abort"),
                        Progress::Discarded => bail!("{at:#x}: a read is terminated, and gives zeroes"),
                    }
                }
            }
        };
        let count = bytes.min(left);
        let mut data = vec![0; count as usize];
        ensure!(board.ram.read(pa, &mut data), "{at:#x}: there is no memory at physical address {pa:#x}");
        let _ = writeln!(out, "{at:#x} is at physical address {pa:#x}");
        for (line, bytes) in data.chunks(LINE).enumerate() {
            let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(out, "{:#x}: {}", at.wrapping_add((line * LINE) as u64), text.join(" "));
        }
        at = at.wrapping_add(count);
        left -= count;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        let request = |sid, ssid, address, len| Request { sid, ssid, address, len };
        assert_eq!(Request::parse("0x20 0x1000").unwrap(), request(32, None, 0x1000, 64));
        assert_eq!(Request::parse("8:3 4096 16").unwrap(), request(8, Some(3), 4096, 16));
        for bad in ["", "8", "x 0", "8 0x", "8 0 0", "8 0 5000", "8: 0", "0x100000000 0"] {
            assert!(Request::parse(bad).is_err(), "{bad}");
        }
    }
}
