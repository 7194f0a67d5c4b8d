//! `smmulab bench`: our figures beside those of whatever peer is installed, in one run, as ratios.

pub mod boot;
mod peer;
pub mod race;
pub mod swiotlb;
