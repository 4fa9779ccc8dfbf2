//! Flags of `init` and `join`, and the requests that are rejected before anything is made.

use clap::Parser as _;

use super::*;
use crate::{
    cli::{Cli, Command},
    model::{Id, Role},
};

fn paths(dir: &std::path::Path) -> Paths {
    Paths { state_dir: dir.join("state"), run_dir: dir.join("run"), pin_dir: dir.join("pins") }
}

fn config() -> AgentConfig {
    AgentConfig {
        format: crate::agent::CONFIG_FORMAT,
        cluster: Id::random(),
        node: Id::random(),
        name: "h1".to_owned(),
        role: Role::Manager,
        data_path_addr: [127, 0, 0, 1].into(),
        iface: "lo".to_owned(),
        data_path_port: 4789,
        listen: None,
        managers: vec![],
        xdp: XdpMode::Off,
        outside_ports: crate::agent::OUTSIDE_PORTS,
        outside_flows: crate::agent::OUTSIDE_FLOWS,
        conntrack_size: 1024,
        cgroup: None,
        socket_lb: true,
        dns_upstreams: vec![],
    }
}

#[test]
fn every_flag_of_init_and_join_is_taken() {
    let host = [
        "--advertise-addr",
        "172.16.1.10",
        "--data-path-addr",
        "172.16.2.10",
        "--iface",
        "eth1",
        "--name",
        "h1",
        "--xdp",
        "generic",
        "--conntrack-size",
        "4096",
        "--cgroup",
        "/sys/fs/cgroup",
        "--no-socket-lb",
        "--dns",
        "9.9.9.9",
        "--dns",
        "9.9.9.9:5353",
        "--no-start",
    ];
    let init = [
        "--data-path-port",
        "5789",
        "--listen-port",
        "3377",
        "--default-addr-pool",
        "20.20.0.0/16",
        "--default-addr-pool-mask-length",
        "26",
        "--ingress-subnet",
        "10.254.0.0/16",
        "--bridge-subnet",
        "172.18.0.0/16",
        "--format",
        "json",
    ];
    Cli::try_parse_from([&["overlay", "init"], &host[..], &init[..]].concat()).expect("init");
    let join = ["overlay", "join", "--token", "t", "172.16.1.10"];
    let cli = Cli::try_parse_from([&join[..], &host[..]].concat()).expect("join");
    match cli.command {
        Command::Join(_) => {}
        other => panic!("parsed as {other:?}"),
    }
}

#[test]
fn malformed_flags_are_quoted() {
    for (flag, value, quoted) in [
        ("--advertise-addr", "172.16.1", "'172.16.1' for '--advertise-addr <IP>'"),
        ("--data-path-port", "80", "80 is not in 1024..=49151"),
        ("--listen-port", "0", "0 is not in 1..=65535"),
        ("--listen-port", "x", "'x' for '--listen-port <PORT>'"),
        ("--default-addr-pool", "10.0.0.0", "\"10.0.0.0\" is no IPv4 subnet"),
        ("--default-addr-pool-mask-length", "31", "31 is not in 8..=29"),
        ("--ingress-subnet", "10.1.1.1/16", "would be 10.1.0.0/16"),
        ("--xdp", "fast", "'fast' for '--xdp <XDP>'"),
        ("--conntrack-size", "5", "5 is not in 1024..=67108864"),
        ("--dns", "dns.example", "\"dns.example\" is no address"),
        ("--name", "a b", "invalid node name \"a b\""),
    ] {
        let error = Cli::try_parse_from(["overlay", "init", flag, value]).expect_err(flag);
        assert!(error.to_string().contains(quoted), "{flag} {value}: {error}");
    }
}

#[test]
fn a_host_in_a_cluster_is_told_to_leave_first() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let paths = paths(dir.path());
    std::fs::create_dir(&paths.state_dir).expect("a directory");
    refuse_member(&paths).expect("no member");
    config().save(&paths.config()).expect("saved");
    let error = refuse_member(&paths).expect_err("a member").to_string();
    assert!(error.contains("as node \"h1\"") && error.contains("overlay leave"), "{error}");
}

#[test]
fn remains_of_an_earlier_cluster_are_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let paths = paths(dir.path());
    std::fs::create_dir(&paths.state_dir).expect("a directory");
    std::fs::write(paths.store(), "").expect("written");
    let error = refuse_member(&paths).expect_err("remains").to_string();
    assert!(error.contains("cluster.redb is left from an earlier cluster"), "{error}");
}

#[test]
fn a_damaged_configuration_is_not_taken_for_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let paths = paths(dir.path());
    std::fs::create_dir(&paths.state_dir).expect("a directory");
    std::fs::write(paths.config(), "{").expect("written");
    assert!(refuse_member(&paths).expect_err("damaged").to_string().contains("is damaged"));
}

#[tokio::test]
async fn undoing_removes_files_and_the_directories_that_were_not_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let paths = Paths { state_dir: dir.path().join("a/b"), ..paths(dir.path()) };
    let undo = undo::Undo::begin(&paths).expect("begun");
    config().save(&paths.config()).expect("saved");
    std::fs::create_dir(paths.pki_dir()).expect("a directory");
    std::fs::write(paths.pki_dir().join("ca.pem"), "").expect("written");
    undo.undo().await;
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
}

#[tokio::test]
async fn undoing_leaves_what_was_there_before() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let paths = paths(dir.path());
    std::fs::create_dir(&paths.state_dir).expect("a directory");
    std::fs::write(paths.state_dir.join("notes"), "").expect("written");
    let undo = undo::Undo::begin(&paths).expect("begun");
    config().save(&paths.config()).expect("saved");
    undo.undo().await;
    let left: Vec<_> = std::fs::read_dir(&paths.state_dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["notes"]);
}
