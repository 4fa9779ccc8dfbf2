//! Containers that a daemon attaches, drains and detaches.

use std::{fs, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{Overlay, daemon::Daemon, own_netns, runs, stderr, stdout, wait_until};

const WAIT_FOR_TERM: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_fresh_namespace_is_attached_before_the_command_runs_and_detached_after_it() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let output = overlay.output(&[
        "run",
        "--network",
        "mynet",
        "--name",
        "web",
        "--ip",
        "10.0.0.5",
        "--alias",
        "www",
        "--",
        "sh",
        "-c",
        "readlink /proc/self/ns/net; echo $$",
    ]);
    let text = stdout(&output);
    let (netns, pid) = text.split_once('\n').unwrap_or_else(|| panic!("{}", stderr(&output)));
    assert_ne!(netns, own_netns());
    assert_eq!(daemon.methods(), ["attach", "detach"]);
    let attach = daemon.params("attach");
    assert_eq!(attach["seen"], netns, "the command runs in the namespace that was attached");
    assert_eq!(attach["netns"], format!("/proc/{pid}/ns/net"));
    assert_eq!(attach["pid"].to_string(), pid, "the end of the command is the container's end");
    assert_eq!(attach["networks"], json!(["mynet"]));
    assert_eq!(attach["name"], "web");
    assert_eq!(attach["ip"], "10.0.0.5");
    assert_eq!(attach["aliases"], json!(["www"]));
    assert_eq!(attach["wait_listen"], false);
    assert_eq!(
        daemon.params("detach"),
        json!({"container": "0123456789abcdefghijklmno", "force": true})
    );
}

#[test]
fn the_command_resolves_names_through_the_daemon_and_the_host_does_not() {
    let overlay = Overlay::new();
    let _daemon = Daemon::start(&overlay.run_dir());
    let before = fs::read("/etc/resolv.conf").expect("the host has one");
    let output = overlay.output(&[
        "run",
        "--network",
        "mynet",
        "--",
        "cat",
        "/etc/resolv.conf",
        "/etc/hosts",
    ]);
    let text = stdout(&output);
    assert!(text.starts_with("nameserver 127.0.0.11\noptions ndots:0\n"), "{text}");
    assert!(text.contains("\n10.0.0.5 web"), "{text}");
    assert_eq!(fs::read("/etc/resolv.conf").expect("the host has one"), before);
}

#[test]
fn the_files_of_a_container_are_its_own_to_change() {
    let overlay = Overlay::new();
    let _daemon = Daemon::start(&overlay.run_dir());
    let before = fs::read("/etc/hosts").expect("the host has one");
    let script = "echo 10.0.0.9 other >> /etc/hosts && tail -n 1 /etc/hosts";
    let output = overlay.output(&["run", "--network", "mynet", "--", "sh", "-c", script]);
    assert_eq!(stdout(&output), "10.0.0.9 other", "{}", stderr(&output));
    assert_eq!(fs::read("/etc/hosts").expect("the host has one"), before);
}

/// Runs a script in a mount namespace whose /etc holds nothing but what the script makes.
fn in_an_etc_of_its_own(overlay: &Overlay, script: &str) -> (Option<i32>, String, String) {
    let bin = env!("CARGO_BIN_EXE_overlay");
    let script = format!("set -e; mount -t tmpfs none /etc; {script}");
    let mut command = overlay.command(&[]);
    let settings: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    command = std::process::Command::new("unshare");
    for (key, value) in settings {
        command.env(key, value.unwrap_or_default());
    }
    command.args(["--mount", "sh", "-c", &script, "sh", bin]).stdin(Stdio::null());
    let output = command.output().expect("unshare runs");
    (output.status.code(), stdout(&output), stderr(&output))
}

#[test]
fn a_resolv_conf_that_is_a_link_is_replaced_where_it_points_to() {
    let overlay = Overlay::new();
    let _daemon = Daemon::start(&overlay.run_dir());
    let target = overlay.dir.path().join("stub-resolv.conf");
    fs::write(&target, "nameserver 192.0.2.1\n").expect("written");
    let script = format!(
        "ln -s {} /etc/resolv.conf; $1 run --network mynet -- cat /etc/resolv.conf",
        target.display()
    );
    let (code, text, error) = in_an_etc_of_its_own(&overlay, &script);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "nameserver 127.0.0.11\noptions ndots:0"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(target).expect("still there"), "nameserver 192.0.2.1\n");
}

#[test]
fn a_missing_resolv_conf_is_an_error_that_says_what_to_do_and_detaches() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let (code, text, error) =
        in_an_etc_of_its_own(&overlay, "$1 run --network mynet -- echo started");
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(error.contains("/etc/resolv.conf does not exist"), "{error}");
    assert!(error.contains("create it"), "{error}");
    assert_eq!(daemon.methods(), ["attach", "detach"]);
}

#[test]
fn a_refused_attach_is_told_with_its_hint_and_the_command_does_not_start() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    daemon.answer(
        "attach",
        json!({"code": "conflict", "message": "the name web is taken", "hint": "choose another"}),
    );
    let output = overlay.output(&["run", "--network", "mynet", "--", "echo", "started"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    assert_eq!(stderr(&output), "overlay: the name web is taken\nchoose another");
    let pid = daemon.params("attach")["pid"].to_string();
    assert!(!runs(&pid), "the process that held the namespace is gone");
}

#[test]
fn a_command_that_cannot_be_executed_is_detached_again() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let output = overlay.output(&["run", "--network", "mynet", "--", "nonesuch-command"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(daemon.methods(), ["attach", "detach"]);
}

#[test]
fn a_backend_is_drained_before_it_gets_sigterm() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let run = overlay.start(&["run", "--service", "hello", "--", "sh", "-c", WAIT_FOR_TERM]);
    let attach = daemon.params("attach");
    assert_eq!(attach["service"], "hello");
    assert_eq!(attach["networks"], json!([]));
    assert_eq!(attach["wait_listen"], true);
    let pid = attach["pid"].to_string();
    run.signal(Signal::SIGTERM);
    wait_until("the daemon is asked to drain", || daemon.methods().contains(&"drain".to_owned()));
    assert!(runs(&pid), "the command runs on while it is drained");
    daemon.script.drains.add_permits(1);
    let (code, error) = run.wait();
    assert_eq!(code, Some(9), "the command ended by SIGTERM");
    assert!(error.contains("overlay: draining web"), "{error}");
    assert_eq!(daemon.methods(), ["attach", "drain", "detach"]);
}

#[test]
fn a_second_signal_does_not_wait_for_the_drain() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let run = overlay.start(&[
        "run",
        "--network",
        "mynet",
        "-p",
        "80:80",
        "--no-wait-listen",
        "--",
        "sh",
        "-c",
        WAIT_FOR_TERM,
    ]);
    assert_eq!(daemon.params("attach")["wait_listen"], false);
    assert_eq!(daemon.params("attach")["ports"][0]["published"], 80);
    run.signal(Signal::SIGINT);
    wait_until("the daemon is asked to drain", || daemon.methods().contains(&"drain".to_owned()));
    run.signal(Signal::SIGINT);
    let (code, error) = run.wait();
    assert_eq!(code, Some(9));
    assert!(error.contains("not waiting any longer"), "{error}");
}

#[test]
fn what_serves_nothing_gets_sigterm_at_once() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let run = overlay.start(&["run", "--network", "mynet", "--", "sh", "-c", WAIT_FOR_TERM]);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait().0, Some(9));
    assert_eq!(daemon.methods(), ["attach", "detach"]);
}

#[test]
fn a_daemon_that_is_gone_at_the_end_is_told_and_changes_no_exit_status() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let run = overlay.start(&["run", "--network", "mynet", "--", "sh", "-c", WAIT_FOR_TERM]);
    drop(daemon);
    run.signal(Signal::SIGTERM);
    let (code, error) = run.wait();
    assert_eq!(code, Some(9));
    assert!(error.contains("could not detach web"), "{error}");
}

#[test]
fn container_mode_shares_the_namespace_and_the_names_of_the_other() {
    let overlay = Overlay::new();
    let daemon = Daemon::start(&overlay.run_dir());
    let script = "readlink /proc/self/ns/net; exec sleep 1000";
    let other = overlay.start(&[
        "run",
        "--network",
        "mynet",
        "--hostname",
        "primary",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let attach = daemon.params("attach");
    daemon.answer(
        "containers",
        json!([{
            "container": "0123456789abcdefghijklmno",
            "name": "web",
            "netns": attach["netns"],
            "pid": attach["pid"],
            "service": null,
            "state": "running",
            "interfaces": [],
        }]),
    );
    let script = "readlink /proc/self/ns/net; head -n 1 /etc/resolv.conf; \
                  cat /proc/sys/kernel/hostname; grep primary /etc/hosts";
    let output = overlay.output(&["run", "--network", "container:web", "--", "sh", "-c", script]);
    assert_eq!(
        stdout(&output),
        format!("{}\nnameserver 127.0.0.11\nprimary\n10.0.0.5 primary web", other.first_line),
        "{}",
        stderr(&output)
    );
    let output = overlay.output(&["run", "--network", "container:nonesuch", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no container \"nonesuch\""), "{}", stderr(&output));
}
