//! The `overlay` binary.

fn main() -> std::process::ExitCode {
    overlay::cli::main()
}
