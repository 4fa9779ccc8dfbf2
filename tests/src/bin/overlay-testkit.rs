//! Small real servers and clients that the suites run inside containers.

fn main() -> std::process::ExitCode {
    overlay_tests::testkit::main()
}
