//! Disks that another process serves by vhost-user: QEMU's storage daemon, which is killed in mid-flight, and a backend of
//! our own, which lies.

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::vhost_user::{Given, listen};
use common::{random_file, skip};
use devices::pci::Slot;
use devices::virtio::{Operation, Submission};
use vm_memory::Bytes;
use vmm::edge::{Answer, VhostDisk};

const SLOT: Slot = Slot(4 << 3);
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until as many operations as that have ended.
fn answers(disk: &mut VhostDisk, count: usize) -> Vec<Answer> {
    let (start, mut all) = (Instant::now(), Vec::new());
    while all.len() < count {
        all.extend(disk.poll());
        assert!(start.elapsed() < PATIENCE, "{} of {count} answers", all.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    all
}

fn connect(socket: &Path) -> VhostDisk {
    let start = Instant::now();
    loop {
        match VhostDisk::connect(socket, SLOT) {
            Ok(disk) => return disk,
            Err(e) => assert!(start.elapsed() < PATIENCE, "{e:#}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// QEMU's storage daemon with one disk; ends when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(disk: &Path, socket: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=d0,filename={}", disk.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e0,node-name=d0,writable=on,addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self(child)),
            Err(e) => {
                skip(&format!("no qemu-storage-daemon (Debian package qemu-system-common): {e}"));
                None
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(token: u64, data: &[u8]) -> Submission {
    let (offset, data) = (token * data.len() as u64, data.to_vec());
    Submission { token, operation: Operation::Write { offset, data, through: token.is_multiple_of(2) } }
}

#[test]
fn a_backend_killed_in_mid_flight_and_started_again_loses_no_acknowledged_write() {
    const LEN: usize = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("disk"), dir.path().join("socket"));
    random_file(&file, 32 << 20, 5).unwrap();
    let Some(mut daemon) = Daemon::start(&file, &socket) else { return };
    let mut disk = connect(&socket);
    assert_eq!((disk.identity().sectors, disk.identity().read_only), (65536, false));
    let content = |token: u64| -> Vec<u8> { (0..LEN).map(|i| (i as u64 * 13 + token * 7) as u8).collect() };
    let mut acknowledged = Vec::new();
    let mut next = 0;
    for round in 0..6 {
        // More than is in flight at a time.
        for _ in 0..60 {
            disk.submit(vec![write(next, &content(next))]);
            next += 1;
        }
        acknowledged.extend(answers(&mut disk, 10 + round));
        // SIGKILL, with operations on their way.
        drop(daemon);
        let outstanding = next as usize - acknowledged.len();
        daemon = Daemon::start(&file, &socket).unwrap();
        acknowledged.extend(answers(&mut disk, outstanding));
        assert_eq!(disk.slots_used(), 0, "no slot is lost");
        let stored = std::fs::read(&file).unwrap();
        for answer in &acknowledged {
            assert_eq!(answer.data.as_deref(), Some(&[][..]), "{answer:?}");
            let at = answer.token as usize * LEN;
            assert!(stored[at..at + LEN] == content(answer.token), "write {} is lost", answer.token);
        }
    }
    assert_eq!(acknowledged.len(), 360);
    // And it reads.
    disk.submit(vec![Submission {
        token: 1000,
        operation: Operation::Read { offset: LEN as u64, len: LEN },
    }]);
    assert_eq!(answers(&mut disk, 1), [Answer { token: 1000, data: Some(content(1)) }]);
    disk.submit(vec![Submission { token: 1001, operation: Operation::Flush }]);
    assert_eq!(answers(&mut disk, 1), [Answer { token: 1001, data: Some(Vec::new()) }]);
    // What cannot be read is an error of that operation.
    let beyond = Operation::Read { offset: 32 << 20, len: 512 };
    disk.submit(vec![Submission { token: 1002, operation: beyond }]);
    assert_eq!(answers(&mut disk, 1), [Answer { token: 1002, data: None }]);
    assert_eq!(disk.slots_used(), 0);
}

/// What our backend does with what it is given.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    Nothing,
    /// It wrote more than there is room for.
    Long,
    /// It wrote less than was asked for.
    Short,
    /// It is done with something that it was not given.
    Stranger,
    /// It is done twice.
    Twice,
    /// Its used ring runs ahead.
    Ahead,
    /// It makes the memory shorter, and fills what it was given with nonsense.
    Vandal,
}

/// Serves one connection of a disk of 64 sectors of the byte 9.
fn serve(stream: &UnixStream, lie: Lie) {
    let Some(given) = Given::accept(stream, 1 << 9, Some(&64u64.to_le_bytes()), 1) else { return };
    let all = given.all();
    if lie == Lie::Vandal {
        assert!(given.memfd.set_len(4096).is_err(), "the memory can be made shorter");
    }
    while !given.over() {
        std::thread::sleep(Duration::from_millis(1));
        while let Some((head, buffers)) = given.next(0) {
            let head = u32::from(head);
            let mut len = 0;
            for (n, buffer) in buffers.iter().enumerate().filter(|(_, b)| b.write) {
                let byte = if n == buffers.len() - 1 { 0 } else { 9 };
                all.write_slice(&vec![byte; buffer.len], buffer.at).unwrap();
                len += buffer.len as u32;
            }
            match lie {
                Lie::Nothing | Lie::Vandal => given.put(0, head, len),
                Lie::Long => given.put(0, head, u32::MAX),
                Lie::Short => given.put(0, head, 1),
                Lie::Stranger => given.put(0, u32::MAX, len),
                Lie::Twice => {
                    given.put(0, head, len);
                    given.put(0, head, len);
                }
                Lie::Ahead => given.run_ahead(0, 1000),
            }
            given.call(0);
            if lie == Lie::Vandal {
                // After it said that it was done: nobody may look any more.
                all.write_slice(&[0xee; 2048], all.len() - 4096).unwrap();
            }
        }
    }
}

fn backend(lie: Lie, dir: &Path) -> PathBuf {
    let socket = dir.join("socket");
    listen(&socket, move |stream| serve(stream, lie));
    socket
}

#[test]
fn a_backend_that_lies_is_an_error_and_loses_no_slot() {
    let read = |token| Submission { token, operation: Operation::Read { offset: 0, len: 4096 } };
    for lie in [Lie::Nothing, Lie::Long, Lie::Short, Lie::Stranger, Lie::Twice, Lie::Ahead, Lie::Vandal] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = connect(&backend(lie, dir.path()));
        disk.submit((0..40).map(read).collect());
        let all = answers(&mut disk, 40);
        let good = all.iter().filter(|a| a.data.as_deref() == Some(&[9; 4096][..])).count();
        let bad = all.iter().filter(|a| a.data.is_none()).count();
        assert_eq!(good + bad, 40, "an answer is right or an error");
        match lie {
            Lie::Nothing | Lie::Vandal => assert_eq!(bad, 0),
            Lie::Long | Lie::Short | Lie::Stranger | Lie::Ahead => assert_eq!(good, 0),
            Lie::Twice => assert!(bad > 0),
        }
        assert_eq!(disk.slots_used(), 0, "no slot is lost");
        // One that is given up is not asked again: an error at once.
        if matches!(lie, Lie::Stranger | Lie::Twice | Lie::Ahead) {
            disk.submit(vec![read(99)]);
            assert_eq!(disk.poll(), [Answer { token: 99, data: None }]);
        }
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = VhostDisk::connect(&dir.path().join("socket"), SLOT);
    assert!(nobody.is_err());
    let socket = dir.path().join("closed");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            drop(stream)
        }
    });
    assert!(VhostDisk::connect(&socket, SLOT).is_err());
}
