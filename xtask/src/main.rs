//! `cargo xtask`: sets a machine up, builds, checks, writes documents, loads the datapath, runs the
//! demo, the tests and the benchmarks.

mod bench;
mod build;
mod cargo;
mod check;
mod demo;
mod docs;
mod fuzz;
mod load;
mod machine;
mod object;
mod packages;
mod root;
mod setup;
mod test;
mod totals;
mod tree;
mod unload;
mod vm_test;

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
};

use clap::{Parser, Subcommand};

/// Tasks around overlay, from a checkout of its source.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    version,
    after_help = "\
Example:
  cargo xtask demo

Commands that need root run themselves again with sudo. What they compile then still belongs to
you: only the programs that touch the kernel run as root."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Setup),
    Build(build::Build),
    Object(object::Object),
    Check(check::Check),
    Docs(docs::Docs),
    Load(load::Load),
    Unload(unload::Unload),
    Demo(demo::Demo),
    Test(test::Test),
    Fuzz(fuzz::Fuzz),
    Bench(bench::Bench),
    VmTest(vm_test::VmTest),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(command) => command.run(),
        Command::Build(command) => command.run(),
        Command::Object(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Docs(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Unload(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Fuzz(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::VmTest(command) => command.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// Passes on how a program ended; a signal as shells do, 128 and its number.
fn status(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn exit_statuses_pass_through() {
        assert_eq!(status(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(status(ExitStatus::from_raw(9)), ExitCode::from(137));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let example = format!("cargo xtask {}", command.get_name());
            assert!(help.contains("Example") && help.contains(&example), "{help}");
        }
    }
}
