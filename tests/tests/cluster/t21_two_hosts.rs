//! Two hosts, once through everything that a kernel may do differently: the tunnel with small and
//! with large packets, SCTP, a VIP, a published port from outside and from the host itself, names,
//! groups. Short enough to run under every kernel that `cargo xtask vm-test` boots.

use std::path::Path;

use overlay_tests::{Cluster, Options, Place as _, Shared, testkit::Associated};

static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

/// Enough for aggregates of 64 KiB, and little enough for an emulated machine.
const BULK: u64 = 16 << 20;

#[test]
fn two_hosts_carry_packets_of_all_sizes() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("sizes", &[])?;
    let here = cluster.host(1).container("here").network("sizes").idle()?;
    let there = cluster.host(2).container("there").network("sizes").bulk_recv(9000)?;
    here.ping(&there.ip()?.to_string(), 3)?;
    there.ping(&here.ip()?.to_string(), 3)?;
    here.bulk_send(&there.port(9000)?, BULK)?;
    let back = cluster.host(1).container("back").network("sizes").bulk_recv(9000)?;
    there.bulk_send(&back.port(9000)?, BULK)?;
    Ok(())
}

/// Skipped if the kernel has no SCTP; a handmade SCTP packet crosses on every kernel (cluster_25).
#[test]
fn two_hosts_carry_an_sctp_association() -> anyhow::Result<()> {
    if !Path::new("/proc/net/sctp").exists() {
        println!("this kernel has no SCTP");
        return Ok(());
    }
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("sctp", &[])?;
    let echo = ["sctp-echo", "--port", "3868"];
    let there = cluster.host(2).container("there").network("sctp").testkit(&echo)?;
    let here = cluster.host(1).container("here").network("sctp").idle()?;
    let associated: Associated = here.ask(&["sctp-ask", &there.port(3868)?])?;
    assert_eq!((associated.sent, associated.answered), (52_001, 52_001));
    // Through a VIP, and through a published port of the host without a backend.
    let ports = ["--network", "sctp", "-p", "3869:3869/sctp"];
    cluster.host(1).service_create("diameter", &ports)?;
    let echo = ["sctp-echo", "--port", "3869"];
    let _backend = cluster.host(2).container("d.1").service("diameter").testkit(&echo)?;
    let associated: Associated = here.ask(&["sctp-ask", "diameter:3869"])?;
    assert_eq!((associated.sent, associated.answered), (52_001, 52_001));
    let asked = ["sctp-ask", &cluster.host(1).port(3869)];
    let associated: Associated = cluster.client().ask(&asked)?;
    assert_eq!((associated.sent, associated.answered), (52_001, 52_001));
    Ok(())
}

#[test]
fn two_hosts_share_a_service_by_its_name_and_by_its_port() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("shared", &[])?;
    cluster.host(1).service_create("web", &["--network", "shared", "-p", "8088:8080"])?;
    let _replicas = [
        cluster.host(1).container("w1").service("web").http(8080)?,
        cluster.host(2).container("w2").service("web").http(8080)?,
    ];
    cluster.settle()?;
    let asker = cluster.host(1).container("asker").network("shared").idle()?;
    let outside = cluster.client();
    let port = |host: usize| format!("{}:8088", cluster.host(host).address());
    let mut heard = Vec::new();
    for answers in [
        asker.http_get_many("web:8080", 4)?,
        outside.http_get_many(&port(1), 4)?,
        outside.http_get_many(&port(2), 4)?,
        cluster.host(2).http_get_many("127.0.0.1:8088", 4)?,
    ] {
        let mut names: Vec<String> = answers.into_iter().map(|answer| answer.name).collect();
        names.sort();
        heard.push(names);
    }
    assert_eq!(heard, vec![["w1", "w1", "w2", "w2"]; 4], "in turn, wherever they are asked");
    let answer = outside.http_get(&port(1))?;
    assert_eq!(answer.client, outside.address(), "the client's own address is kept");
    Ok(())
}

#[test]
fn two_hosts_copy_packets_to_groups() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("group", &["--opt", "multicast=replicate"])?;
    let asker = cluster.host(1).container("asker").network("group").idle()?;
    let member = |host: usize, name: &str| {
        let group = ["--port", "5000", "--group", "239.129.1.2"];
        let words = [&["udp-echo", "--name", name, "--host", "h"], &group[..]].concat();
        cluster.host(host).container(name).network("group").testkit(&words)
    };
    let _members = [member(1, "near")?, member(2, "far")?];
    cluster.settle()?;
    let heard = asker.group_ask("239.129.1.2:5000", &["near", "far"], 5)?;
    assert!(heard.answers.values().all(|count| *count == 5), "{heard:?}");
    Ok(())
}
