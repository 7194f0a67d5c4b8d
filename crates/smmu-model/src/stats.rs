//! Counters for `--stats`. They depend on what the guest and the devices did, never on the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::command::Opcode;
use crate::spec::event::EventCode;

/// What one SMMU has done since power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Transactions that arrived.
    pub transactions: u64,
    /// Those that passed untranslated: SMMU disabled or the stream in bypass.
    pub bypassed: u64,
    /// Those that were translated.
    pub translated: u64,
    /// Those that were terminated.
    pub terminated: u64,
    /// Those that stalled.
    pub stalled: u64,
    /// Translations answered by the IOTLB.
    pub tlb_hits: u64,
    /// Those that needed a walk.
    pub tlb_misses: u64,
    /// IOTLB entries that gave way to another.
    pub tlb_evictions: u64,
    /// IOTLB entries that a command removed.
    pub tlb_invalidated: u64,
    /// Stage 2 translations answered by their cache: of addresses, tables and CDs.
    pub s2_hits: u64,
    /// Those that needed a walk.
    pub s2_misses: u64,
    /// Walks that began at a table of the walk cache.
    pub walk_hits: u64,
    /// Entries of the walk cache that a command removed.
    pub walks_invalidated: u64,
    /// Level 1 stream table descriptors fetched.
    pub l1std_fetches: u64,
    /// STEs fetched.
    pub ste_fetches: u64,
    /// Level 1 CD table descriptors fetched.
    pub l1cd_fetches: u64,
    /// CDs fetched.
    pub cd_fetches: u64,
    /// Stage-1 descriptors fetched.
    pub s1_fetches: u64,
    /// Stage-2 descriptors fetched.
    pub s2_fetches: u64,
    /// ATS Translation Requests.
    pub ats_requests: u64,
    /// Translated transactions.
    pub ats_translated: u64,
    /// ATC_INV commands that became invalidation requests.
    pub atc_invalidations: u64,
    /// Those that were not confirmed in time.
    pub atc_timeouts: u64,
    /// Page requests that arrived.
    pub page_requests: u64,
    /// Responses to page requests, handed out.
    pub page_responses: u64,
    /// Those that the SMMU made by itself.
    pub page_auto_responses: u64,
    /// Access flags that hardware set.
    pub af_updates: u64,
    /// Descriptors that hardware marked dirty.
    pub dirty_updates: u64,
    /// Commands consumed, by opcode; those that stopped the queue are under `command_errors`.
    pub commands: BTreeMap<Opcode, u64>,
    /// Commands that stopped the queue.
    pub command_errors: u64,
    /// Event records written to the queue.
    pub events: BTreeMap<EventCode, u64>,
    /// Events that were merged with one that had not been written yet.
    pub events_merged: u64,
    /// Event records lost to a full, disabled or broken queue.
    pub events_dropped: u64,
    /// MSIs handed out.
    pub msis: u64,
}
