//! The host's network by passt, which needs no privileges: Ethernet frames over a UNIX stream, each behind its length
//! as 32 bits big-endian.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{setsockopt, sockopt};

use super::Wire;

/// The longest frame either side sends: passt's default MTU is 65520.
const MAX_FRAME: usize = 65_535;
/// What may wait for passt to take it; more is dropped, as a full link would.
const MAX_QUEUED: usize = 4 << 20;

/// Bytes that passt may send at once: as much as the largest window that a guest announces.
const SEND_BUFFER: usize = 8 << 20;

/// The guest's address, its gateway (which is also the host's loopback), and the resolver.
const ADDRESS: [&str; 14] = [
    "--address",
    "10.0.2.15",
    "--netmask",
    "24",
    "--gateway",
    "10.0.2.2",
    "--mac-addr",
    "52:55:0a:00:02:02",
    "--dns",
    "10.0.2.3",
    "--dns-forward",
    "10.0.2.3",
    "--foreground",
    "--quiet",
];

/// A running passt. Dropping it ends the process.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    stream: UnixStream,
    received: Vec<u8>,
    queued: VecDeque<u8>,
    dead: bool,
}

impl Passt {
    /// Starts passt.
    ///
    /// # Errors
    /// When it is not installed or ends at once, for instance because the host has no network at all.
    pub fn start() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket for passt")?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        // passt throws away what its socket does not take at once, and sends all of a window again, unhurried by congestion, for each
        // acknowledgement that a gap brings. The host may allow less (net.core.wmem_max).
        let _ = setsockopt(&theirs, sockopt::SndBuf, &SEND_BUFFER);
        // Only the child may inherit it; nothing else is started between here and the spawn.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot hand a socket to passt")?;
        let mut command = Command::new("passt");
        command.arg("--fd").arg(theirs.as_raw_fd().to_string()).args(ADDRESS);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                bail!("--net needs passt, which is not installed (Debian package passt)")
            }
            Err(e) => return Err(e).context("cannot start passt"),
        };
        drop(theirs);
        Ok(Self { child, stream: ours, received: Vec::new(), queued: VecDeque::new(), dead: false })
    }

    fn take_frame(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_be_bytes(*self.received.first_chunk()?) as usize;
        if length > MAX_FRAME {
            self.died("it sent a frame that is too long");
            self.received.clear();
            return None;
        }
        let frame = self.received.get(4..4 + length)?.to_vec();
        self.received.drain(..4 + length);
        Some(frame)
    }

    fn died(&mut self, why: &str) {
        if !self.dead {
            log::error!("passt is gone: {why}; the guest's network stays silent");
        }
        self.dead = true;
        self.queued.clear();
    }
}

impl Wire for Passt {
    fn send(&mut self, frame: &[u8]) {
        if frame.len() > MAX_FRAME || self.queued.len() + frame.len() + 4 > MAX_QUEUED || self.dead {
            return;
        }
        self.queued.extend((frame.len() as u32).to_be_bytes());
        self.queued.extend(frame);
        self.flush();
    }

    fn flush(&mut self) {
        while !self.queued.is_empty() && !self.dead {
            let (front, _) = self.queued.as_slices();
            match self.stream.write(front) {
                Ok(0) => self.died("it closed its socket"),
                Ok(n) => drop(self.queued.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.died(&e.to_string()),
            }
        }
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.take_frame() {
            return Some(frame);
        }
        let mut buffer = [0; 1 << 16];
        while !self.dead {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.died("it closed its socket"),
                Ok(n) => {
                    self.received.extend_from_slice(&buffer[..n]);
                    if let Some(frame) = self.take_frame() {
                        return Some(frame);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.died(&e.to_string()),
            }
        }
        None
    }
}

impl AsRawFd for Passt {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// passt answers an ARP request for its gateway.
    #[test]
    fn the_gateway_answers() {
        let mut passt = match Passt::start() {
            Ok(passt) => passt,
            Err(e) => {
                println!("SKIPPED: {e}");
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{e}");
                return;
            }
        };
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let mut arp = vec![0xff; 6];
        arp.extend(mac);
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(mac);
        arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        passt.send(&arp);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if let Some(frame) = passt.receive()
                && frame.get(12..14) == Some(&[8, 6])
            {
                assert_eq!(frame[6..12], [0x52, 0x55, 0x0a, 0, 2, 2]);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no answer");
    }
}
