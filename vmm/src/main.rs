//! The `smmulab` program.

use std::process::ExitCode;

use clap::Parser;
use vmm::cli::{BenchCommand, Cli, Command, status};
use vmm::say::say;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::new().filter("SMMULAB_LOG")).format_timestamp(None).init();
    let result = match Cli::parse().command {
        Command::Run(args) => vmm::run::run(&args),
        Command::Race(args) => vmm::race::search::run(&args),
        Command::Replay(args) => vmm::race::replay::run(&args),
        Command::Image(command) => vmm::image::run(command).map(|()| 0),
        Command::Bench(BenchCommand::Boot(args)) => vmm::bench::boot::run(&args).map(|()| 0),
        Command::Bench(BenchCommand::Race(args)) => vmm::bench::race::run(&args).map(|()| 0),
        Command::Bench(BenchCommand::Search(args)) => vmm::bench::search::run(&args),
        Command::Bench(BenchCommand::Swiotlb(args)) => vmm::bench::swiotlb::run(&args).map(|()| 0),
        Command::Bench(BenchCommand::Smmu(args)) => vmm::bench::smmu::run(&args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // One line: the message and its causes, if they say more.
            say(format_args!("{error:#}"));
            ExitCode::from(status::USAGE)
        }
    }
}
