//! The terminal: raw mode while a guest owns it, and the Ctrl-A escape.

use std::io::IsTerminal;

use nix::sys::termios::{self, SetArg, Termios};

const CTRL_A: u8 = 1;

/// Puts the terminal into raw mode until dropped. Output post-processing stays as it is off: the guest sends CR LF.
pub struct RawMode(Option<Termios>);

impl RawMode {
    /// Raw mode on standard input, if that is a terminal.
    pub fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        match termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }

    /// Whether there is a terminal, and it is in raw mode.
    pub fn entered(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Finds Ctrl-A x in what is typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Appends to `out` what is for the guest; `true` when the user asked to leave. A second Ctrl-A sends one.
    pub fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (std::mem::take(&mut self.pending), byte) {
                (true, b'x' | b'X') => return true,
                (true, CTRL_A) => out.push(CTRL_A),
                (true, other) => out.extend([CTRL_A, other]),
                (false, CTRL_A) => self.pending = true,
                (false, other) => out.push(other),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_is_found_across_reads() {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        assert!(!escape.filter(b"ab\x01", &mut out));
        assert!(!escape.filter(b"\x01c\x01q", &mut out));
        assert_eq!(out, b"ab\x01c\x01q");
        assert!(escape.filter(b"\x01x", &mut out));
    }
}
