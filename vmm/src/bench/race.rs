//! `smmulab bench race`: schedules a second, and what it costs to begin one, to follow it, to record it and to check it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cli::RaceBenchArgs;
use crate::race::fork::Child;
use crate::race::interrupt::Interrupt;
use crate::race::policy::{Choice, Policy};
use crate::race::scenario::Scenario;
use crate::race::search::{Explorer, Limits, Work, search};
use crate::say::outln;
use crate::snapshot;

/// A guest of no operating system: its first vCPU marks the beginning and starts the second; both add to a counter in RAM, 200
/// times each; then the first marks that all is well.
const PROGRAM: [u32; 36] = [
    0xd280_0110, // mov  x16, #0x8               the lab device's MARK
    0xf2a1_8010, // movk x16, #0xc00, lsl #16
    0x5280_0031, // mov  w17, #1                 it begins
    0xb900_0211, // str  w17, [x16]
    0xd280_0021, // mov  x1, #1                  CPU_ON(1, second, 0)
    0x1000_02a2, // adr  x2, second
    0xd280_0003, // mov  x3, #0
    0xd280_0060, // mov  x0, #3
    0xf2b8_8000, // movk x0, #0xc400, lsl #16
    0xd400_0002, // hvc  #0
    0xd2a8_4009, // mov  x9, #0x42000000         the counter
    0xd280_1905, // mov  x5, #200
    0xf940_012a, // ldr  x10, [x9]
    0x9100_054a, // add  x10, x10, #1
    0xf900_012a, // str  x10, [x9]
    0xf100_04a5, // subs x5, x5, #1
    0x54ff_ff81, // b.ne the load
    0xd280_0080, // mov  x0, #4                  AFFINITY_INFO(1, 0), until it is off
    0xf2b8_8000, // movk x0, #0xc400, lsl #16
    0xd280_0021, // mov  x1, #1
    0xd280_0002, // mov  x2, #0
    0xd400_0002, // hvc  #0
    0xb4ff_ff60, // cbz  x0, AFFINITY_INFO
    0x5280_0071, // mov  w17, #3                 it passed
    0xb900_0211, // str  w17, [x16]
    0x1400_0000, // b    .
    0xd2a8_4009, // second: mov x9, #0x42000000
    0xd280_1905, // mov  x5, #200
    0xf940_012a, // ldr  x10, [x9]
    0x9100_054a, // add  x10, x10, #1
    0xf900_012a, // str  x10, [x9]
    0xf100_04a5, // subs x5, x5, #1
    0x54ff_ff81, // b.ne the load
    0xd280_0040, // mov  x0, #2                  CPU_OFF
    0xf2b0_8000, // movk x0, #0x8400, lsl #16
    0xd400_0002, // hvc  #0
];

/// The program with the header of an arm64 `Image` (Documentation/arch/arm64/booting.rst).
fn image() -> Vec<u8> {
    let mut words = [0u32; 16];
    words[0] = 0x1400_0010; // b .+64
    words[4] = 4 * (16 + PROGRAM.len() as u32); // image_size
    words[6] = 0b1010; // little-endian, 4 KiB pages, anywhere in RAM
    words[14] = u32::from_le_bytes(*b"ARM\x64");
    words.iter().chain(&PROGRAM).flat_map(|word| word.to_le_bytes()).collect()
}

/// A guest that executes about a million instructions between its marks.
const JOB: &str = "devmem 0xc000008 32 1; i=0; while [ $i -lt 60 ]; do i=$((i+1)); read x < /proc/uptime; done; \
                   devmem 0xc000008 32 3";

/// What one guest showed.
struct Figures {
    name: String,
    instructions: u64,
    a_second: f64,
    restore: Duration,
    /// How much longer a run takes that follows a schedule, that records as well, and under `--check`.
    costs: [f64; 3],
    /// How long it takes, and the file's size.
    from_disk: (Duration, u64),
}

fn scenario(run: &[&str]) -> Scenario {
    Scenario {
        about: "bench race".into(),
        run: run.iter().map(ToString::to_string).collect(),
        limit: "10s".into(),
        fail_on: Vec::new(),
        who: Vec::new(),
        within: Vec::new(),
        points: Vec::new(),
        script: Vec::new(),
        symbols: None,
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How much longer a run takes that follows a schedule, one that records the order of conflicting accesses as well, and one
/// under `--check`, as medians of runs in turn.
fn costs(plain: &mut Explorer, checked: &mut Explorer, rounds: u32) -> Result<[f64; 3]> {
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        times[0].push(plain.timed(Work::Run)?);
        times[1].push(plain.timed(Work::Follow)?);
        times[2].push(plain.timed(Work::Cover)?);
        times[3].push(checked.timed(Work::Run)?);
    }
    let [run, follow, cover, check] = times.map(|times| median(times).as_secs_f64());
    Ok([follow / run, cover / run, check / run])
}

fn measure(
    name: &str,
    scenario: &Scenario,
    args: &RaceBenchArgs,
    schedules: u64,
    dir: &Path,
) -> Result<Figures> {
    let prepared = scenario.prepare(|_| {})?;
    let file = dir.join("snapshot");
    let options = scenario.options()?;
    snapshot::save(&prepared.machine, &options, prepared.exec, &file)?;
    let from_disk = (0..args.rounds).map(|_| {
        let start = Instant::now();
        snapshot::load(&file).map(|_| start.elapsed())
    });
    let from_disk = median(from_disk.collect::<Result<_>>()?);
    let size = std::fs::metadata(&file)?.len();
    let restore = (0..10 * args.rounds).map(|_| {
        let start = Instant::now();
        let child = Child::start(|| start.elapsed())?;
        child.join::<Duration>()
    });
    let restore = median(restore.collect::<Result<_>>()?);
    let mut explorer = Explorer::new(scenario, prepared)?;
    ensure!(explorer.plain.failure.is_none(), "{name}: {:?}", explorer.plain.failure);
    let mut checked = scenario.clone();
    checked.run.extend(["--check".into(), "report".into()]);
    let prepared = checked.prepare(|_| {})?;
    let mut checked = Explorer::new(&checked, prepared)?;
    ensure!(checked.plain.failure.is_none(), "{name}, --check: {:?}", checked.plain.failure);
    let costs = costs(&mut explorer, &mut checked, args.rounds)?;
    drop(checked);
    let choice = Choice { policy: Policy::Random, depth: 2, seed: 0 };
    let limits = Limits { runs: schedules, time: None, jobs: args.jobs, keep_going: true };
    let start = Instant::now();
    let found = search(&mut explorer, limits, choice, &Interrupt::watch()?)?;
    Ok(Figures {
        name: name.into(),
        instructions: explorer.plain.instructions,
        a_second: found.runs() as f64 / start.elapsed().as_secs_f64(),
        restore,
        costs,
        from_disk: (from_disk, size),
    })
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// When a guest cannot be had or does not do its job.
pub fn run(args: &RaceBenchArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds takes at least 1");
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("Image");
    std::fs::write(&kernel, image())?;
    let kernel = kernel.to_string_lossy().into_owned();
    let bare = scenario(&["--kernel", &kernel, "--cpus", "2", "--mem", "64M"]);
    let linux = scenario(&["--image", &args.image, "--cpus", "2", "--mem", "256M", "--exec", JOB]);
    outln!(
        "{:<12}{:>13}{:>13}{:>17}{:>16}{:>14}{:>14}{:>12}",
        "2 vCPUs",
        "instructions",
        "schedules/s",
        "from memory, ms",
        "from disk, ms",
        "following, ×",
        "recording, ×",
        "--check, ×"
    );
    for (name, scenario, schedules) in [("bare metal", &bare, 2000), (args.image.as_str(), &linux, 200)] {
        let f = measure(name, scenario, args, schedules, dir.path())?;
        let (time, size) = f.from_disk;
        let disk = format!("{:.0} ({} MiB)", time.as_secs_f64() * 1e3, size >> 20);
        outln!(
            "{:<12}{:>13}{:>13.0}{:>17.2}{:>16}{:>14.3}{:>14.3}{:>12.3}",
            f.name,
            f.instructions,
            f.a_second,
            f.restore.as_secs_f64() * 1e3,
            disk,
            f.costs[0],
            f.costs[1],
            f.costs[2]
        );
    }
    Ok(())
}
