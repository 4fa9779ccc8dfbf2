//! Differential fuzzing of the datapath against its reference model.

fn main() -> std::process::ExitCode {
    overlay_tests::fuzz::main()
}
