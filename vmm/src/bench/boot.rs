//! `smmulab bench boot`: boot, read a disk, power off; then direct 4 KiB reads. Ours and QEMU's in turn.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::peer;
use crate::cli::BootBenchArgs;
use crate::say::outln;

const DISK_MIB: u32 = 64;

/// What the guest does in each run of a round.
struct Jobs {
    nothing: String,
    sequential: String,
    /// A quarter of the reads: what comes once, whatever their number, is in both and so in neither's difference.
    few: String,
    many: String,
}

/// Direct 4 KiB reads, from the disk's beginning and again.
pub(super) fn direct_reads(mut count: u32) -> String {
    let mut script = String::new();
    while count > 0 {
        let some = count.min(DISK_MIB << 8);
        script +=
            &format!("dd if=/dev/vda of=/dev/null bs=4k count={some} iflag=direct 2>/dev/null || exit 1\n");
        count -= some;
    }
    script
}

impl Jobs {
    fn new(reads: u32) -> Self {
        Self {
            nothing: "true".into(),
            sequential: format!("dd if=/dev/vda of=/dev/null bs=1M count={DISK_MIB} 2>/dev/null"),
            few: direct_reads(reads.div_ceil(4)),
            many: direct_reads(reads + reads.div_ceil(4)),
        }
    }
}

/// Wall times of one round for one emulator.
#[derive(Clone, Copy, Default)]
struct Round {
    nothing: Duration,
    sequential: Duration,
    few: Duration,
    many: Duration,
}

impl Round {
    fn reads_a_second(&self, reads: u32) -> f64 {
        f64::from(reads) / self.many.saturating_sub(self.few).as_secs_f64().max(1e-3)
    }
}

struct Bench {
    image: guest_images::Image,
    name: String,
    disk: PathBuf,
    dir: PathBuf,
    append: String,
}

pub(super) fn timed(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let elapsed = start.elapsed();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = text.lines().rev().take(3).collect();
        bail!("{:?} ended with {}: {}", command.get_program(), output.status, tail.join(" | "));
    }
    Ok(elapsed)
}

impl Bench {
    fn ours(&self, job: &str) -> Result<Duration> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--image", &self.name, "--exec", job, "--kernel-log", "/dev/null", "--disk"])
            .arg(&self.disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        timed(command)
    }

    fn peer(&self, job: &str) -> Result<Duration> {
        let initrd = self.dir.join("initrd");
        let mut archive = std::fs::read(&self.image.initrd)?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(guest_images::job_cpio(job));
        std::fs::write(&initrd, archive)?;
        let console = self.dir.join("console");
        timed(peer::command(&self.image.kernel, &initrd, &self.disk, &self.append, &console))
    }

    fn round(&self, jobs: &Jobs, run: impl Fn(&Self, &str) -> Result<Duration>) -> Result<Round> {
        Ok(Round {
            nothing: run(self, &jobs.nothing)?,
            sequential: run(self, &jobs.sequential)?,
            few: run(self, &jobs.few)?,
            many: run(self, &jobs.many)?,
        })
    }
}

fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(u64::from(DISK_MIB) << 20)?;
    Ok(())
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// When a guest cannot be fetched or does not do its job.
pub fn run(args: &BootBenchArgs) -> Result<()> {
    ensure!(args.rounds > 0 && args.reads > 0, "--rounds and --reads take at least 1");
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    make_disk(&disk)?;
    let bench = Bench {
        image: guest_images::fetch(&args.image, guest_images::Progress::auto())?,
        name: args.image.clone(),
        disk,
        dir: dir.path().into(),
        append: crate::run::BASE_APPEND.into(),
    };
    let peer = peer::version();
    let jobs = Jobs::new(args.reads);
    let reads = args.reads;

    let bar = ProgressBar::new(u64::from(args.rounds) * if peer.is_some() { 2 } else { 1 });
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..args.rounds {
        bar.set_message("smmulab");
        ours.push(bench.round(&jobs, Bench::ours)?);
        bar.inc(1);
        if peer.is_some() {
            bar.set_message("QEMU");
            theirs.push(bench.round(&jobs, Bench::peer)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    report(peer.as_deref(), &ours, &theirs, reads);
    Ok(())
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(peer: Option<&str>, ours: &[Round], theirs: &[Round], reads: u32) {
    type Figure = (&'static str, fn(&Round, u32) -> f64, bool);
    let figures: [Figure; 3] = [
        ("boot and power off, s", |r, _| r.nothing.as_secs_f64(), false),
        ("boot, read 64 MiB, power off, s", |r, _| r.sequential.as_secs_f64(), false),
        ("direct 4 KiB reads a second", Round::reads_a_second, true),
    ];
    outln!("{:34} {:>12} {:>12} {:>8}", "median", "smmulab", "QEMU", "ratio");
    for (name, figure, _) in figures {
        let mine = median(ours.iter().map(|r| figure(r, reads)).collect());
        if theirs.is_empty() {
            outln!("{name:34} {mine:>12.2} {:>12} {:>8}", "-", "-");
            continue;
        }
        let their = median(theirs.iter().map(|r| figure(r, reads)).collect());
        let ratio =
            median(ours.iter().zip(theirs).map(|(a, b)| figure(a, reads) / figure(b, reads)).collect());
        outln!("{name:34} {mine:>12.2} {their:>12.2} {ratio:>8.2}");
    }
    match peer {
        Some(version) => outln!("peer: {version}, -icount shift=0,sleep=off, behind its SMMUv3"),
        None => outln!("SKIPPED: no {} to compare with (Debian package qemu-system-arm)", peer::QEMU),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_round_the_disk() {
        assert_eq!(direct_reads(100).matches("count=100 ").count(), 1);
        let script = direct_reads(20_000);
        assert!(script.contains("count=16384 ") && script.contains("count=3616 "), "{script}");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
