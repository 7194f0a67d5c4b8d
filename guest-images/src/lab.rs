//! `smmulab image build lab`: a small kernel with IOMMU debugging, from Debian's own source package.

use crate::error::Result;
use crate::progress::Progress;
use crate::store::{Image, Store};

impl Store {
    /// Builds the lab kernel unless it is cached.
    pub fn build_lab(&self, _refresh: bool, _progress: Progress) -> Result<Image> {
        Err(crate::Error::BuildNeeds("its build".into()))
    }
}
