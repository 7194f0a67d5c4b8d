//! The race lab: explores the schedules of a scenario, and plays a failing one again.
//!
//! A guest is booted once, up to the mark with which it says that its scenario begins ([`devices::lab`]). From there each
//! schedule runs in a copy of the process ([`fork`]), which costs milliseconds. Which schedules, [`policy`] says; what counts
//! as a failure, [`trial`]. A failing schedule is made as short as it can be ([`shrink`]) and kept in a file ([`record`])
//! that is, with the scenario, all that is needed to see it again.

pub mod filter;
pub mod fork;
pub mod html;
pub mod interrupt;
pub mod policy;
pub mod record;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod search;
pub mod shrink;
pub mod steps;
pub mod story;
pub mod timeline;
pub mod trace;
pub mod trial;
pub mod until;
