//! Disks and networks that other processes serve by vhost-user.
//!
//! A process is given a bounce pool of its device's own, and nothing else: its memory is a memfd, and in it are the shadow
//! virtqueues and what is mapped of each operation or frame while the process has it. What it answers is taken out of
//! the pool when it says that it is done, and is input to the machine from then on; what it writes later is not looked
//! at. It may die at any time, and is looked for until it is there again.

mod blk;
mod link;
mod memory;
mod net;
mod ring;

pub use blk::{Answer, Identity, VhostDisk};
pub use net::VhostNet;
