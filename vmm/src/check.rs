//! `--check`: the SMMU's checker in a machine, and what it says to people and to programs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use aarch64::Traced;
use anyhow::{Context, Result};
use guest_ram::{GuestRam, Hit, PAGE_SIZE, Tracer};
use serde_json::{Value, json};
use smmu_model::checker::{Checker, Pages, Patience, Report, Role, Site};

use crate::machine::Machine;
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
        let mut bytes = [0; 8];
        self.ram.read(pa, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

/// Checkers of the machine's SMMUs, none of which has run yet.
pub fn attach(machine: &mut Machine, patience: Patience) -> Vec<Checker> {
    let board = &mut machine.board;
    let watchers = Arc::default();
    let checker = |smmu: &SmmuAgents| {
        let traces = Traces { ram: board.ram.clone(), watchers: Arc::clone(&watchers) };
        let mut smmu = smmu.smmu();
        let checker = Checker::new(smmu.config(), patience, Box::new(traces));
        smmu.observe(Box::new(checker.clone()));
        checker
    };
    let checkers: Vec<Checker> = board.smmus.iter().map(checker).collect();
    board.checkers = checkers.clone();
    checkers
}

/// Tells the checkers of a store by a vCPU.
pub fn stored(checkers: &[Checker], access: &Traced<'_>) {
    let Some(value) = access.value else { return };
    if checkers.is_empty() || access.flags & Tracer::CHECKER.stores() == 0 {
        return;
    }
    let (at, trace) = (access.core.at(), access.core.backtrace(access.ram));
    let site =
        Site { time: at.now, cpu: Some(at.cpu as u32), pc: trace.pc, lr: trace.lr, callers: trace.callers };
    checkers.iter().for_each(|checker| checker.cpu_store(&site, access.pa, access.size, value));
}

/// Tells the checkers of a write by a device.
pub fn device_wrote(checkers: &[Checker], ram: &GuestRam, hit: Hit) {
    let flags = |offset: u64| ram.watch().flags(offset as usize / PAGE_SIZE);
    let last = hit.offset + u64::from(hit.len.max(1)) - 1;
    let mut pages =
        (hit.offset / PAGE_SIZE as u64..=last / PAGE_SIZE as u64).map(|page| page * PAGE_SIZE as u64);
    if pages.any(|offset| flags(offset) & Tracer::CHECKER.stores() != 0) {
        checkers.iter().for_each(|checker| checker.device_store(ram.base() + hit.offset, hit.len.into()));
    }
}

/// Prints reports and counts them.
pub struct Teller {
    checkers: Vec<Checker>,
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
    pub fn new(checkers: Vec<Checker>, symbols: Symbols, json: Option<&PathBuf>) -> Result<Self> {
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
        if !self.checkers.iter().any(Checker::has_reports) {
            return Ok(0);
        }
        self.symbols.locate(machine.cluster.core(0).sys.vbar[1]);
        let (mut count, several) = (0, self.checkers.len() > 1);
        for (n, checker) in self.checkers.iter().enumerate() {
            for report in checker.take_reports() {
                let _ = std::io::stderr()
                    .write_all(text(several.then_some(n), &report, &self.symbols).as_bytes());
                if let Some(mut file) = self.json.as_ref() {
                    let line = object(n, &report, &self.symbols).to_string() + "\n";
                    file.write_all(line.as_bytes()).context("cannot write the reports")?;
                }
                count += 1;
            }
        }
        self.count += count as u64;
        Ok(count)
    }

    /// The run is over.
    ///
    /// # Errors
    /// As [`Teller::tell`].
    pub fn finish(&mut self, machine: &Machine) -> Result<()> {
        for checker in &self.checkers {
            checker.set_time(machine.now());
            checker.finish();
        }
        self.tell(machine)?;
        let dropped: u64 = self.checkers.iter().map(Checker::dropped).sum();
        if dropped != 0 {
            crate::say::say(format_args!("check: {dropped} more reports of the same kinds"));
        }
        Ok(())
    }
}

/// A report for people, of one of several SMMUs if `smmu` is given.
pub fn text(smmu: Option<usize>, r: &Report, symbols: &Symbols) -> String {
    let mut text = format!("smmulab: check: {}: {}\n", r.kind.name(), r.what);
    let mut about = vec![format!("at {}", seconds(r.time))];
    about.extend(smmu.map(|smmu| format!("SMMU {smmu}")));
    about.extend(r.sid.map(|sid| format!("StreamID {sid:#x}")));
    about.extend(r.ssid.map(|ssid| format!("SubstreamID {ssid}")));
    about.extend(r.world.map(|world| format!("{world:?}")));
    about.extend(r.asid.map(|asid| format!("ASID {asid}")));
    about.extend(r.vmid.map(|vmid| format!("VMID {vmid}")));
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
fn object(smmu: usize, report: &Report, symbols: &Symbols) -> Value {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    value["smmu"] = smmu.into();
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
