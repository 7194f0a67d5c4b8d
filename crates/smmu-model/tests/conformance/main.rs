//! What IHI 0070 demands, one scenario each, through the public interface only.

mod lab;

mod atos;
mod ats;
mod caches;
mod choices;
mod commands;
mod ecmdq;
mod events;
mod features;
mod httu;
mod interrupts;
mod lpa2;
mod observer;
mod pmcg;
mod pri;
mod records;
mod registers;
mod retention;
mod shortcuts;
mod stage1;
mod stage2;
mod stall;
mod streams;
mod substreams;
mod walks;
mod worlds;
