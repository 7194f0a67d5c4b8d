//! The connection to a process: the handshake, and whether the process is still there.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::Shared;
use super::ring::{QUEUE, Ring};

const F_PROTOCOL: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;

/// How long the process may take for an answer during the handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before looking again for a process that is gone.
const PAUSE: Duration = Duration::from_millis(100);

/// A process that serves a device, or the hope for one.
pub(super) struct Backend {
    socket: PathBuf,
    /// What it writes to when it has done something.
    pub(super) call: EventFd,
    /// While there is a process. The stream is the frontend's, to see whether it is still open.
    link: Option<(Frontend, UnixStream)>,
    look_at: Instant,
    /// It did what it must not, and is not asked again.
    broken: bool,
}

/// What a process offers.
pub(super) struct Offer<'a> {
    link: &'a mut Frontend,
    /// Feature bits.
    pub(super) features: u64,
    /// Whether it tells its configuration.
    pub(super) tells: bool,
}

impl Offer<'_> {
    /// The first bytes of its configuration.
    pub(super) fn config<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        let (_, bytes) = self.link.get_config(0, N as u32, VhostUserConfigFlags::WRITABLE, &[0; N])?;
        Ok(bytes.try_into().ok())
    }
}

impl Backend {
    /// Nobody yet.
    pub(super) fn new(socket: &Path) -> Result<Self> {
        Ok(Self {
            socket: socket.into(),
            call: EventFd::new(EFD_NONBLOCK)?,
            link: None,
            look_at: Instant::now(),
            broken: false,
        })
    }

    /// Features, memory and the queues, as vhost-user has them: of the device's features at most `wanted`. Says what
    /// `identify` makes of the offer.
    pub(super) fn connect<T>(
        &mut self,
        memory: &Shared,
        rings: &[&Ring],
        wanted: u64,
        identify: impl FnOnce(Offer<'_>) -> Result<T>,
    ) -> Result<T> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut link = Frontend::from_stream(stream.try_clone()?, rings.len() as u64);
        link.set_owner()?;
        let features = link.get_features()?;
        let needed = F_PROTOCOL | F_VERSION_1;
        ensure!(features & needed == needed, "it offers neither protocol features nor virtio 1");
        let config = VhostUserProtocolFeatures::CONFIG & link.get_protocol_features()?;
        link.set_protocol_features(config)?;
        link.set_features(features & (needed | wanted))?;
        let identity = identify(Offer { link: &mut link, features, tells: !config.is_empty() })?;
        link.set_mem_table(&[memory.region()])?;
        for (index, ring) in rings.iter().enumerate() {
            link.set_vring_num(index, QUEUE)?;
            link.set_vring_base(index, 0)?;
            link.set_vring_addr(index, &ring.config())?;
            link.set_vring_call(index, &self.call)?;
            link.set_vring_kick(index, ring.kick())?;
        }
        for index in 0..rings.len() {
            link.set_vring_enable(index, true)?;
        }
        self.link = Some((link, stream));
        Ok(identity)
    }

    /// Whether there is a process.
    pub(super) fn there(&self) -> bool {
        self.link.is_some()
    }

    /// Whether it is not asked again.
    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    /// Whether there is a link whose process has hung up. What it answered before may still be taken.
    pub(super) fn hung_up(&self) -> bool {
        let Some((_, stream)) = &self.link else { return false };
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|r| r.intersects(closed))
    }

    /// The process is gone.
    pub(super) fn part(&mut self) {
        if self.link.take().is_some() {
            log::error!("{}: the backend is gone; waiting for it to come back", self.socket.display());
        }
    }

    /// Whether it is time to look for a process.
    pub(super) fn due(&mut self) -> bool {
        let due = self.link.is_none() && !self.broken && self.look_at <= Instant::now();
        if due {
            self.look_at = Instant::now() + PAUSE;
        }
        due
    }

    /// The process is not to be trusted any more.
    pub(super) fn break_off(&mut self, why: &str) {
        log::error!("{}: the backend is given up: {why}", self.socket.display());
        self.link = None;
        self.broken = true;
    }

    /// Its socket, for messages.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.socket.display()
    }
}
