//! The walk-through: three hosts, one overlay, real processes and real traffic.

fn main() -> std::process::ExitCode {
    overlay_tests::demo::main()
}
