//! Whose buffers are whose while devices are bounced: a CPU that writes to one that a device has, or reads one that the
//! device has yet to give back, is reported (docs/checker.md).
//!
//! It is told of requests by the devices ([`Onlooker`]) and of the vCPUs' accesses by tracing the pages that buffers are
//! in. It changes nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use aarch64::Traced;
use devices::Time;
use devices::bounce::{Copied, Onlooker, Taken};
use devices::dma::{DmaPort, Scatter};
use devices::virtio::Head;
use guest_ram::{GuestRam, PAGE_SIZE, Tracer};
use smmu_model::checker::{Kind, Report, Reports, Role, Site};

use crate::check::site;

/// Pages of one request, or of one ring, that are watched: more than any driver has.
const MAX_PAGES: usize = 1 << 12;
const PAGE: u64 = PAGE_SIZE as u64;
/// virtio's number of block devices, and the bytes of a request's header: data follows (virtio 1.3 §5.2.6).
const BLOCK: u16 = 2;
const BLOCK_HEADER: u64 = 16;

/// Watches the buffers of bounced devices. Copies of the handle are the same.
#[derive(Clone, Debug)]
pub struct Owners(Arc<Mutex<State>>);

/// A device's queue: StreamID and index.
type Queue = (u32, usize);

#[derive(Debug)]
struct State {
    ram: GuestRam,
    /// Requests that devices have, by number.
    requests: BTreeMap<u64, Request>,
    taken: u64,
    /// What of buffers is in a page.
    pages: BTreeMap<u64, Vec<Piece>>,
    /// Where drivers make requests available: physical addresses.
    rings: BTreeMap<Queue, Vec<Range<u64>>>,
    /// Who wrote there last, by the address of two bytes.
    announced: BTreeMap<u64, Site>,
    /// What may become something else is to be reported as well.
    rewrites: bool,
    reports: Reports,
    stopped: bool,
}

/// A request that a device has.
#[derive(Debug)]
struct Request {
    queue: Queue,
    head: Head,
    submitted: Option<Site>,
    time: Time,
    /// Device addresses of its buffers.
    readable: Vec<Range<u64>>,
    writable: Vec<Range<u64>>,
    copies: Vec<(Time, Copied)>,
    /// The pages that it has pieces in.
    pages: Vec<u64>,
}

/// What of a buffer is in one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    request: u64,
    iova: u64,
    pa: u64,
    len: u64,
    /// The device writes it.
    writable: bool,
    /// It goes to a disk, and may become something else on the way.
    loose: bool,
}

impl Owners {
    /// Nobody has anything yet. `rewrites`: that the data of a disk write changes under way is to be reported, too.
    pub fn new(ram: GuestRam, rewrites: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            ram,
            requests: BTreeMap::new(),
            taken: 0,
            pages: BTreeMap::new(),
            rings: BTreeMap::new(),
            announced: BTreeMap::new(),
            rewrites,
            reports: Reports::default(),
            stopped: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A vCPU accesses a traced page.
    pub fn accessed(&self, access: &Traced<'_>) {
        if access.flags & Tracer::POOL.stores() != 0 {
            self.state().accessed(access);
        }
    }

    /// Watches nothing any more.
    pub fn stop(&self) {
        let mut state = self.state();
        state.reset(|_| true);
        state.stopped = true;
    }

    /// What was found since the last call, oldest first.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        self.state().reports.take()
    }

    /// Whether [`Owners::take_reports`] has something.
    #[must_use]
    pub fn has_reports(&self) -> bool {
        !self.state().reports.is_empty()
    }

    /// How many reports were left out because there were many of their kind.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state().reports.dropped()
    }
}

impl Onlooker for Owners {
    fn enabled(&self, port: &DmaPort, queue: usize, ring: Range<u64>) {
        self.state().enabled(port, queue, &ring);
    }

    fn taken(&self, port: &DmaPort, now: Time, request: &Taken<'_>) {
        self.state().take(port, now, request);
    }

    fn copied(&self, port: &DmaPort, now: Time, copied: &Copied) {
        self.state().copied(port.requester().sid, now, copied);
    }

    fn given_back(&self, port: &DmaPort, queue: usize, head: Head) {
        let queue = (port.requester().sid, queue);
        self.state().forget(|request| request.queue == queue && request.head == head, 1);
    }

    fn reset(&self, port: &DmaPort, queue: Option<usize>) {
        let sid = port.requester().sid;
        self.state().reset(|(s, q)| s == sid && queue.is_none_or(|queue| queue == q));
    }
}

/// The parts of a range of device addresses that are in one page each: device address, physical address, bytes. `budget`:
/// how many translations may be looked up.
fn pages<'a>(
    port: &'a DmaPort,
    range: Range<u64>,
    write: bool,
    budget: &'a Cell<usize>,
) -> impl Iterator<Item = (u64, u64, u64)> + 'a {
    let mut iova = range.start;
    std::iter::from_fn(move || {
        while iova < range.end && budget.get() > 0 {
            budget.set(budget.get() - 1);
            let here = iova;
            let rest = (PAGE - here % PAGE).min(range.end - here);
            let found = port.peek(here, write);
            let len = found.map_or(rest, |(pa, bytes)| rest.min(bytes).min(PAGE - pa % PAGE).max(1));
            iova += len;
            if let Some((pa, _)) = found {
                return Some((here, pa, len));
            }
        }
        None
    })
}

impl State {
    /// Watches or unwatches a page as it has to be.
    fn trace(&self, page: u64) {
        let Some(offset) = self.ram.offset(page, 1) else { return };
        let (index, watch) = ((offset / PAGE) as usize, self.ram.watch());
        let pieces = self.pages.get(&page);
        let ring = self.rings.values().flatten().any(|part| part.start & !(PAGE - 1) == page);
        let stores = if pieces.is_some() || ring { Tracer::POOL.stores() } else { 0 };
        let writable = pieces.is_some_and(|pieces| pieces.iter().any(|piece| piece.writable));
        let loads = if writable { Tracer::POOL.loads() } else { 0 };
        watch.clear(index, (Tracer::POOL.stores() | Tracer::POOL.loads()) & !(stores | loads));
        if stores | loads != 0 {
            watch.trace(index, stores | loads);
        }
    }

    fn enabled(&mut self, port: &DmaPort, queue: usize, ring: &Range<u64>) {
        if self.stopped {
            return;
        }
        let queue = (port.requester().sid, queue);
        let budget = Cell::new(MAX_PAGES);
        let parts = pages(port, ring.clone(), false, &budget);
        let parts: Vec<Range<u64>> = parts.map(|(_, pa, len)| pa..pa + len).collect();
        let firsts: Vec<u64> = parts.iter().map(|part| part.start & !(PAGE - 1)).collect();
        self.rings.insert(queue, parts);
        firsts.into_iter().for_each(|page| self.trace(page));
    }

    fn take(&mut self, port: &DmaPort, now: Time, taken: &Taken<'_>) {
        if self.stopped {
            return;
        }
        let number = self.taken;
        self.taken += 1;
        let submitted = port.peek(taken.announced.start, false);
        let submitted = submitted.and_then(|(pa, _)| self.announced.get(&(pa & !1)).copied());
        let (budget, mut pieces) = (Cell::new(MAX_PAGES), Vec::new());
        let ranges = |scatter: &Scatter| -> Vec<Range<u64>> {
            scatter.iter().map(|s| s.iova..s.iova.saturating_add(s.len.into())).collect()
        };
        let (readable, writable) = (ranges(taken.readable), ranges(taken.writable));
        for (buffers, writable) in [(&readable, false), (&writable, true)] {
            let mut header = if taken.kind == BLOCK && !writable { BLOCK_HEADER } else { u64::MAX };
            for buffer in buffers {
                let data = buffer.start.saturating_add(header).min(buffer.end);
                header -= data - buffer.start;
                for (range, loose) in [(buffer.start..data, false), (data..buffer.end, true)] {
                    let piece = |(iova, pa, len)| Piece { request: number, iova, pa, len, writable, loose };
                    pieces.extend(pages(port, range, writable, &budget).map(piece));
                }
            }
        }
        let mut request = Request {
            queue: (port.requester().sid, taken.queue),
            head: taken.head,
            submitted,
            time: now,
            readable,
            writable,
            copies: Vec::new(),
            pages: Vec::new(),
        };
        for piece in pieces {
            let page = piece.pa & !(PAGE - 1);
            self.pages.entry(page).or_default().push(piece);
            request.pages.push(page);
        }
        request.pages.sort_unstable();
        request.pages.dedup();
        request.pages.iter().for_each(|&page| self.trace(page));
        self.requests.insert(number, request);
    }

    fn copied(&mut self, sid: u32, now: Time, copied: &Copied) {
        let held = |r: &&mut Request| {
            let buffers = if copied.out { &r.writable } else { &r.readable };
            let has = |buffer: &Range<u64>| buffer.contains(&copied.iova);
            (r.queue.0, r.head) == (sid, copied.head) && buffers.iter().any(has)
        };
        if let Some(request) = self.requests.values_mut().find(held) {
            request.copies.push((now, *copied));
        }
    }

    /// The first `most` of these requests belong to no device any more.
    fn forget(&mut self, which: impl Fn(&Request) -> bool, most: usize) {
        let numbers = self.requests.iter().filter(|(_, request)| which(request)).take(most);
        let numbers: Vec<u64> = numbers.map(|(&number, _)| number).collect();
        for number in numbers {
            let Some(request) = self.requests.remove(&number) else { continue };
            for page in request.pages {
                if let Some(pieces) = self.pages.get_mut(&page) {
                    pieces.retain(|piece| piece.request != number);
                    if pieces.is_empty() {
                        self.pages.remove(&page);
                    }
                }
                self.trace(page);
            }
        }
    }

    fn reset(&mut self, which: impl Fn(Queue) -> bool) {
        self.forget(|request| which(request.queue), usize::MAX);
        let gone: Vec<Queue> = self.rings.keys().copied().filter(|&queue| which(queue)).collect();
        for part in
            gone.into_iter().filter_map(|queue| self.rings.remove(&queue)).flatten().collect::<Vec<_>>()
        {
            let words: Vec<u64> = self.announced.range(part.clone()).map(|(&at, _)| at).collect();
            words.iter().for_each(|at| _ = self.announced.remove(at));
            self.trace(part.start & !(PAGE - 1));
        }
    }

    fn accessed(&mut self, access: &Traced<'_>) {
        let (from, to) = (access.pa, access.pa + u64::from(access.size));
        let store = access.value.is_some();
        if store && self.rings.values().flatten().any(|ring| ring.start < to && from < ring.end) {
            let site = site(access);
            (from & !1..to).step_by(2).for_each(|at| _ = self.announced.insert(at, site));
        }
        // What a process does with its own memory, even while the kernel reads or writes it, is no mistake of the kernel's.
        if access.core.pstate.el == 0 {
            return;
        }
        let Some(pieces) = self.pages.get(&(from & !(PAGE - 1))) else { return };
        let counts = |piece: &Piece| piece.writable || store && (self.rewrites || !piece.loose);
        let hit = |piece: &&Piece| counts(piece) && piece.pa < to && from < piece.pa + piece.len;
        let hits: Vec<Piece> = pieces.iter().filter(hit).copied().collect();
        for piece in hits {
            let range = from.max(piece.pa)..to.min(piece.pa + piece.len);
            self.report(&piece, range, store, site(access));
        }
    }

    /// A vCPU accesses bytes that belong to a device.
    fn report(&mut self, piece: &Piece, pa: Range<u64>, store: bool, access: Site) {
        let Some(request) = self.requests.get(&piece.request) else { return };
        let kind = if store { Kind::BufferWritten } else { Kind::BufferRead };
        let key = (access.pc, u64::from(request.queue.0) << 32 | request.queue.1 as u64);
        if !self.reports.wants(kind, key) {
            return;
        }
        let (iova, bytes) = (piece.iova + (pa.start - piece.pa), pa.end - pa.start);
        let covers = |c: &Copied| c.out == piece.writable && c.iova < iova + bytes && iova < c.iova + c.len;
        let copy = request.copies.iter().rev().find(|(_, c)| covers(c)).map(|(time, _)| Site::device(*time));
        let fate = match (store, piece.writable, copy) {
            (true, false, None) => "the device has not read them yet, and may read either",
            (true, false, Some(_)) => "the device has read them, and does not see this",
            (true, true, None) => "what the device writes there will replace it",
            (true, true, Some(_)) => "it replaces what the device wrote",
            (false, _, None) => "the device has not written them yet",
            (false, _, Some(_)) => "the device has written them, but not given them back",
        };
        let what = format!(
            "a CPU {} {bytes} byte{} at {:#x} of a buffer that a device {} and has not given back: {fate}",
            if store { "writes" } else { "reads" },
            if bytes == 1 { "" } else { "s" },
            pa.start,
            if piece.writable { "writes" } else { "reads" },
        );
        let role = if piece.writable { Role::CopyOut } else { Role::CopyIn };
        let mut sites: Vec<(Role, Site)> =
            request.submitted.map(|site| (Role::Submit, site)).into_iter().collect();
        sites.push((Role::Take, Site::device(request.time)));
        sites.extend(copy.map(|site| (role, site)));
        sites.push((Role::Access, access));
        let (sid, queue) = (Some(request.queue.0), Some(request.queue.1 as u16));
        let (iova, bytes) = (Some(iova), Some(bytes));
        self.reports
            .add(key, Report { sid, queue, iova, bytes, sites, ..Report::new(kind, access.time, what) });
    }
}
