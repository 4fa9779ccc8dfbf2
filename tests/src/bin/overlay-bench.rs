//! Overlay beside the bare underlay and the kernel's own vxlan device.

fn main() -> std::process::ExitCode {
    overlay_tests::bench::main()
}
