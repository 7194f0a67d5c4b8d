//! Where a transaction would go, for somebody who only looks.

use crate::config::Config;
use crate::memory::{Abort, Memory};
use crate::smmu::Smmu;
use crate::transaction::{Progress, Transaction, Translation};

/// Memory for somebody who only looks: read by a function that says whether there is memory at an address, and not
/// written, though it says so.
pub struct LookOnly<F: Fn(u64, &mut [u8]) -> bool>(pub F);

impl<F: Fn(u64, &mut [u8]) -> bool> Memory for LookOnly<F> {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        if self.0(pa, data) { Ok(()) } else { Err(Abort) }
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Abort> {
        Ok(())
    }

    fn compare_exchange_u64(&self, _: u64, old: u64, _: u64) -> Result<u64, Abort> {
        Ok(old)
    }
}

impl Smmu {
    /// Where a transaction would go by what is in memory now, read by `read`, whatever the caches hold; `None` if it would
    /// fault. Nothing changes: not the caches or the counters, and not what hardware updates in memory.
    #[must_use]
    pub fn peek(&self, t: &Transaction, read: impl Fn(u64, &mut [u8]) -> bool) -> Option<Translation> {
        let memory = LookOnly(read);
        let config = Config {
            tlb: 0,
            s2_cache: 0,
            walk_cache: 0,
            ste_cache: 0,
            l1std_cache: 0,
            cd_cache: 0,
            l1cd_cache: 0,
            keep_all: false,
            pmcg: 0,
            ..self.config.clone()
        };
        let mut smmu = Smmu { regs: self.regs.clone(), ..Smmu::new(config) };
        let mut progress = smmu.begin(t);
        loop {
            match progress {
                Progress::Walking(id) => progress = smmu.step(id, &memory),
                Progress::Latched(_, translation) => return Some(translation),
                Progress::Stalled(_) | Progress::Discarded | Progress::Aborted => return None,
            }
        }
    }
}
