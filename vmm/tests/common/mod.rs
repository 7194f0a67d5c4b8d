//! What the tests of the program share.
#![allow(dead_code)]

pub(crate) mod a64;
pub(crate) mod bridge;
pub(crate) mod rsp;
pub(crate) mod smmu;
pub(crate) mod vhost_user;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Data register of the UART.
pub(crate) const UART: u64 = 0x0900_0000;

/// The program, ready for arguments.
pub(crate) fn smmulab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smmulab"));
    command.stdin(Stdio::null());
    command
}

/// Whether tests that take minutes are asked for, as CI does.
pub(crate) fn long() -> bool {
    std::env::var_os("SMMULAB_LONG").is_some()
}

/// Says that a test was skipped; under CI that is a failure.
pub(crate) fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "under CI nothing may be skipped: {why}");
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file of pseudo-random bytes that depend on `seed` alone.
pub(crate) fn random_file(path: &Path, len: usize, seed: u64) -> std::io::Result<()> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        // xorshift64*: any non-repeating content will do.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    std::fs::write(path, bytes)
}
