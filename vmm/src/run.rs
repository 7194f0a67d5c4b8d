//! `smmulab run`: from options to an exit status.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_images::ExitTrailer;

use crate::assemble::{CONSOLE, NET, assemble, disk_slot};
use crate::check::{self, Mode, Teller};
use crate::cli::{GuestArgs, MachineArgs, RunArgs, status};
use crate::edge::{Answer, Edge, Identity, Passt, RawMode, VhostDisk, VhostNet, Wire};
use crate::input::{Input, Player, Recorder, Served};
use crate::load::Boot;
use crate::machine::{Machine, Stop};
use crate::options::{Addresses, MachineOptions, RemoteDisk};
use crate::say::say;
use crate::snapshot::{self, Snapshot};
use crate::stats::{self, HashWriter, Host, Stats};
use crate::symbols::Symbols;
use devices::lab::Mark;
use devices::pci::Slot;
use devices::virtio::{Blk, Console, Net};
use smmu_model::checker::Patience;

/// What every guest's command line begins with. The kernel's tests of its own cryptography are half of a Debian
/// kernel's boot and say nothing of an IOMMU; `--append cryptomgr.notests=0` brings them back.
pub const BASE_APPEND: &str = "console=ttyAMA0 panic=-1 cryptomgr.notests=1";
/// The most bytes of it: COMMAND_LINE_SIZE of arm64 is 2048 with the NUL, and Linux cuts off the rest.
const MAX_APPEND: usize = 2047;
/// How much virtual time passes between two looks at the host, in nanoseconds.
const SLICE: u64 = 2_000_000;

/// Carries out `smmulab run`; the result is the exit status.
///
/// # Errors
/// One line for the user; the status is then [`status::USAGE`].
pub fn run(args: &RunArgs) -> Result<u8> {
    let player = args.play.as_deref().map(Player::open).transpose()?;
    let (mut served, mut network) = (Vec::new(), None);
    let (machine, options, exec) = match &args.from {
        Some(path) => {
            let Snapshot { machine, options, exec } = snapshot::load(path)?;
            (machine, options, exec)
        }
        None => {
            let (mut options, boot) = plan(args)?;
            served = serve(args, player.as_ref(), &mut options)?;
            network = serve_network(args, player.as_ref(), &mut options)?;
            let machine = assemble(&options, &boot)?;
            (machine, options, args.exec.is_some())
        }
    };
    let log = match &args.kernel_log {
        Some(path) => Log::File(create(path)?),
        None if exec => Log::Stderr,
        None => Log::Stdout,
    };
    // The file is made before the run, so that a path that cannot be written is known before the work is done.
    let stats_file = args.stats.as_deref().map(create).transpose()?;
    let plan = args.snapshot.clone().map(|path| Plan { path, at: args.snapshot_at.map(|span| span.0), exec });
    let mut machine = machine;
    if let Some(Addresses(window)) = &args.count_dma {
        machine.board.pci.fabric().count_window(window.clone());
    }
    let checkers = match args.check {
        Mode::Off => None,
        Mode::Report | Mode::Abort => {
            let checkers = check::attach(&mut machine, Patience::default(), args.check_rewrites);
            anyhow::ensure!(!checkers.is_empty(), "--check needs an SMMU or --bounce");
            Some(checkers)
        }
    };
    let teller = |checkers| Teller::new(checkers, symbols(args)?, args.check_json.as_ref());
    let mut session = Session {
        machine,
        plan,
        teller: checkers.map(teller).transpose()?,
        abort: args.check == Mode::Abort,
        options,
        wire: None,
        served,
        typed: Vec::new(),
        recorder: args.record.as_deref().map(Recorder::create).transpose()?,
        player,
        edge: Edge::new().context("cannot make an event loop")?,
        log,
        trailer: exec.then(ExitTrailer::new),
        hashes: [HashWriter::new(), HashWriter::new()],
        bytes: [0; 2],
    };
    let live = session.player.is_none();
    for disk in &session.served {
        session.edge.watch(disk);
    }
    if let Some(recorder) = &mut session.recorder {
        for disk in &session.options.remote {
            recorder.note(0, &Input::Disk(*disk))?;
        }
        if let Some(mac) = session.options.mac {
            recorder.note(0, &Input::Mac(mac))?;
        }
    }
    if let Some(network) = network {
        session.edge.watch(&network);
        session.wire = Some(Box::new(network));
    } else if session.options.net && live {
        let passt = Passt::start()?;
        session.edge.watch(&passt);
        session.wire = Some(Box::new(passt));
    }
    let raw = if !exec && live {
        session.edge.watch_stdin();
        let raw = RawMode::enter();
        if raw.entered() {
            // Whatever ends the run, the terminal is to be as it was.
            session.edge.watch_signals();
        }
        Some(raw)
    } else {
        None
    };
    let limit = args.time_limit.map_or(u64::MAX, |span| span.0);
    let start = Instant::now();
    let outcome = session.drive(limit);
    let elapsed = start.elapsed();
    drop(raw);
    let mut code = session.finish(outcome, exec)?;
    if let Some(teller) = &mut session.teller {
        teller.finish(&session.machine)?;
        if teller.count != 0 {
            code = status::CHECKED;
        }
    }
    if let Some(recorder) = session.recorder.take() {
        recorder.finish()?;
    }
    if let Some(file) = stats_file {
        session.write_stats(file, elapsed).context("cannot write the statistics")?;
    }
    if let Some(plan) = session.plan {
        anyhow::bail!("the run ended before its snapshot {} was due", plan.path.display());
    }
    Ok(code)
}

/// Names for the guest's code: the user's, or the image's.
fn symbols(args: &RunArgs) -> Result<Symbols> {
    if let Some(path) = &args.symbols {
        return Symbols::open(path);
    }
    // A kernel that only the guest knows has names of its own.
    if args.guest.kernel.is_some() || args.from.is_some() {
        return Ok(Symbols::default());
    }
    let image = guest_images::fetch(&args.guest.image, guest_images::Progress::auto())?;
    // Debian's kernels have one that says nothing.
    Ok(image.system_map.and_then(|path| Symbols::open(&path).ok()).unwrap_or_default())
}

/// Connects to the processes that serve disks, or takes from a recording what they said.
fn serve(args: &RunArgs, player: Option<&Player>, options: &mut MachineOptions) -> Result<Vec<VhostDisk>> {
    let sockets = &args.guest.vhost_user_blk;
    if let Some(player) = player {
        options.remote = player.disks();
        let recorded = options.remote.len();
        anyhow::ensure!(
            recorded == sockets.len(),
            "the recording is of a run with {recorded} of --vhost-user-blk"
        );
        return Ok(Vec::new());
    }
    let first = options.disks.len();
    let connect = |(n, socket): (usize, &PathBuf)| VhostDisk::connect(socket, disk_slot(first + n));
    let served = sockets.iter().enumerate().map(connect).collect::<Result<Vec<_>>>()?;
    let disk = |disk: &VhostDisk| {
        let Identity { sectors, read_only } = disk.identity();
        RemoteDisk { sectors, read_only }
    };
    options.remote = served.iter().map(disk).collect();
    Ok(served)
}

/// Connects to the process that serves the network, or takes from a recording what it said.
fn serve_network(
    args: &RunArgs,
    player: Option<&Player>,
    options: &mut MachineOptions,
) -> Result<Option<VhostNet>> {
    if let Some(player) = player {
        options.mac = player.mac();
        return Ok(None);
    }
    let Some(socket) = &args.guest.vhost_user_net else { return Ok(None) };
    let network = VhostNet::connect(socket)?;
    options.mac = network.mac();
    Ok(Some(network))
}

/// The machine and the guest that `args` ask for.
///
/// # Errors
/// One line for the user.
pub fn plan(args: &RunArgs) -> Result<(MachineOptions, Boot)> {
    Ok((machine_options(&args.machine, &args.guest)?, boot(&args.guest, args.exec.as_deref())?))
}

/// What the guest sent to its UART since the last time.
pub fn take_console(machine: &mut Machine) -> Vec<u8> {
    machine.board.uart.take_output()
}

/// What it sent to its virtio console.
pub fn take_virtio_console(machine: &mut Machine) -> Vec<u8> {
    let output = machine.board.pci.with_device(Slot::device(CONSOLE), |c: &mut Console| c.take_output());
    output.unwrap_or_default()
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn machine_options(machine: &MachineArgs, guest: &GuestArgs) -> Result<MachineOptions> {
    let (first, more_smmus) = match machine.smmu.split_first() {
        Some((first, more)) => (first.clone(), more.to_vec()),
        None => ("on".parse().map_err(anyhow::Error::msg)?, Vec::new()),
    };
    anyhow::ensure!(
        first.pci.is_empty(),
        "the first --smmu has all of PCI that no other takes: it takes no pci="
    );
    let options = MachineOptions {
        cpus: machine.cpus,
        ram: machine.mem.0,
        smmu: first.smmu,
        more_smmus,
        disks: guest.disk.clone(),
        remote: Vec::new(),
        devices: machine.device.clone(),
        root_ports: machine.root_port.clone(),
        plugs: machine.plug.clone(),
        unplugs: machine.unplug.clone(),
        net: guest.net || guest.vhost_user_net.is_some(),
        mac: None,
        virtio: machine.virtio,
        bounce: machine.bounce.clone(),
        ats: machine.ats,
        dma_bits: machine.dma_bits,
        restricted: machine.restricted_dma.clone(),
        seed: machine.seed,
        engine: machine.engine,
        quantum: machine.quantum,
        lse: machine.lse,
        pan: machine.pan,
        lab: machine.lab.then(|| machine.param.clone()),
    };
    options.check().map_err(anyhow::Error::msg)?;
    Ok(options)
}

fn boot(guest: &GuestArgs, exec: Option<&str>) -> Result<Boot> {
    let mut append = BASE_APPEND.to_string();
    for words in &guest.append {
        append.push(' ');
        append.push_str(words);
    }
    let mut tools = None;
    anyhow::ensure!(
        append.len() <= MAX_APPEND,
        "the kernel's command line has {} bytes with --append, and Linux takes {MAX_APPEND}",
        append.len()
    );
    anyhow::ensure!(
        exec.is_none() || guest.kernel.is_none() || guest.initrd.is_some(),
        "--exec needs the initramfs of an image, whose init runs CMD: give --initrd with --kernel (an empty file if the \
         kernel has one built in)"
    );
    let (kernel, initrd) = match (&guest.kernel, &guest.initrd) {
        (Some(_), _) if guest.tools => anyhow::bail!("--tools are built for an --image, not for a --kernel"),
        (Some(kernel), initrd) => (kernel.clone(), initrd.clone()),
        (None, initrd) => {
            let progress = guest_images::Progress::auto();
            let image = guest_images::fetch(&guest.image, progress)?;
            if guest.tools {
                tools = Some(guest_images::Store::open()?.tools(&image, progress)?);
            }
            (image.kernel, Some(initrd.clone().unwrap_or(image.initrd)))
        }
    };
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read the initramfs {}", path.display()))
    };
    let mut pieces = initrd.iter().chain(&tools).map(read).collect::<Result<Vec<_>>>()?;
    pieces.extend(exec.map(guest_images::job_cpio));
    Ok(Boot { kernel, initrd: pieces, append })
}

/// Where the UART's output goes.
enum Log {
    Stdout,
    Stderr,
    File(File),
}

impl Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => flushed(std::io::stdout().lock(), bytes),
            Self::Stderr => flushed(std::io::stderr().lock(), bytes),
            Self::File(file) => file.write_all(bytes),
        }
    }
}

fn flushed(mut out: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

fn give(machine: &mut Machine, now: u64, input: &Input) {
    match input {
        Input::Keys(bytes) => {
            machine.board.type_in(now, bytes);
        }
        Input::Frame(frame) => {
            machine.board.pci.with_device(Slot::device(NET), |net: &mut Net| net.receive(now, frame));
        }
        Input::Served(Served { slot, token, data }) => {
            let end = |disk: &mut Blk| disk.complete(now, *token, data.clone());
            machine.board.pci.with_device(*slot, end);
        }
        Input::Quit | Input::Disk(_) | Input::Mac(_) => {}
    }
}

/// How a run ended.
enum Outcome {
    PowerOff,
    Reset,
    TimeLimit,
    Hung,
    Quit,
    /// This program was sent a signal of this number.
    Signal(u8),
    OutputGone(std::io::Error),
    Failed(anyhow::Error),
}

/// What the host, or a recording, had for the machine.
enum Given {
    Nothing,
    Something,
    /// The user left.
    Quit,
}

/// A snapshot to take.
struct Plan {
    path: PathBuf,
    /// At this virtual time; without one, at the guest's mark.
    at: Option<u64>,
    exec: bool,
}

struct Session {
    machine: Machine,
    /// The snapshot that is still to be taken.
    plan: Option<Plan>,
    /// Tells what the checker finds, if there is one.
    teller: Option<Teller>,
    /// Its first report ends the run.
    abort: bool,
    options: MachineOptions,
    /// The network.
    wire: Option<Box<dyn Wire>>,
    /// The disks that other processes serve.
    served: Vec<VhostDisk>,
    /// Typed and not yet given to the UART, which had no room.
    typed: Vec<u8>,
    recorder: Option<Recorder>,
    player: Option<Player>,
    edge: Edge,
    log: Log,
    trailer: Option<ExitTrailer>,
    /// Of the UART's and of the virtio console's output.
    hashes: [HashWriter; 2],
    bytes: [u64; 2],
}

impl Session {
    fn drive(&mut self, limit: u64) -> Outcome {
        loop {
            // Output is taken at fixed points of virtual time, since devices wait when it is not.
            let now = self.machine.now();
            // The points at which idle time stops, and output is taken, are the same when a recording is played.
            self.machine.real_time_idle =
                self.edge.has_sources() || self.player.is_some() || self.recorder.is_some();
            let mut until = (now - now % SLICE).saturating_add(SLICE).min(limit).min(self.next_recorded());
            if let Some(at) = self.plan.as_ref().and_then(|plan| plan.at) {
                until = until.min(at.max(now + 1));
            }
            let stop = self.machine.run(until);
            if let Err(e) = self.output() {
                return Outcome::OutputGone(e);
            }
            if let Err(e) = self.snapshot(stop) {
                return Outcome::Failed(e);
            }
            match self.teller.as_mut().map_or(Ok(0), |teller| teller.tell(&self.machine)) {
                Ok(0) => {}
                Ok(_) if self.abort => return Outcome::Quit,
                Ok(_) => {}
                Err(e) => return Outcome::Failed(e),
            }
            if let Some(number) = self.edge.signal() {
                return Outcome::Signal(number);
            }
            match stop {
                Stop::Marked(mark, code) => log::info!("the guest marks {mark:?}, code {code}"),
                Stop::PowerOff => return Outcome::PowerOff,
                Stop::Reset => return Outcome::Reset,
                Stop::Until if self.machine.now() >= limit => return Outcome::TimeLimit,
                Stop::Until => self.edge.wait(0),
                Stop::Idle if self.next_recorded() < u64::MAX => {
                    self.machine.sleep_until(self.next_recorded().min(limit))
                }
                Stop::Idle if self.edge.has_sources() => self.sleep(limit),
                // What is left of a file may still wake it up.
                Stop::Idle => {}
                Stop::Sleep(time) => self.sleep(time.min(limit)),
            }
            match self.input() {
                Ok(Given::Quit) => return Outcome::Quit,
                Ok(Given::Nothing) if stop == Stop::Idle && self.nobody_comes() => return Outcome::Hung,
                Ok(_) => {}
                Err(e) => return Outcome::Failed(e),
            }
        }
    }

    /// Takes the snapshot that is planned, if this is the moment.
    fn snapshot(&mut self, stop: Stop) -> Result<()> {
        let due = self.plan.take_if(|plan| match plan.at {
            Some(at) => self.machine.now() >= at,
            None => matches!(stop, Stop::Marked(Mark::Snapshot, _)),
        });
        match due {
            Some(plan) => snapshot::save(&self.machine, &self.options, plan.exec, &plan.path),
            None => Ok(()),
        }
    }

    /// Whether no input can come any more.
    fn nobody_comes(&self) -> bool {
        !self.edge.has_sources() && self.next_recorded() == u64::MAX
    }

    fn next_recorded(&self) -> u64 {
        self.player.as_ref().and_then(Player::next_at).unwrap_or(u64::MAX)
    }

    /// Waits in real time for input, until virtual time `time` at the latest. Recorded input needs no waiting.
    fn sleep(&mut self, time: u64) {
        if !self.edge.has_sources() {
            return self.machine.sleep_until(time.min(self.next_recorded()));
        }
        let start = Instant::now();
        let span = Duration::from_nanos(time - self.machine.now());
        let milliseconds = span.as_millis().min(100);
        if milliseconds == 0 {
            self.machine.sleep_until(time);
            return;
        }
        self.edge.wait(milliseconds as i32);
        let slept = self.machine.now().saturating_add(start.elapsed().as_nanos() as u64);
        self.machine.sleep_until(slept.min(time));
    }

    /// Hands the machine what came from the host, or what the recording says.
    fn input(&mut self) -> Result<Given> {
        let now = self.machine.now();
        let mut given = Given::Nothing;
        if let Some(player) = &mut self.player {
            while let Some(input) = player.take(now) {
                if input == Input::Quit {
                    return Ok(Given::Quit);
                }
                give(&mut self.machine, now, &input);
                given = Given::Something;
            }
            return Ok(given);
        }
        if self.edge.quit() {
            if let Some(recorder) = &mut self.recorder {
                recorder.note(now, &Input::Quit)?;
            }
            return Ok(Given::Quit);
        }
        if self.typed.is_empty() {
            self.typed = self.edge.take_keys();
        }
        let room = self.machine.board.uart.input_room().min(self.typed.len());
        let mut inputs = Vec::new();
        if room > 0 {
            inputs.push(Input::Keys(self.typed.drain(..room).collect()));
        }
        if let Some(wire) = &mut self.wire {
            wire.flush();
            let room = self.machine.board.pci.with_device(Slot::device(NET), |net: &mut Net| net.room());
            for _ in 0..room.unwrap_or(0) {
                let Some(frame) = wire.receive() else { break };
                inputs.push(Input::Frame(frame));
            }
        }
        for disk in &mut self.served {
            let slot = disk.slot();
            let served = |Answer { token, data }| Input::Served(Served { slot, token, data });
            inputs.extend(disk.poll().into_iter().map(served));
        }
        for input in inputs {
            if let Some(recorder) = &mut self.recorder {
                recorder.note(now, &input)?;
            }
            give(&mut self.machine, now, &input);
            given = Given::Something;
        }
        Ok(given)
    }

    /// Hands the host what the machine gave out.
    fn output(&mut self) -> std::io::Result<()> {
        let uart = take_console(&mut self.machine);
        let console = take_virtio_console(&mut self.machine);
        for (i, bytes) in [&uart, &console].into_iter().enumerate() {
            self.hashes[i].write_all(bytes)?;
            self.bytes[i] += bytes.len() as u64;
        }
        if !uart.is_empty() {
            self.log.write(&uart)?;
        }
        if !console.is_empty() {
            let payload = match &mut self.trailer {
                Some(trailer) => trailer.feed(&console),
                None => console,
            };
            flushed(std::io::stdout().lock(), &payload)?;
        }
        for number in 0..self.options.remote.len() {
            let slot = disk_slot(self.options.disks.len() + number);
            let submitted = self.machine.board.pci.with_device(slot, Blk::take_submitted);
            if let Some(disk) = self.served.get_mut(number) {
                disk.submit(submitted.unwrap_or_default());
            }
        }
        let sent = self.machine.board.pci.with_device(Slot::device(NET), Net::take_sent);
        if let Some(wire) = &mut self.wire {
            for frame in sent.unwrap_or_default() {
                wire.send(&frame);
            }
        }
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome, exec: bool) -> Result<u8> {
        let mut exit = None;
        if let Some(trailer) = self.trailer.take() {
            let (held, status) = trailer.finish();
            exit = status;
            flushed(std::io::stdout().lock(), &held).context("cannot write the guest's output")?;
        }
        if std::io::stderr().is_terminal() && !exec {
            let _ = writeln!(std::io::stderr());
        }
        let died = |what: &str| {
            say(what);
            Ok(status::GUEST_DIED)
        };
        match (outcome, exit) {
            (Outcome::PowerOff, Some(code)) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            (Outcome::PowerOff, None) if !exec => Ok(0),
            (Outcome::PowerOff, None) => died("the guest powered off before CMD had ended"),
            (Outcome::Reset, _) => died("the guest asked for a reset (a panic, or reboot)"),
            (Outcome::Hung, _) => died("the guest hangs: every vCPU waits and nothing will wake one"),
            (Outcome::TimeLimit, _) => {
                say("the time limit passed");
                Ok(status::TIME_LIMIT)
            }
            (Outcome::OutputGone(error), _) => Err(error).context("cannot write the guest's output"),
            (Outcome::Failed(error), _) => Err(error),
            (Outcome::Quit, _) => Ok(0),
            (Outcome::Signal(number), _) => Ok(status::SIGNAL + number),
        }
    }

    fn write_stats(&self, mut file: File, elapsed: Duration) -> Result<()> {
        let machine = &self.machine;
        let by_cpu: Vec<u64> =
            (0..machine.cluster.cpus()).map(|cpu| machine.cluster.core(cpu).retired()).collect();
        let instructions = by_cpu.iter().sum();
        let mut smmus = machine.board.smmus.iter().map(|s| s.smmu().stats().clone());
        let stats = Stats {
            smmulab: env!("CARGO_PKG_VERSION"),
            instructions,
            instructions_by_cpu: by_cpu,
            virtual_ns: machine.now(),
            console_bytes: self.bytes,
            console_hash: self.hashes.each_ref().map(HashWriter::hex),
            state_hash: stats::state_hash(machine)?,
            smmu: smmus.next(),
            more_smmus: smmus.collect(),
            bounce: machine.board.pools.report(),
            dma: stats::dma(machine),
            counted_dma: stats::counted_dma(machine),
            ats: stats::ats(machine),
            host: Host::measure(elapsed, instructions, machine.board.ram.touched()),
        };
        serde_json::to_writer_pretty(&mut file, &stats)?;
        writeln!(file)?;
        Ok(())
    }
}
