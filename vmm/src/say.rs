//! What the program says to its user, beside the guest's output.

use std::fmt::Display;
use std::io::Write;

/// A line on stderr. That it cannot be written is nothing to stop for.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "smmulab: {text}");
}
