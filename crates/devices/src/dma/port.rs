//! A requester's port: identity, the right to use it, and the accesses.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, Weak};

use guest_ram::{GuestRam, Reader};
use serde::{Deserialize, Serialize};
use smmu_model::{AccessKind, MemAttrs, Smmu, Transaction};

use crate::bounce::{Bounce, Memory};

use super::ats::AtsState;
use super::{DmaError, GITS_TRANSLATER, ItsInbox, Message};

/// What lies behind every port.
#[derive(Clone)]
pub struct Fabric {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The SMMUs in front of it, and the StreamIDs that each has. What none has goes by physical addresses.
    smmus: Vec<(RangeInclusive<u32>, Arc<Mutex<Smmu>>)>,
    /// Where interrupt messages go.
    pub inbox: ItsInbox,
    /// A page that accesses go to whose transactions the SMMU answers as RAZ/WI; a host that has none left aborts them.
    discard: Option<GuestRam>,
    /// Physical address of GITS_TRANSLATER.
    pub doorbell: u64,
    /// Physical memory whose DMA is counted apart, if somebody wants to know.
    window: Arc<OnceLock<Range<u64>>>,
    /// All ports, with some that are gone.
    ports: Arc<Mutex<Vec<Weak<Shared>>>>,
}

impl Fabric {
    /// A fabric with the doorbell where the `virt` machine has it, and all requesters behind `smmu` if there is one.
    pub fn new(ram: GuestRam, smmu: Option<Arc<Mutex<Smmu>>>, inbox: ItsInbox) -> Self {
        let discard = GuestRam::new(0, guest_ram::PAGE_SIZE as u64).ok();
        let smmus = smmu.into_iter().map(|smmu| (0..=u32::MAX, smmu)).collect();
        let (window, ports) = Default::default();
        Self { ram, smmus, inbox, discard, doorbell: GITS_TRANSLATER, window, ports }
    }

    /// Puts requesters behind an SMMU. A StreamID that several have is the first's.
    pub fn add_smmu(&mut self, streams: RangeInclusive<u32>, smmu: Arc<Mutex<Smmu>>) {
        self.smmus.push((streams, smmu));
    }

    /// Counts the DMA of all ports to this physical memory apart, from now on. The first call counts.
    pub fn count_window(&self, window: Range<u64>) {
        let _ = self.window.set(window);
    }

    /// The SMMU that has a StreamID.
    pub fn smmu(&self, sid: u32) -> Option<&Arc<Mutex<Smmu>>> {
        self.smmus.iter().find(|(streams, _)| streams.contains(&sid)).map(|(_, smmu)| smmu)
    }

    /// Whether a port of this StreamID may make requests now ([`DmaPort::enabled`]).
    pub fn may_request(&self, sid: u32) -> bool {
        let ports = self.ports.lock().unwrap_or_else(|e| e.into_inner());
        let mut live = ports.iter().filter_map(Weak::upgrade).map(DmaPort);
        live.any(|port| port.requester().sid == sid && port.enabled())
    }

    /// A look at memory past the SMMU. It is for instruments that check their own work, and no device gets one.
    pub fn inspector(&self) -> Inspector {
        Inspector(self.ram.clone())
    }

    /// The page for discarded accesses, cleared.
    pub(super) fn discard(&self) -> Option<&GuestRam> {
        let page = self.discard.as_ref()?;
        page.write(0, &[0; guest_ram::PAGE_SIZE]);
        Some(page)
    }

    /// The port of a PCI function: StreamID and DeviceID are its requester ID, as the device tree's identity
    /// `iommu-map` and `msi-map` say.
    pub fn port(&self, requester_id: u16) -> DmaPort {
        let id = u32::from(requester_id);
        self.port_for(Requester { sid: id, ssid: None, device_id: id })
    }

    /// A port with any identity.
    pub fn port_for(&self, requester: Requester) -> DmaPort {
        let shared = Arc::new(Shared {
            sid: AtomicU32::new(requester.sid),
            ssid: requester.ssid,
            device_id: AtomicU32::new(requester.device_id),
            fabric: self.clone(),
            bounce: OnceLock::new(),
            reach: OnceLock::new(),
            enabled: AtomicBool::new(false),
            forwarded: AtomicBool::new(true),
            counters: Counters::default(),
            ats_on: AtomicBool::new(false),
            ats: Mutex::new(None),
        });
        let mut ports = self.ports.lock().unwrap_or_else(|e| e.into_inner());
        ports.retain(|port| port.strong_count() != 0);
        ports.push(Arc::downgrade(&shared));
        DmaPort(shared)
    }
}

/// Reads physical memory without a transaction: not an access of a device, but a look at what became of one.
#[derive(Clone, Debug)]
pub struct Inspector(GuestRam);

impl Inspector {
    /// Reads memory. Answers whether all of it is there.
    pub fn read(&self, pa: u64, data: &mut [u8]) -> bool {
        self.0.read(pa, data)
    }
}

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// StreamID.
    pub sid: u32,
    /// SubstreamID (PASID), if transactions carry one.
    pub ssid: Option<u32>,
    /// DeviceID that the ITS sees.
    pub device_id: u32,
}

/// What an access carries beside its address (IHI 0070 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// SubstreamID (PASID), if it carries one.
    pub ssid: Option<u32>,
    /// Privileged, not unprivileged.
    pub privileged: bool,
    /// An instruction fetch, not data. The SMMU takes writes as data whatever this says.
    pub instruction: bool,
    /// Memory type and shareability.
    pub memory: MemAttrs,
}

impl Default for Attributes {
    /// What PCIe sends without a PASID: unprivileged data, write-back, inner shareable.
    fn default() -> Self {
        Self { ssid: None, privileged: false, instruction: false, memory: MemAttrs::WRITE_BACK }
    }
}

/// What went through a port. All counts start at zero and only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Transactions begun.
    pub transactions: u64,
    /// Fetches of descriptors that walks for this port made.
    pub fetches: u64,
    /// Data beats moved.
    pub beats: u64,
    /// Bytes that devices read.
    pub bytes_read: u64,
    /// Bytes that devices wrote.
    pub bytes_written: u64,
    /// Interrupt messages sent.
    pub msis: u64,
    /// Transactions refused, by the SMMU or the memory system.
    pub aborts: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) transactions: AtomicU64,
    pub(super) fetches: AtomicU64,
    pub(super) beats: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) msis: AtomicU64,
    pub(super) aborts: AtomicU64,
    /// Bytes read and written of the memory whose DMA is counted apart.
    window: [AtomicU64; 2],
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, n: u64) {
    // One thread steps all devices; a plain load and store costs less than a locked addition.
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

pub(super) struct Shared {
    sid: AtomicU32,
    ssid: Option<u32>,
    device_id: AtomicU32,
    pub(super) fabric: Fabric,
    bounce: OnceLock<Bounce>,
    reach: OnceLock<RangeInclusive<u64>>,
    enabled: AtomicBool,
    forwarded: AtomicBool,
    pub(super) counters: Counters,
    /// Software has enabled ATS.
    ats_on: AtomicBool,
    /// The device's translation cache and all that goes with it, if it has one.
    ats: Mutex<Option<AtsState>>,
}

/// A device's only way to memory. Cloning gives another handle on the same port; revoking one revokes all.
#[derive(Clone)]
pub struct DmaPort(pub(super) Arc<Shared>);

impl std::fmt::Debug for DmaPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaPort")
            .field("requester", &self.requester())
            .field("enabled", &self.enabled())
            .finish()
    }
}

impl DmaPort {
    /// Who the port asks for.
    pub fn requester(&self) -> Requester {
        let Shared { sid, ssid, device_id, .. } = &*self.0;
        Requester { sid: sid.load(Relaxed), ssid: *ssid, device_id: device_id.load(Relaxed) }
    }

    /// The function captured another requester ID. Whoever says so has made it give up its transactions before: they
    /// are the old requester's.
    pub fn set_requester_id(&self, requester_id: u16) {
        self.0.sid.store(requester_id.into(), Relaxed);
        self.0.device_id.store(requester_id.into(), Relaxed);
    }

    /// The SMMU in front of the port, if there is one.
    pub(super) fn smmu(&self) -> Option<&Arc<Mutex<Smmu>>> {
        self.0.fabric.smmu(self.0.sid.load(Relaxed))
    }

    /// Confines the port to these device addresses, for good: a device with fewer address lines, or one that the
    /// machine lets at a part of memory only. Whole pages, and the first call counts; interrupt messages go through
    /// all the same.
    pub fn confine(&self, reach: RangeInclusive<u64>) {
        let _ = self.0.reach.set(reach);
    }

    /// How many bytes from `iova` on the device can address.
    pub(super) fn reachable(&self, iova: u64) -> Result<u64, DmaError> {
        match self.0.reach.get() {
            None => Ok(u64::MAX),
            Some(reach) if reach.contains(&iova) => Ok((reach.end() - iova).saturating_add(1)),
            Some(_) if iova == self.0.fabric.doorbell => Ok(4),
            Some(_) => Err(self.refused(DmaError::OutOfReach)),
        }
    }

    /// Whether requests may be made. A new port is revoked until bus mastering is enabled.
    pub fn enabled(&self) -> bool {
        self.0.enabled.load(Relaxed) && self.0.forwarded.load(Relaxed)
    }

    /// Grants (bus-master enable) or revokes (its clearing, reset, unplug) the port.
    pub fn set_enabled(&self, enabled: bool) {
        self.0.enabled.store(enabled, Relaxed);
    }

    /// What the bridges above say: whether they forward requests. A port without bridges is always forwarded.
    pub fn set_forwarded(&self, forwarded: bool) {
        self.0.forwarded.store(forwarded, Relaxed);
    }

    /// Makes the device a bounced one, from the start on.
    pub fn set_bounce(&self, bounce: Bounce) {
        // A second pool would have nothing to do with what is mapped in the first.
        if self.0.bounce.set(bounce).is_err() {
            log::error!("device {:#06x} has a bounce pool already", self.requester().sid);
        }
    }

    /// The pool that stands between the device and guest memory, if one does.
    pub fn bounce(&self) -> Option<&Bounce> {
        self.0.bounce.get()
    }

    /// What the buffers of a request that is being worked on are in.
    pub fn buffers(&self) -> Memory<'_> {
        self.bounce().map_or(Memory::Guest(self), Memory::Pool)
    }

    /// Whether accesses go through the device's translation cache.
    #[inline]
    pub(super) fn ats_on(&self) -> bool {
        self.0.ats_on.load(Relaxed)
    }

    pub(super) fn set_ats_on(&self, on: bool) {
        self.0.ats_on.store(on, Relaxed);
    }

    /// Does something with the state of ATS, if the device has ATS.
    pub(super) fn with_ats<T>(&self, f: impl FnOnce(&mut AtsState) -> T) -> Option<T> {
        self.0.ats.lock().unwrap_or_else(|e| e.into_inner()).as_mut().map(f)
    }

    pub(super) fn set_ats_state(&self, state: Option<AtsState>) {
        *self.0.ats.lock().unwrap_or_else(|e| e.into_inner()) = state;
    }

    /// The SMMU in front of the device.
    pub(super) fn lock_smmu(&self) -> Option<MutexGuard<'_, Smmu>> {
        Some(self.smmu()?.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// What went through so far.
    pub fn stats(&self) -> Stats {
        let c = &self.0.counters;
        Stats {
            transactions: c.transactions.load(Relaxed),
            fetches: c.fetches.load(Relaxed),
            beats: c.beats.load(Relaxed),
            bytes_read: c.bytes_read.load(Relaxed),
            bytes_written: c.bytes_written.load(Relaxed),
            msis: c.msis.load(Relaxed),
            aborts: c.aborts.load(Relaxed),
        }
    }

    /// Sets the counters, when a snapshot is restored.
    pub fn restore_stats(&self, stats: &Stats) {
        let c = &self.0.counters;
        c.transactions.store(stats.transactions, Relaxed);
        c.fetches.store(stats.fetches, Relaxed);
        c.beats.store(stats.beats, Relaxed);
        c.bytes_read.store(stats.bytes_read, Relaxed);
        c.bytes_written.store(stats.bytes_written, Relaxed);
        c.msis.store(stats.msis, Relaxed);
        c.aborts.store(stats.aborts, Relaxed);
    }

    /// Whether the ITS takes no more messages for now.
    pub fn inbox_full(&self) -> bool {
        self.0.fabric.inbox.is_full()
    }

    /// What an access carries unless it says otherwise: the requester's SubstreamID.
    pub fn attributes(&self) -> Attributes {
        Attributes { ssid: self.0.ssid, ..Attributes::default() }
    }

    /// The transaction that an access to `iova` begins.
    pub(super) fn transaction(&self, iova: u64, write: bool, with: Attributes) -> Transaction {
        let Attributes { ssid, privileged, instruction, memory: attrs } = with;
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        Transaction {
            ssid,
            privileged,
            instruction,
            attrs,
            ..Transaction::new(self.0.sid.load(Relaxed), iova, kind)
        }
    }

    /// Reads physical memory.
    pub(super) fn load_physical(&self, pa: u64, data: &mut [u8]) -> Result<(), DmaError> {
        if self.0.fabric.ram.read_by(Reader::Device, pa, data) {
            count(&self.0.counters.bytes_read, data.len() as u64);
            self.count_in_window(0, pa, data.len() as u64);
            return Ok(());
        }
        Err(self.refused(DmaError::External))
    }

    /// Writes physical memory, or the doorbell.
    pub(super) fn store_physical(&self, pa: u64, data: &[u8]) -> Result<(), DmaError> {
        let fabric = &self.0.fabric;
        if fabric.ram.write(pa, data) {
            count(&self.0.counters.bytes_written, data.len() as u64);
            self.count_in_window(1, pa, data.len() as u64);
            return Ok(());
        }
        if pa == fabric.doorbell {
            // GITS_TRANSLATER takes 16-bit and 32-bit writes (IHI 0069 §9.19).
            let event_id = match *data {
                [a, b] => Some(u32::from(u16::from_le_bytes([a, b]))),
                [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d])),
                _ => None,
            };
            if let Some(event_id) = event_id
                && fabric.inbox.post(Message { device_id: self.0.device_id.load(Relaxed), event_id })
            {
                count(&self.0.counters.msis, 1);
                return Ok(());
            }
        }
        Err(self.refused(DmaError::External))
    }

    /// Where an access to `iova` would go by what is in memory now: the physical address, and how many bytes from there
    /// on. For whoever looks on: nothing changes, and it is no access. `None` where it would be refused.
    pub fn peek(&self, iova: u64, write: bool) -> Option<(u64, u64)> {
        let reach = match self.0.reach.get() {
            None => u64::MAX,
            Some(reach) => reach.contains(&iova).then(|| (reach.end() - iova).saturating_add(1))?,
        };
        let Some(smmu) = self.lock_smmu() else { return Some((iova, reach)) };
        let transaction = self.transaction(iova, write, self.attributes());
        let translation = smmu.peek(&transaction, |pa, data| self.0.fabric.ram.read(pa, data))?;
        Some((translation.pa, translation.bytes.min(reach)))
    }

    fn count_in_window(&self, which: usize, pa: u64, len: u64) {
        if let Some(window) = self.0.fabric.window.get() {
            let inside = pa.saturating_add(len).min(window.end).saturating_sub(pa.max(window.start));
            count(&self.0.counters.window[which], inside);
        }
    }

    /// Bytes read and written of the memory whose DMA is counted apart ([`Fabric::count_window`]), if any is. Rings are
    /// not counted, and it is no part of the state.
    pub fn counted(&self) -> Option<[u64; 2]> {
        self.0.fabric.window.get().map(|_| self.0.counters.window.each_ref().map(|n| n.load(Relaxed)))
    }

    /// Counts an abort.
    pub(super) fn refused(&self, error: DmaError) -> DmaError {
        count(&self.0.counters.aborts, 1);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_may_make_requests_while_one_of_its_ports_is_granted() {
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        let fabric = Fabric::new(ram, None, ItsInbox::default());
        let port = fabric.clone().port(8);
        assert!(!fabric.may_request(8), "a new port is revoked");
        port.set_enabled(true);
        assert!(fabric.may_request(8) && !fabric.may_request(9));
        port.set_forwarded(false);
        assert!(!fabric.may_request(8), "a bridge does not forward");
        port.set_forwarded(true);
        port.set_requester_id(9);
        assert!(fabric.may_request(9) && !fabric.may_request(8));
        drop(port);
        assert!(!fabric.may_request(9), "its function is gone");
        let other = fabric.port(9);
        other.set_enabled(true);
        assert!(fabric.may_request(9));
        assert_eq!(fabric.ports.lock().unwrap().len(), 1, "what is gone is forgotten");
    }
}
