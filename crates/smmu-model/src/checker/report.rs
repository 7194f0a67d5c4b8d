//! What the checker has to say.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::site::{Role, Site};
use crate::cache::World;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Kinds of mistakes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind { $($(#[doc = $doc])* #[serde(rename = $text)] $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            /// Its name in reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// An address got a new translation while the SMMU may still hold the old one.
    IovaReuse = "iova-reuse",
    /// A table that the SMMU may still walk was written as something else.
    TableReuse = "table-reuse",
    /// An ASID or VMID got other tables while translations of the old ones may be cached.
    TagReuse = "tag-reuse",
    /// A valid descriptor became another valid one, where break-before-make is demanded.
    BreakBeforeMake = "break-before-make",
    /// An STE was changed, and the SMMU may still use the old one.
    StaleSte = "stale-ste",
    /// A CD was changed, and the SMMU may still use the old one.
    StaleCd = "stale-cd",
    /// A level 1 descriptor of the stream table was changed, and the SMMU may still use the old one.
    StaleL1Std = "stale-l1std",
    /// A level 1 descriptor of a CD table was changed, and the SMMU may still use the old one.
    StaleL1Cd = "stale-l1cd",
    /// A translation was taken away or restricted, never invalidated, and is still used.
    StaleTranslation = "stale-translation",
    /// An SMMU could have seen a mixture of two STEs.
    TornSte = "torn-ste",
    /// An SMMU could have seen a mixture of two CDs.
    TornCd = "torn-cd",
    /// A device's ATC may still hold what was unmapped: no ATC_INV.
    AtcMissing = "atc-missing",
    /// ATC_INV came before the TLBI that it depends on had completed.
    AtcEarly = "atc-early",
    /// A device accesses an address after its unmap.
    DmaAfterUnmap = "dma-after-unmap",
    /// A device accesses an address that was never mapped.
    DmaUnmapped = "dma-unmapped",
    /// A device accesses a page in a way that its mapping does not permit.
    DmaForbidden = "dma-forbidden",
    /// A device's access passes a disabled SMMU, and its address is an IOVA.
    DmaBypass = "dma-bypass",
    /// Memory is mapped elsewhere while a device's access to its old mapping is under way.
    DmaInFlight = "dma-in-flight",
    /// The SMMU refused a command.
    CommandIllegal = "command-illegal",
    /// A command has reserved bits set.
    CommandReserved = "command-reserved",
    /// A command was changed, or the queue overrun, before the SMMU had consumed it.
    CommandOverwritten = "command-overwritten",
    /// A stalled transaction was never resumed or terminated.
    StallUnanswered = "stall-unanswered",
    /// A page request was never responded to.
    PageRequestUnanswered = "page-request-unanswered",
    /// An overflow of the event or PRI queue was never acknowledged.
    OverflowUnacknowledged = "overflow-unacknowledged",
    /// A CPU wrote to a buffer that belongs to a bounced device.
    BufferWritten = "buffer-written",
    /// A CPU read a buffer that a bounced device writes, before it was given back.
    BufferRead = "buffer-read",
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What kind.
    pub kind: Kind,
    /// Virtual time at which it became one, nanoseconds.
    pub time: u64,
    /// StreamID, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sid: Option<u32>,
    /// SubstreamID, or the CD's index.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ssid: Option<u32>,
    /// StreamWorld and stage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub world: Option<World>,
    /// VMID.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vmid: Option<u16>,
    /// ASID.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub asid: Option<u16>,
    /// The address that a device uses, or the IPA at stage 2.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iova: Option<u64>,
    /// Queue of the device whose buffer it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue: Option<u16>,
    /// Bytes of the buffer that were accessed, from `iova` on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Level of the descriptor.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub level: Option<i8>,
    /// What happened, in a sentence.
    pub what: String,
    /// What would have been right: the missing command, or what is wrong with the one that came.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missing: Option<String>,
    /// Who did what, in the order of what they did.
    pub sites: Vec<(Role, Site)>,
}

impl Report {
    /// A report that says nothing but this.
    #[must_use]
    pub fn new(kind: Kind, time: u64, what: String) -> Self {
        Report {
            kind,
            time,
            sid: None,
            ssid: None,
            world: None,
            vmid: None,
            asid: None,
            iova: None,
            queue: None,
            bytes: None,
            level: None,
            what,
            missing: None,
            sites: Vec::new(),
        }
    }

    pub(super) fn stream(self, sid: u32, ssid: Option<u32>) -> Self {
        Report { sid: Some(sid), ssid, ..self }
    }

    pub(super) fn site(mut self, role: Role, site: Option<Site>) -> Self {
        self.sites.extend(site.map(|site| (role, site)));
        self
    }
}

/// Reports of one kind that are kept; more of the same are counted only.
const MAX_REPORTS: usize = 64;

/// What was found, each thing once.
#[derive(Debug, Default)]
pub struct Reports {
    new: Vec<Report>,
    /// What was reported, by kind and by what tells it from others of the kind.
    seen: BTreeSet<(Kind, u64, u64)>,
    dropped: u64,
}

impl Reports {
    /// Whether a report of this kind and key would be one to keep: it is not known, and there are not too many of its
    /// kind, in which case it counts as left out.
    pub fn wants(&mut self, kind: Kind, key: (u64, u64)) -> bool {
        if self.seen.contains(&(kind, key.0, key.1)) {
            return false;
        }
        let many = self.seen.range((kind, 0, 0)..=(kind, u64::MAX, u64::MAX)).count() >= MAX_REPORTS;
        self.dropped += u64::from(many);
        !many
    }

    /// Keeps a report that is wanted.
    pub fn add(&mut self, key: (u64, u64), report: Report) {
        self.seen.insert((report.kind, key.0, key.1));
        self.new.push(report);
    }

    /// What was found since the last call, oldest first.
    #[must_use]
    pub fn take(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.new)
    }

    /// Whether [`Reports::take`] has nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.new.is_empty()
    }

    /// How many reports were left out because there were many of their kind.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
