//! gdb on a run that is repeatable: forwards, and backwards by running again from the beginning.

mod iova;
mod target;
mod timeless;

use std::net::TcpListener;

use anyhow::{Context, Result, anyhow};
use gdbstub::stub::GdbStub;

pub use timeless::{Stepped, Timeless};

use crate::say::say;
use target::{Events, Target};

/// Waits for gdb at `address`, and serves it until it leaves.
///
/// # Errors
/// When nobody can connect there, or the connection breaks.
pub fn serve(address: &str, run: Timeless) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    say(format!("waiting for gdb: target remote {}", listener.local_addr()?));
    let (connection, _) = listener.accept().context("nobody connected")?;
    connection.set_nodelay(true)?;
    let mut target = Target::new(run);
    GdbStub::new(connection).run_blocking::<Events>(&mut target).map_err(|e| anyhow!("gdb: {e}"))?;
    Ok(())
}
