//! What the program says to its user, beside the guest's output.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::cli::status;

/// The number of the signal that a program gets that writes to a pipe which nobody reads.
const SIGPIPE: u8 = 13;

/// A line on stderr. That it cannot be written is nothing to stop for.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "smmulab: {text}");
}

/// A part of a command's result, on stdout. If that cannot be written the program ends: quietly if nobody reads on (`… | head`), or
/// else with a line that says so.
pub(crate) fn out(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let Err(error) = write!(stdout, "{text}").and_then(|()| stdout.flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit((status::SIGNAL + SIGPIPE).into());
    }
    say(format_args!("cannot write to standard output: {error}"));
    std::process::exit(status::USAGE.into());
}

/// As `println!`, by [`out`].
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::say::out(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use outln;
