//! The smmulab machine: vCPUs, board and scheduler, and the command line that runs them.

pub mod actor;
pub mod assemble;
pub mod bench;
pub mod board;
pub mod cli;
pub mod edge;
pub mod fdt;
pub mod image;
pub mod input;
pub mod layout;
pub mod load;
pub mod machine;
pub mod options;
pub mod pools;
pub mod psci;
pub mod race;
pub mod run;
pub mod say;
pub mod schedule;
pub mod script;
pub mod smmu_agents;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod survey;
pub mod symbols;
