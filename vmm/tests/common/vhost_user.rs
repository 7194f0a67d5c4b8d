//! The other side of vhost-user, as much of it as a test's backend needs: the handshake, and queues in the memory that it is
//! given.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Descriptors of a queue.
const QUEUE: u16 = 64;

/// A device that a process has been given to serve.
pub(crate) struct Given<'a> {
    stream: &'a UnixStream,
    /// All that it was given.
    pub(crate) memory: MmapRegion,
    pub(crate) memfd: File,
    /// Where the memory begins, in the addresses of descriptors.
    base: u64,
    pub(crate) queues: Vec<Queue>,
}

/// One of its queues.
#[derive(Default)]
pub(crate) struct Queue {
    /// Descriptors, available ring and used ring: where in the memory they are.
    rings: [usize; 3],
    call: Option<File>,
    seen: Cell<u16>,
    done: Cell<u16>,
}

/// A buffer of a chain.
pub(crate) struct Buffer {
    /// Where in the memory it is.
    pub(crate) at: usize,
    pub(crate) len: usize,
    /// For the device to write.
    pub(crate) write: bool,
}

fn receive(stream: &UnixStream) -> Option<(u32, Vec<u8>, Option<File>)> {
    let mut header = [0; 12];
    let (n, file) = stream.recv_with_fd(&mut header).ok()?;
    if n < header.len() {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    let mut stream = stream;
    stream.read_exact(&mut body).ok()?;
    Some((word(0), body, file))
}

fn reply(stream: &UnixStream, request: u32, body: &[u8]) {
    let words = [request, 5, body.len() as u32];
    let header: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut stream = stream;
    stream.write_all(&[&header, body].concat()).unwrap();
}

impl<'a> Given<'a> {
    /// Carries out the handshake for a device with these features of its own and so many queues. With a configuration it
    /// has that protocol feature, else none. `None`: the other side went.
    pub(crate) fn accept(
        stream: &'a UnixStream,
        features: u64,
        config: Option<&[u8]>,
        queues: usize,
    ) -> Option<Self> {
        let (mut given, mut base) = (None, 0);
        let mut all: Vec<Queue> = (0..queues).map(|_| Queue::default()).collect();
        loop {
            let (request, body, file) = receive(stream)?;
            let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
            match request {
                1 => reply(stream, 1, &(features | 1 << 30 | 1 << 32).to_le_bytes()),
                15 => reply(stream, 15, &(u64::from(config.is_some()) << 9).to_le_bytes()),
                24 => reply(stream, 24, &[&body[..12], config.unwrap()].concat()),
                5 => {
                    base = long(8);
                    let file = file.unwrap();
                    let memfd = file.try_clone().unwrap();
                    let region = MmapRegion::from_file(FileOffset::new(file, 0), long(16) as usize);
                    given = Some((memfd, region.unwrap()));
                }
                9 => all[body[0] as usize].rings = [8, 24, 16].map(|at| (long(at) - base) as usize),
                13 => all[body[0] as usize].call = file,
                18 if usize::from(body[0]) == queues - 1 => break,
                _ => {}
            }
        }
        let (memfd, memory) = given?;
        stream.set_nonblocking(true).unwrap();
        Some(Self { stream, memory, memfd, base, queues: all })
    }

    /// Whether the other side hung up.
    pub(crate) fn over(&self) -> bool {
        let mut stream = self.stream;
        matches!(stream.read(&mut [0; 64]), Ok(0))
    }

    /// All of the memory.
    pub(crate) fn all(&self) -> VolatileSlice<'_, ()> {
        self.memory.get_slice(0, self.memory.size()).unwrap()
    }

    /// The next chain of a queue: its head, and its buffers.
    pub(crate) fn next(&self, queue: usize) -> Option<(u16, Vec<Buffer>)> {
        let (all, queue) = (self.all(), &self.queues[queue]);
        let [desc, avail, _] = queue.rings;
        let seen = queue.seen.get();
        if seen == all.read_obj::<u16>(avail + 2).unwrap() {
            return None;
        }
        queue.seen.set(seen.wrapping_add(1));
        let head = all.read_obj::<u16>(avail + 4 + usize::from(seen % QUEUE) * 2).unwrap();
        let (mut at, mut buffers) = (usize::from(head), Vec::new());
        loop {
            let d = desc + at * 16;
            let address = (all.read_obj::<u64>(d).unwrap() - self.base) as usize;
            let (len, flags) = (all.read_obj::<u32>(d + 8).unwrap(), all.read_obj::<u16>(d + 12).unwrap());
            buffers.push(Buffer { at: address, len: len as usize, write: flags & 2 != 0 });
            if flags & 1 == 0 {
                return Some((head, buffers));
            }
            at = usize::from(all.read_obj::<u16>(d + 14).unwrap());
        }
    }

    /// Says that a chain is done and that so many bytes of it were written; whether or not that is so.
    pub(crate) fn put(&self, queue: usize, id: u32, len: u32) {
        let (all, queue) = (self.all(), &self.queues[queue]);
        let (used, done) = (queue.rings[2], queue.done.get());
        let at = used + 4 + usize::from(done % QUEUE) * 8;
        all.write_obj(id, at).unwrap();
        all.write_obj(len, at + 4).unwrap();
        queue.done.set(done.wrapping_add(1));
        all.write_obj(done.wrapping_add(1), used + 2).unwrap();
    }

    /// Claims to be so many chains further than it is.
    pub(crate) fn run_ahead(&self, queue: usize, chains: u16) {
        let queue = &self.queues[queue];
        self.all().write_obj(queue.done.get().wrapping_add(chains), queue.rings[2] + 2).unwrap();
    }

    /// Tells the other side to look.
    pub(crate) fn call(&self, queue: usize) {
        let mut call = self.queues[queue].call.as_ref().unwrap();
        let _ = call.write(&1u64.to_ne_bytes());
    }
}

/// Serves connection after connection at `socket`, in a thread.
pub(crate) fn listen(socket: &Path, serve: impl Fn(&UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            serve(&stream);
        }
    });
}
