//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::ats::Ats;
use crate::check::Mode;
use crate::options::{Addresses, Disk, Engine, PlacedSmmu, Restricted, Rings, Size, Span, TestDevice};
use crate::plug::{Plug, RootPortKind, Unplug};
use crate::pools::BounceOption;
use crate::race::filter::Target;
use crate::race::policy::Policy;
use crate::survey::Kind;

/// Exit statuses, as --help lists them.
pub mod status {
    /// The user asked for something that cannot be.
    pub const USAGE: u8 = 2;
    /// A schedule failed.
    pub const FAILED: u8 = 1;
    /// A replay went another way than the recording.
    pub const DIVERGED: u8 = 3;
    /// `--check` reported something.
    pub const CHECKED: u8 = 123;
    /// The virtual time limit passed.
    pub const TIME_LIMIT: u8 = 124;
    /// The guest stopped in a way that --exec did not expect: it powered off, reset or hung before CMD ended.
    pub const GUEST_DIED: u8 = 125;
    /// And the number of the signal that ended an interactive run.
    pub const SIGNAL: u8 = 128;
}

const ABOUT: &str = "An arm64 machine whose DMA devices sit behind an SMMUv3, repeatable to the bit";

const AFTER_HELP: &str = "\
Examples:
  smmulab run                              a shell in a Debian arm64 guest; Ctrl-A x leaves
  smmulab run --exec 'dmesg | grep smmu'   run one command and exit with its status
  smmulab run --image debian-6.1 --cpus 4 --disk my.img --append iommu.strict=0
  smmulab image list                       which guests there are";

const RUN_HELP: &str = "\
Exit status:
  the status of CMD with --exec; otherwise 0 when the guest powers off
  2    bad options, or a file that cannot be used: one line on stderr says which
  123  --check reported something
  124  the --time-limit passed
  125  the guest asked for a reset (reboot, or a panic) or hung; with --exec also: it powered off before
       CMD had ended
  128+N  signal N (HUP, INT, TERM) ended an interactive run; the terminal is as it was

On the terminal: Ctrl-A x leaves, Ctrl-A Ctrl-A sends a Ctrl-A.
With --exec, CMD's output is stdout and the kernel log goes to stderr, or to --kernel-log FILE.
The same options, images and seed give the same run to the bit. Input from a keyboard, a pipe,
--net or --vhost-user-… is part of a run: --record keeps it, --play gives it again.";

const RACE_HELP: &str = "\
A scenario is a guest that writes a begin mark to the lab device; docs/race.md says how to make one.
The same scenario, policy and seed give the same schedules and the same result, whatever the number of jobs.
Ctrl-C ends the search, and what it found is shrunk and kept; another Ctrl-C keeps it as it is.

Exit status:
  0    no schedule failed
  1    a schedule failed: its file and its report are in --out DIR
  128+N  none had failed when signal N ended the search (Ctrl-C: 130)
  2    bad options, or a scenario that cannot be run: one line on stderr says which";

const SEARCH_HELP: &str = "\
Each scenario is searched under each policy from each seed; then its correct twin, for ten times as many schedules
as the worst seed of that policy needed. The table is Markdown. Ctrl-C leaves what there is so far, and the same
command goes on from there. The same scenarios, policies, seeds and limits give the same numbers of schedules, on any
host that is fast enough for the time limits; the seconds are the host's.

  smmulab bench search guest-images/scenarios/*.toml --out table.md --records found
  smmulab replay --times 20 found/*.json

Exit status: 0; 2 when a scenario could not be run (the others are); 128+N when signal N ended it";

const REPLAY_HELP: &str = "\
Exit status:
  0    with --until: the run got there; with --gdb: gdb left
  1    the failure came again, to the bit
  2    the file cannot be used: one line on stderr says why
  3    the run went another way than the recorded one";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "smmulab", version, about = ABOUT, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest: an interactive console, or --exec 'CMD'
    Run(Box<RunArgs>),
    /// Explore the schedules of a scenario; say what failed and how to see it again
    Race(Box<RaceArgs>),
    /// Run one recorded schedule again, exactly
    Replay(ReplayArgs),
    /// List, fetch or build guest images
    #[command(subcommand)]
    Image(ImageCommand),
    /// The project's benchmarks, beside whatever peer is installed
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// The guest and the machine, for all commands that boot one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Guest")]
pub struct GuestArgs {
    /// Guest image: see `smmulab image list`; fetched on first use
    #[arg(long, value_name = "NAME", default_value = guest_images::DEFAULT)]
    pub image: String,
    /// An arm64 kernel Image, instead of the image's
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// An initramfs, instead of the image's
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// More words for the kernel command line, behind `console=ttyAMA0 panic=-1 cryptomgr.notests=1`
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// A raw disk, attached as virtio-blk; repeatable. `,ro` makes it read-only
    #[arg(long, value_name = "FILE[,ro]")]
    pub disk: Vec<Disk>,
    /// Put the guest module and test programs into the guest; built on first use (docs/guest-images.md)
    #[arg(long)]
    pub tools: bool,
    /// A disk that another process serves, by vhost-user, attached as virtio-blk behind the other disks; repeatable
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user_blk: Vec<PathBuf>,
    /// A virtio-net device on a network that another process serves, by vhost-user
    #[arg(long, value_name = "SOCKET", conflicts_with = "net")]
    pub vhost_user_net: Option<PathBuf>,
    /// A virtio-net device on the host's network, by passt
    #[arg(long)]
    pub net: bool,
}

/// The machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// vCPUs, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: usize,
    /// RAM, with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub mem: Size,
    /// The SMMUv3 before PCIe: off, on, or key=value,… (docs/smmu-model.md lists the keys). Each further
    /// --smmu is one more, for the Requester IDs of its pci=FIRST-LAST; the last has the device tree's devices
    #[arg(long, value_name = "off|on|KEY=VALUE,…", default_value = "on")]
    pub smmu: Vec<PlacedSmmu>,
    /// A DMA test device; repeatable. PCI functions are in the slots after the disks' (docs/test-devices.md)
    #[arg(long, value_enum, value_name = "KIND")]
    pub device: Vec<TestDevice>,
    /// Virtqueue layout that virtio devices offer; with `packed`, a driver may still choose split ones
    #[arg(long, value_enum, default_value = "split", value_name = "LAYOUT")]
    pub virtio: Rings,
    /// Let devices see a bounce pool instead of guest memory: off, all, or console, rng, net, disk0, …, plug0 (the first
    /// --plug's), …; repeatable. size= and
    /// dynamic= (what may be added) are the shared pool's; restricted=on gives a device its own (docs/swiotlb.md)
    #[arg(long, value_name = "off|all|DEVICE[,size=…,dynamic=…,restricted=…]")]
    pub bounce: Vec<BounceOption>,
    /// PCIe ATS of the virtio functions and the test engines: on, or key=value,… (docs/devices.md lists the keys)
    #[arg(long, value_name = "on|KEY=VALUE,…")]
    pub ats: Option<Ats>,
    /// A PCIe root port with a hot-plug slot, numbered from 1; repeatable
    #[arg(long, value_enum, value_name = "KIND")]
    pub root_port: Vec<RootPortKind>,
    /// Plug DEVICE into root port PORT's slot at virtual time TIME (0: it is there at power-on): rng, engine, testdev
    /// or disk=FILE[,ro]; repeatable
    #[arg(long, value_name = "TIME:PORT:DEVICE")]
    pub plug: Vec<Plug>,
    /// Take out what is in PORT's slot: press its button, so that the guest lets go of it first, or `:surprise`
    #[arg(long, value_name = "TIME:PORT[:surprise]")]
    pub unplug: Vec<Unplug>,
    /// Address bits that PCI functions have (dma-ranges); with 32 and RAM above 4 GiB (--mem 4G and more), Linux
    /// bounces without an SMMU, and takes low IOVAs with one
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(32..=63))]
    pub dma_bits: Option<u8>,
    /// Confine a device (console, rng, net, disk0 …) to a restricted-dma-pool of SIZE (16M); repeatable. Needs
    /// --smmu off and a kernel with CONFIG_DMA_RESTRICTED_POOL (`--image lab`)
    #[arg(long, value_name = "DEVICE[,SIZE]")]
    pub restricted_dma: Vec<Restricted>,
    /// Seeds everything random in the machine: a run is a function of its options, images and seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// CPU engine; all give the same results to the bit
    #[arg(long, value_enum, default_value = "native")]
    pub engine: Engine,
    /// Instructions a vCPU runs before the next one's turn
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub quantum: u64,
    /// Advertise FEAT_LSE (atomic instructions) to the guest
    #[arg(long)]
    pub lse: bool,
    /// Advertise FEAT_PAN (privileged access never) to the guest
    #[arg(long)]
    pub pan: bool,
    /// A lab device, at which the guest marks points of a scenario (docs/race.md)
    #[arg(long)]
    pub lab: bool,
    /// A parameter for the guest to read at the lab device; repeatable
    #[arg(long, value_name = "N", requires = "lab")]
    pub param: Vec<u64>,
}

/// What a snapshot says instead.
const NOT_WITH_FROM: [&str; 27] = [
    "image",
    "kernel",
    "initrd",
    "append",
    "disk",
    "tools",
    "net",
    "vhost_user_blk",
    "vhost_user_net",
    "cpus",
    "mem",
    "smmu",
    "device",
    "ats",
    "root_port",
    "plug",
    "unplug",
    "seed",
    "engine",
    "quantum",
    "lse",
    "pan",
    "lab",
    "param",
    "exec",
    "play",
    "record",
];

/// `smmulab run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = RUN_HELP)]
pub struct RunArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Run CMD in the guest's shell, then power off; its output is stdout, its status the exit status
    #[arg(long, value_name = "CMD", help_heading = "Run")]
    pub exec: Option<String>,
    /// Stop after this much virtual time (ns, us, ms, s, m, h), with status 124
    #[arg(long, value_name = "TIME", help_heading = "Run")]
    pub time_limit: Option<Span>,
    /// Where the kernel log (the UART) goes, instead of stderr with --exec and stdout without
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub kernel_log: Option<PathBuf>,
    /// Record what the keyboard, --net and --vhost-user-… bring, with the virtual time at which the machine was given it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub record: Option<PathBuf>,
    /// Give the machine a recording instead of live input: the same run again, to the bit
    #[arg(long, value_name = "FILE", help_heading = "Run", conflicts_with = "record")]
    pub play: Option<PathBuf>,
    /// Save the whole machine at --snapshot-at, and go on; its disks must be `,ro`
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub snapshot: Option<PathBuf>,
    /// When: at this virtual time, instead of the guest's first snapshot mark at the lab device
    #[arg(long, value_name = "TIME", help_heading = "Run", requires = "snapshot")]
    pub snapshot_at: Option<Span>,
    /// Go on from a snapshot, with its guest and its machine, instead of booting
    #[arg(long, value_name = "FILE", help_heading = "Run", conflicts_with_all = NOT_WITH_FROM)]
    pub from: Option<PathBuf>,
    /// Say what the guest does wrong with its SMMU, and with buffers that bounced devices have, on stderr and with status
    /// 123 (docs/checker.md)
    #[arg(long, value_enum, default_value = "off", value_name = "MODE", help_heading = "Run")]
    pub check: Mode,
    /// Report as well that the data of a disk write changes while a bounced disk has it; Linux does that
    #[arg(long, help_heading = "Run", requires = "check")]
    pub check_rewrites: bool,
    /// Write each report of --check as one JSON object a line
    #[arg(long, value_name = "FILE", help_heading = "Run", requires = "check")]
    pub check_json: Option<PathBuf>,
    /// Names for the guest's code: a System.map, a copy of /proc/kallsyms or a vmlinux, instead of the image's or the
    /// kernel's own
    #[arg(long, value_name = "FILE", help_heading = "Run", requires = "check")]
    pub symbols: Option<PathBuf>,
    /// Count each function's DMA to this physical memory apart in --stats (counted_dma: bytes read and written); END is the
    /// first address behind it, as kernels print where their bounce pool is
    #[arg(long, value_name = "START-END", help_heading = "Run", requires = "stats")]
    pub count_dma: Option<Addresses>,
    /// Write counters and hashes of the run as one JSON object
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub stats: Option<PathBuf>,
}

/// `smmulab race`.
#[derive(Args, Clone, Debug)]
#[command(after_help = RACE_HELP)]
pub struct RaceArgs {
    /// The scenario, a TOML file
    #[arg(value_name = "SCENARIO")]
    pub scenario: PathBuf,
    /// How schedules are chosen
    #[arg(long, value_enum, default_value = "random")]
    pub policy: Policy,
    /// Depth of the bugs that --policy pct and few look for: as many changes of priorities, or holds, and one more
    #[arg(long, value_name = "D", default_value_t = 2)]
    pub depth: u32,
    /// Schedules to run at most
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub runs: u64,
    /// Stop after this much time of the host
    #[arg(long, value_name = "TIME")]
    pub time: Option<Span>,
    /// Schedules to run at the same time [default: as many as the host has CPUs]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Seeds the choice of schedules
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Hold only these actors: cpu1, pci.04 (all of a device), smmu.command, …; repeatable
    #[arg(long, value_name = "ACTOR")]
    pub who: Vec<String>,
    /// Hold vCPUs only in this function, or in all whose names begin so (`arm_smmu_*`); repeatable
    #[arg(long, value_name = "SYMBOL")]
    pub within: Vec<String>,
    /// Hold vCPUs only at such decision points: device (registers), table (an SMMU's), queue (an SMMU's), dma, shared (memory
    /// of several vCPUs), exclusive, barrier, interrupt; repeatable
    #[arg(long, value_name = "KIND")]
    pub points: Vec<Kind>,
    /// Hold vCPUs only where they reach for these physical addresses, or for an actor's registers and memory (`engine.0`,
    /// `pci.04`, `smmu`); repeatable
    #[arg(long, value_name = "0xFIRST-0xLAST|ACTOR")]
    pub touching: Vec<Target>,
    /// Go on after the first failure, and keep one of each kind
    #[arg(long)]
    pub keep_going: bool,
    /// Where failing schedules and their reports are kept
    #[arg(long, value_name = "DIR", default_value = "races")]
    pub out: PathBuf,
    /// Show what the guest prints until its scenario begins
    #[arg(long)]
    pub verbose: bool,
}

/// `smmulab replay`.
#[derive(Args, Clone, Debug)]
#[command(after_help = REPLAY_HELP)]
pub struct ReplayArgs {
    /// Failing schedules that `smmulab race` has kept; of several, a line each
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Write what everybody did, by function, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Wait for gdb at this address (`target remote`), which can go backwards too
    #[arg(long, value_name = "HOST:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:1234")]
    pub gdb: Option<String>,
    /// Stop at a point of the run and say where everybody is: a virtual time since its beginning, `SYMBOL[+0xOFFSET]`,
    /// `decision N`, `mark [end|pass|fail|snapshot]`, or what a script waits for (`cpu1 at SYMBOL times 3`, `its does 2`)
    #[arg(long, value_name = "POINT", conflicts_with_all = ["trace", "times"])]
    pub until: Option<String>,
    /// Save the machine there, for `smmulab run --from FILE`
    #[arg(long, value_name = "FILE", requires = "until")]
    pub snapshot: Option<PathBuf>,
    /// Run it this many times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub times: u32,
}

/// `smmulab image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Which images there are, and which are in the cache
    List,
    /// Fetch images into the cache
    Fetch {
        /// Names, as `list` shows them
        #[arg(required = true)]
        names: Vec<String>,
        /// Look for a newer version even if one is in the cache
        #[arg(long)]
        refresh: bool,
    },
    /// Build the guest module and test programs of `run --tools` for an image
    Tools {
        /// The image, as `list` shows it
        #[arg(default_value = guest_images::DEFAULT)]
        name: String,
    },
    /// Build an image from Debian's sources (`lab`: the lab kernel)
    Build {
        /// What to build
        #[arg(default_value = "lab")]
        name: String,
    },
}

/// `smmulab bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Boot and read a disk, beside QEMU if it is installed
    Boot(BootBenchArgs),
    /// Schedules a second, and what it costs to begin one
    Race(RaceBenchArgs),
    /// How many schedules it takes to find each scenario's failure, by policy and seed
    Search(SearchBenchArgs),
    /// What the bounce pool costs: map and unmap, two threads, lookups, a guest's disk
    Swiotlb(SwiotlbBenchArgs),
    /// What a translation of the SMMU costs, beside the loads that it makes
    Smmu(SmmuBenchArgs),
}

/// `smmulab bench smmu`.
#[derive(Args, Debug)]
pub struct SmmuBenchArgs {
    /// Translations of each round
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub translations: u64,
    /// Translations whose instructions are counted, one by one in a traced child; 0 for none
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub counted: u64,
    /// Only lines that have this in their name
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
}

/// `smmulab bench race`.
#[derive(Args, Debug)]
pub struct RaceBenchArgs {
    /// Guest image
    #[arg(long, value_name = "NAME", default_value = guest_images::DEFAULT)]
    pub image: String,
    /// Rounds of what is measured as a median
    #[arg(long, default_value_t = 9)]
    pub rounds: u32,
    /// Schedules to run at the same time [default: as many as the host has CPUs]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

/// `smmulab bench search`.
#[derive(Args, Debug)]
#[command(after_help = SEARCH_HELP)]
pub struct SearchBenchArgs {
    /// Scenarios, TOML files; NAME-correct.toml beside NAME.toml is its correct twin
    #[arg(value_name = "SCENARIO", required = true)]
    pub scenarios: Vec<PathBuf>,
    /// How schedules are chosen
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "POLICY,…",
        default_value = "random,pct,fixed"
    )]
    pub policies: Vec<Policy>,
    /// What seeds the choice, once each
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "1,2,3")]
    pub seeds: Vec<u64>,
    /// Depth of the bugs that pct and few look for
    #[arg(long, value_name = "D", default_value_t = 2)]
    pub depth: u32,
    /// Schedules to run at most for each policy and seed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub runs: u64,
    /// Time of the host at most for each policy and seed
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub time: Span,
    /// Time of the host at most for each policy and twin
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub twin_time: Span,
    /// Schedules to run at the same time [default: as many as the host has CPUs]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Write the table here, anew after each scenario, and the results as they come to the same name in .jsonl: what is there
    /// already is not searched again
    #[arg(long, value_name = "FILE.md")]
    pub out: Option<PathBuf>,
    /// Keep each failing schedule, shrunk, as SCENARIO-POLICY-SEED.json here, for `smmulab replay`
    #[arg(long, value_name = "DIR")]
    pub records: Option<PathBuf>,
}

/// `smmulab bench swiotlb`.
#[derive(Args, Debug)]
pub struct SwiotlbBenchArgs {
    /// Guest image
    #[arg(long, value_name = "NAME", default_value = guest_images::DEFAULT)]
    pub image: String,
    /// Rounds of each small figure, of which the best counts
    #[arg(long, default_value_t = 60)]
    pub rounds: u32,
    /// Rounds of guests: each runs a direct and a bounced one
    #[arg(long, default_value_t = 3)]
    pub guest_rounds: u32,
    /// Direct 4 KiB reads to measure (a quarter as many more are made); 0 for no guests
    #[arg(long, default_value_t = 20_000)]
    pub reads: u32,
}

/// `smmulab bench boot`.
#[derive(Args, Debug)]
pub struct BootBenchArgs {
    /// Guest image
    #[arg(long, value_name = "NAME", default_value = guest_images::DEFAULT)]
    pub image: String,
    /// Rounds: each runs ours and QEMU's in turn
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Direct 4 KiB reads to measure (a quarter as many more are made)
    #[arg(long, default_value_t = 20_000)]
    pub reads: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
