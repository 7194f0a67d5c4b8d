//! What IHI 0070 demands, one scenario each, through the public interface only.

mod lab;

mod ats;
mod caches;
mod choices;
mod commands;
mod ecmdq;
mod events;
mod httu;
mod interrupts;
mod observer;
mod pmcg;
mod pri;
mod registers;
mod retention;
mod stage1;
mod stage2;
mod stall;
mod streams;
mod substreams;
mod walks;
mod worlds;
