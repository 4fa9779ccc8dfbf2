//! Modes that need no daemon, and what is the same in all modes.

use std::fs;

use nix::sys::signal::Signal;

use crate::{Overlay, own_netns, runs, stderr, stdout, wait_until};

/// A command that prints a line when it is ready and ends with status 9 on SIGTERM.
const ENDS_ON_TERM: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn host_mode_is_the_hosts_own_namespace() {
    let output =
        Overlay::new().output(&["run", "--network", "host", "--", "readlink", "/proc/self/ns/net"]);
    assert_eq!(stdout(&output), own_netns());
    assert!(output.status.success());
}

#[test]
fn none_mode_is_a_fresh_namespace_with_only_lo_which_is_up() {
    let overlay = Overlay::new();
    let run = ["run", "--network", "none", "--"];
    let netns = stdout(&overlay.output(&[&run[..], &["readlink", "/proc/self/ns/net"]].concat()));
    assert!(netns.starts_with("net:["), "{netns}");
    assert_ne!(netns, own_netns());
    let devices = overlay.output(&[&run[..], &["tail", "-n", "+3", "/proc/net/dev"]].concat());
    let devices = stdout(&devices);
    let names: Vec<_> = devices.lines().filter_map(|line| line.trim().split(':').next()).collect();
    assert!(names.contains(&"lo"), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("eth")), "{names:?}");
    // The kernel has a route for 127.0.0.1 only while lo is up.
    let routes = overlay.output(&[&run[..], &["cat", "/proc/net/fib_trie"]].concat());
    assert!(stdout(&routes).contains("127.0.0.1"), "{}", stdout(&routes));
}

#[test]
fn the_exit_status_is_the_commands() {
    let overlay = Overlay::new();
    for network in ["host", "none"] {
        let status = |command: &[&str]| {
            let output = overlay.output(&[&["run", "--network", network, "--"], command].concat());
            (output.status.code(), stderr(&output))
        };
        assert_eq!(status(&["sh", "-c", "exit 7"]).0, Some(7), "{network}");
        let (code, error) = status(&["nonesuch-command"]);
        assert_eq!(code, Some(127), "{network}: {error}");
        assert!(
            error.starts_with("overlay: command \"nonesuch-command\" was not found"),
            "{error}"
        );
        let (code, error) = status(&["/etc/passwd"]);
        assert_eq!(code, Some(126), "{network}: {error}");
        assert!(error.starts_with("overlay: cannot execute \"/etc/passwd\""), "{error}");
    }
}

#[test]
fn the_end_by_a_signal_is_told_as_shells_do() {
    let output =
        Overlay::new().output(&["run", "--network", "none", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(output.status.code(), Some(128 + 9));
}

#[test]
fn a_published_port_in_host_mode_is_refused_with_the_reason() {
    let output = Overlay::new().output(&["run", "--network", "host", "-p", "80:80", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("every port it opens is on the host"), "{}", stderr(&output));
}

#[test]
fn the_host_name_is_the_containers_own() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let output = Overlay::new().output(&[
        "run",
        "--network",
        "none",
        "--hostname",
        "box",
        "--",
        "sh",
        "-c",
        "cat /proc/sys/kernel/hostname /etc/hosts; ls /etc | wc -l",
    ]);
    let text = stdout(&output);
    assert!(text.starts_with("box\n"), "{text} {}", stderr(&output));
    assert!(text.contains("127.0.1.1 box"), "{text}");
    // Only files are replaced: the rest of /etc is the host's.
    let files = fs::read_dir("/etc").expect("listed").filter(|entry| {
        !entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with('.')
    });
    assert_eq!(text.lines().last(), Some(files.count().to_string().as_str()));
    let after = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    assert_eq!(before, after);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains("overlay-run"), "{mounts}");
}

#[test]
fn signals_are_passed_on() {
    let overlay = Overlay::new();
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let script = format!("trap 'exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let run = overlay.start(&["run", "--network", "none", "--", "sh", "-c", &script]);
        assert_eq!(run.first_line, "ready");
        run.signal(signal);
        assert_eq!(run.wait().0, Some(9), "{name}");
    }
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_stop_timeout() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let run = Overlay::new().start(&[
        "run",
        "--network",
        "none",
        "--stop-timeout",
        "100ms",
        "--",
        "sh",
        "-c",
        script,
    ]);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait().0, Some(128 + 9));
}

#[test]
fn the_command_starts_with_the_signals_as_we_were_given_them() {
    let output = Overlay::new().output(&[
        "run",
        "--network",
        "none",
        "--",
        "grep",
        "SigBlk",
        "/proc/self/status",
    ]);
    let own = fs::read_to_string("/proc/thread-self/status").expect("a status");
    let own = own.lines().find(|line| line.starts_with("SigBlk")).expect("the mask");
    assert_eq!(stdout(&output), own);
}

#[test]
fn killing_overlay_run_kills_the_command() {
    let run = Overlay::new().start(&[
        "run",
        "--network",
        "none",
        "--",
        "sh",
        "-c",
        "echo $$; exec sleep 1000",
    ]);
    let pid = run.first_line.clone();
    assert!(runs(&pid), "{pid}");
    run.signal(Signal::SIGKILL);
    run.wait();
    wait_until("the command ends", || !runs(&pid));
}

#[test]
fn what_the_command_leaves_in_the_background_ends_with_it() {
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let output = Overlay::new().output(&["run", "--network", "none", "--", "sh", "-c", script]);
    let pid = stdout(&output);
    assert!(pid.parse::<u32>().is_ok(), "{pid:?}");
    assert!(!runs(&pid));
}

#[test]
fn standard_input_reaches_the_command() {
    use std::io::Write as _;
    let overlay = Overlay::new();
    let mut command = overlay.command(&["run", "--network", "none", "--", "cat"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("overlay starts");
    child.stdin.take().expect("piped").write_all(b"through and through").expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(stdout(&output), "through and through");
}

#[test]
fn without_a_daemon_a_network_cannot_be_joined_and_the_command_does_not_start() {
    let overlay = Overlay::new();
    let output = overlay.output(&["run", "--network", "mynet", "--", "sh", "-c", ENDS_ON_TERM]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let error = stderr(&output);
    assert!(error.starts_with("overlay: the daemon is not running on this host\n"), "{error}");
}

#[test]
fn the_hidden_half_cannot_be_run_by_hand() {
    let output = Overlay::new().output(&["run-child", "--control", "57", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("descriptor 57 is no socket"), "{}", stderr(&output));
}
