//! `smmulab bench`: our figures beside those of whatever peer is installed, in one run, as ratios.

pub mod boot;
mod instructions;
mod peer;
pub mod race;
pub mod search;
pub mod smmu;
pub mod swiotlb;
