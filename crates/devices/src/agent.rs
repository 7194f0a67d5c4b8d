//! What acts on its own: anything that does something later than the register write that asked for it.

/// Virtual time in nanoseconds since power-on.
pub type Time = u64;

/// Something that acts on its own, one step at a time. What one step may do is contract 3 of the design: a descriptor
/// fetch, a page-table fetch, a latched translation, a data beat, a queue record, an interrupt.
pub trait Agent {
    /// Earliest virtual time of the next step; `None` while idle. It may lie in the past: then the step is due.
    fn next_step(&self) -> Option<Time>;

    /// Does one step. A call while idle does nothing.
    fn step(&mut self, now: Time);
}

/// The earlier of two optional times.
#[inline]
pub fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
