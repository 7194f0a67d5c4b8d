//! `--check`: the checkers of SMMUs and of bounced devices' buffers in a machine, and what they say to people and to
//! programs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use aarch64::Traced;
use aarch64::core::Core;
use anyhow::{Context, Result};
use devices::bounce::Onlooker;
use devices::dma::Fabric;
use guest_ram::{GuestRam, Hit, PAGE_SIZE, Tracer};
use serde_json::{Value, json};
use smmu_model::checker::{Checker, Pages, Patience, Report, Role, Site};

use crate::layout as at;
use crate::machine::Machine;
use crate::owners::Owners;
use crate::smmu_agents::SmmuAgents;
use crate::symbols::Symbols;

/// What the checker's reports do to a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// There is no checker: it costs nothing
    #[default]
    Off,
    /// They are printed, and the run goes on
    Report,
    /// The first ends the run
    Abort,
}

/// The guest's memory as a checker looks at it. Several may watch one page.
struct Traces {
    ram: GuestRam,
    fabric: Fabric,
    watchers: Arc<Mutex<BTreeMap<usize, u32>>>,
}

impl Traces {
    fn page(&self, pa: u64) -> Option<usize> {
        self.ram.offset(pa, PAGE_SIZE as u64).map(|offset| offset as usize / PAGE_SIZE)
    }

    fn watchers(&self) -> MutexGuard<'_, BTreeMap<usize, u32>> {
        self.watchers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Pages for Traces {
    fn watch(&mut self, page: u64) {
        let Some(page) = self.page(page) else { return };
        *self.watchers().entry(page).or_default() += 1;
        self.ram.watch().trace(page, Tracer::CHECKER.stores());
    }

    fn unwatch(&mut self, page: u64) {
        let Some(page) = self.page(page) else { return };
        let mut watchers = self.watchers();
        let left = watchers.get(&page).map_or(0, |n| n.saturating_sub(1));
        if left == 0 {
            watchers.remove(&page);
            self.ram.watch().clear(page, Tracer::CHECKER.stores());
        } else {
            watchers.insert(page, left);
        }
    }

    fn read(&self, pa: u64) -> Option<u64> {
        self.ram.read_u64(pa)
    }

    fn may_request(&self, sid: u32) -> Option<bool> {
        // Devices of the device tree need no leave.
        (sid < at::ENGINE_SID).then(|| self.fabric.may_request(sid))
    }
}

/// All that is checked in a machine. Copies of it are the same checkers.
#[derive(Clone, Default)]
pub struct Checkers {
    /// Of the SMMUs.
    smmus: Vec<Checker>,
    /// Of bounced devices' buffers, if devices are bounced.
    owners: Option<Owners>,
    kernel: Arc<Kernel>,
}

/// A vCPU in the guest's kernel, which has all of its tables and its own vectors there.
#[derive(Default)]
struct Kernel {
    /// Its VBAR_EL1; 0 before there was one.
    vbar: AtomicU64,
    core: Mutex<Option<Arc<Core>>>,
}

impl Checkers {
    /// Whether nothing is.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.smmus.is_empty() && self.owners.is_none()
    }

    /// Ends all checking, as when time is to run backwards.
    pub fn stop(&mut self) {
        if let Some(owners) = &self.owners {
            owners.stop();
        }
        *self = Self::default();
    }

    /// What was found since the last time, and which SMMU it is about if it is about one.
    pub fn take_reports(&self) -> Vec<(Option<usize>, Report)> {
        let of = |(n, checker): (usize, &Checker)| {
            checker.take_reports().into_iter().map(move |report| (Some(n), report))
        };
        let owners = self.owners.iter().flat_map(Owners::take_reports).map(|report| (None, report));
        self.smmus.iter().enumerate().flat_map(of).chain(owners).collect()
    }

    /// A report for people.
    pub fn text(&self, smmu: Option<usize>, report: &Report, symbols: &Symbols) -> String {
        text(smmu.filter(|_| self.smmus.len() > 1), report, symbols)
    }

    fn has_reports(&self) -> bool {
        self.smmus.iter().any(Checker::has_reports) || self.owners.as_ref().is_some_and(Owners::has_reports)
    }

    /// Tells of an access by a vCPU to a traced page.
    pub fn accessed(&self, access: &Traced<'_>) {
        if let Some(owners) = &self.owners {
            owners.accessed(access);
        }
        if let Some(value) = access.value
            && !self.smmus.is_empty()
            && access.flags & Tracer::CHECKER.stores() != 0
        {
            self.note_kernel(access.core);
            let site = site(access);
            self.smmus.iter().for_each(|checker| checker.cpu_store(&site, access.pa, access.size, value));
        }
    }

    /// A vCPU as it was when it wrote something for an SMMU. While a process runs, the kernel may be out of sight
    /// (Linux's CONFIG_UNMAP_KERNEL_AT_EL0).
    pub fn kernel(&self) -> Option<Arc<Core>> {
        self.kernel.core.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn note_kernel(&self, core: &Core) {
        let vbar = core.sys.vbar[1];
        if vbar >> 48 == 0xffff && self.kernel.vbar.load(Ordering::Relaxed) != vbar {
            self.kernel.vbar.store(vbar, Ordering::Relaxed);
            *self.kernel.core.lock().unwrap_or_else(|e| e.into_inner()) = Some(Arc::new(core.clone()));
        }
    }

    /// Tells what time it is.
    #[inline]
    pub fn set_time(&self, now: u64) {
        self.smmus.iter().for_each(|checker| checker.set_time(now));
    }

    /// Tells of a write by a device.
    pub fn device_wrote(&self, ram: &GuestRam, hit: Hit) {
        let flags = |offset: u64| ram.watch().flags(offset as usize / PAGE_SIZE);
        let last = hit.offset + u64::from(hit.len.max(1)) - 1;
        let mut pages =
            (hit.offset / PAGE_SIZE as u64..=last / PAGE_SIZE as u64).map(|page| page * PAGE_SIZE as u64);
        if pages.any(|offset| flags(offset) & Tracer::CHECKER.stores() != 0) {
            let pa = ram.base() + hit.offset;
            self.smmus.iter().for_each(|checker| checker.device_store(pa, hit.len.into()));
        }
    }

    fn finish(&self, now: u64) {
        for checker in &self.smmus {
            checker.set_time(now);
            checker.finish();
        }
    }

    /// Reports that were left out.
    fn dropped(&self) -> u64 {
        let smmus: u64 = self.smmus.iter().map(Checker::dropped).sum();
        smmus + self.owners.as_ref().map_or(0, Owners::dropped)
    }
}

/// Checkers of the machine's SMMUs and bounced devices. SMMUs that have run already are taken as they are
/// ([`Checker::resume`]). `rewrites`: as for [`Owners::new`].
pub fn attach(machine: &mut Machine, patience: Patience, rewrites: bool) -> Checkers {
    let now = machine.now();
    let board = &mut machine.board;
    let watchers = Arc::default();
    let checker = |smmu: &SmmuAgents| {
        let (ram, fabric) = (board.ram.clone(), board.pci.fabric().clone());
        let traces = Traces { ram, fabric, watchers: Arc::clone(&watchers) };
        let mut smmu = smmu.smmu();
        let checker = Checker::new(smmu.config(), patience, Box::new(traces));
        checker.set_time(now);
        checker.resume(&smmu);
        smmu.observe(Box::new(checker.clone()));
        checker
    };
    let smmus = board.smmus.iter().map(checker).collect();
    let owners = (!board.pools.is_empty()).then(|| Owners::new(board.ram.clone(), rewrites));
    if let Some(owners) = &owners {
        let onlooker: Arc<dyn Onlooker> = Arc::new(owners.clone());
        board.pools.watch(&onlooker);
    }
    board.checkers = Checkers { smmus, owners, kernel: Arc::default() };
    board.checkers.clone()
}

/// Who makes an access.
pub fn site(access: &Traced<'_>) -> Site {
    let (at, trace) = (access.core.at(), access.core.backtrace(access.ram));
    Site { time: at.now, cpu: Some(at.cpu as u32), pc: trace.pc, lr: trace.lr, callers: trace.callers }
}

/// Prints reports and counts them.
pub struct Teller {
    checkers: Checkers,
    symbols: Symbols,
    json: Option<File>,
    /// Reports so far.
    pub count: u64,
}

impl Teller {
    /// Tells what `checkers` find, with names by `symbols`, and to `json` one object a line.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(checkers: Checkers, symbols: Symbols, json: Option<&PathBuf>) -> Result<Self> {
        let create = |path: &PathBuf| {
            File::create(path).with_context(|| format!("cannot write the reports {}", path.display()))
        };
        Ok(Self { checkers, symbols, json: json.map(create).transpose()?, count: 0 })
    }

    /// Tells what was found since the last time. Answers how much that was.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn tell(&mut self, machine: &Machine) -> Result<usize> {
        if !self.checkers.has_reports() {
            return Ok(0);
        }
        self.symbols.learn(machine);
        let reports = self.checkers.take_reports();
        for (smmu, report) in &reports {
            let _ = std::io::stderr().write_all(self.checkers.text(*smmu, report, &self.symbols).as_bytes());
            if let Some(mut file) = self.json.as_ref() {
                let line = object(*smmu, report, &self.symbols).to_string() + "\n";
                file.write_all(line.as_bytes()).context("cannot write the reports")?;
            }
        }
        self.count += reports.len() as u64;
        Ok(reports.len())
    }

    /// The run is over.
    ///
    /// # Errors
    /// As [`Teller::tell`].
    pub fn finish(&mut self, machine: &Machine) -> Result<()> {
        self.checkers.finish(machine.now());
        self.tell(machine)?;
        let dropped = self.checkers.dropped();
        if dropped != 0 {
            crate::say::say(format_args!("check: {dropped} more reports of the same kinds"));
        }
        Ok(())
    }
}

/// A report for people; of this SMMU, if there are several.
fn text(smmu: Option<usize>, r: &Report, symbols: &Symbols) -> String {
    let mut text = format!("smmulab: check: {}: {}\n", r.kind.name(), r.what);
    let mut about = vec![format!("at {}", seconds(r.time))];
    about.extend(smmu.map(|smmu| format!("SMMU {smmu}")));
    about.extend(r.sid.map(|sid| format!("StreamID {sid:#x}")));
    about.extend(r.ssid.map(|ssid| format!("SubstreamID {ssid}")));
    about.extend(r.world.map(|world| format!("{world:?}")));
    about.extend(r.asid.map(|asid| format!("ASID {asid}")));
    about.extend(r.vmid.map(|vmid| format!("VMID {vmid}")));
    about.extend(r.queue.map(|queue| format!("queue {queue}")));
    about.extend(r.iova.map(|iova| format!("address {iova:#x}")));
    about.extend(r.level.map(|level| format!("level {level}")));
    text += &format!("    {}\n", about.join(", "));
    if let Some(missing) = &r.missing {
        text += &format!("    missing: {missing}\n");
    }
    for (role, site) in &r.sites {
        let who = site.cpu.map_or("a device".to_string(), |cpu| format!("CPU {cpu}"));
        let code = code(site, symbols);
        let code = if code.is_empty() { String::new() } else { format!(": {}", code.join(" < ")) };
        text += &format!("    {:<13} {who} at {}{code}\n", format!("{}:", name(*role)), seconds(site.time));
    }
    text
}

fn seconds(time: u64) -> String {
    format!("{}.{:09} s", time / 1_000_000_000, time % 1_000_000_000)
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Map => "map",
        Role::Unmap => "unmap",
        Role::Invalidation => "invalidation",
        Role::Reuse => "reuse",
        Role::Submit => "submit",
        Role::Take => "take",
        Role::CopyIn => "copy-in",
        Role::CopyOut => "copy-out",
        Role::Access => "access",
    }
}

/// The code of a site, innermost first.
fn code(site: &Site, symbols: &Symbols) -> Vec<String> {
    if site.cpu.is_none() {
        return Vec::new();
    }
    let mut code = vec![symbols.name(site.pc)];
    let function = |address: u64| symbols.at(address.wrapping_sub(4)).map(|(name, _)| name);
    // A function without a frame record of its own has its caller in the link register.
    let stale = site.callers[0] == site.lr
        || function(site.lr).is_none()
        || function(site.lr) == symbols.at(site.pc).map(|(name, _)| name);
    if !stale {
        code.push(symbols.name(site.lr));
    }
    code.extend(site.callers.iter().take_while(|&&caller| caller != 0).map(|&caller| symbols.name(caller)));
    code
}

/// A report for programs.
fn object(smmu: Option<usize>, report: &Report, symbols: &Symbols) -> Value {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    if let Some(smmu) = smmu {
        value["smmu"] = smmu.into();
    }
    value["sites"] = report
        .sites
        .iter()
        .map(|(role, site)| {
            json!({
                "role": name(*role),
                "time": site.time,
                "cpu": site.cpu,
                "pc": site.pc,
                "code": code(site, symbols),
            })
        })
        .collect();
    value
}
