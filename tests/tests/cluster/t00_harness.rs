//! The harness by itself, without `overlay`: machines on the underlay, the testkit's programs
//! between them, and complete removal.

use std::{net::IpAddr, process::Stdio};

use overlay_tests::{
    Cluster, Options, Place as _, Shared, binaries, bpffs,
    cleanup::Instance,
    netns,
    testkit::{Asked, FailureKind, Resolved},
};

static CLUSTER: Shared = Shared::new(|| Cluster::new(2, Options::default()));

#[test]
fn machines_reach_each_other_and_see_real_addresses() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2, client) = (cluster.host(1), cluster.host(2), cluster.client());
    h2.ping("172.16.1.10", 3)?;

    let _http = h1.serve(&["http", "--name", "web", "--host", "h1", "--port", "8080"])?;
    let answer = client.http_get(&h1.port(8080))?;
    assert_eq!((answer.name.as_str(), answer.host.as_str()), ("web", "h1"));
    assert_eq!(answer.client, IpAddr::from([172, 16, 1, 100]));

    let _tcp = h1.serve(&["tcp-id", "--name", "db", "--port", "3306"])?;
    assert_eq!(h2.tcp_get(&h1.port(3306))?.client, IpAddr::from([172, 16, 1, 11]));

    let _udp = h1.serve(&["udp-echo", "--name", "echo", "--port", "5353"])?;
    assert_eq!(h2.udp_ask_many(&h1.port(5353), 3)?.len(), 3);
    Ok(())
}

#[test]
fn requests_that_nobody_answers_are_failures_of_the_right_kind() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let client = cluster.client();
    let refused: Asked = client.ask(&["http-get", &cluster.host(1).port(9)])?;
    assert_eq!(refused.failures[0].kind, FailureKind::Connect);
    client.cannot_connect(&cluster.host(1).port(9))?;
    client.cannot_connect("172.16.1.99:80")?;
    client.cannot_ask("172.16.1.99:80")?;
    client.cannot_ping("172.16.1.99")?;
    assert!(client.http_get("172.16.1.99:80").is_err());
    Ok(())
}

#[test]
fn a_transfer_arrives_with_its_checksum() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let _receiver = h1.serve(&["bulk-recv", "--port", "9000"])?;
    h2.bulk_send(&h1.port(9000), 256 << 20)?;
    Ok(())
}

#[test]
fn a_load_counts_what_fails_when_its_server_is_killed() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, client) = (cluster.host(1), cluster.client());
    let mut server = h1.serve(&["http", "--name", "web", "--port", "8081"])?;
    let load = client.load(&[h1.port(8081)])?;
    load.goes_on(50)?;
    server.kill();
    load.goes_on(50)?;
    let report = load.load_report()?;
    assert!(report.answered_by["web"] > 0, "{report:?}");
    assert!(report.failures() > 0, "{report:?}");
    Ok(())
}

#[test]
fn a_server_that_is_stopped_in_good_order_breaks_no_request_of_kept_connections()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, client) = (cluster.host(1), cluster.client());
    let mut server = h1.serve(&["http", "--name", "web", "--port", "8082"])?;
    let load = client.load(&[h1.port(8082)])?;
    load.goes_on(50)?;
    server.stop()?.success()?;
    let report = load.load_report()?;
    assert!(report.answered_by["web"] > 0, "{report:?}");
    // The server has stopped, so new connections are refused. No other failure is allowed.
    let kinds: Vec<_> = report.failed.keys().collect();
    assert!(kinds.iter().all(|kind| **kind == FailureKind::Connect), "{report:?}");
    Ok(())
}

#[test]
fn a_chat_goes_on_over_one_connection() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, client) = (cluster.host(1), cluster.client());
    let _server = h1.serve(&["tcp-id", "--name", "db", "--port", "3307"])?;
    let chat = client.chat(&h1.port(3307))?;
    chat.goes_on(5)?;
    let report = chat.chat_report()?;
    assert!(report.lines > 0 && report.failure.is_none(), "{report:?}");
    Ok(())
}

#[test]
fn the_test_dns_server_answers_over_udp_and_tcp() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let server = cluster.outsider("dns", 53)?;
    let _dns = server.serve(&[
        "dns-serve",
        "--listen",
        "172.16.1.53:53",
        "--record",
        "www.example.org=192.0.2.7",
    ])?;
    for transport in [&[][..], &["--tcp"]] {
        let args = [&["resolve", "www.example.org", "--server", "172.16.1.53:53"], transport];
        let resolved: Resolved = cluster.host(1).ask(&args.concat())?;
        assert_eq!(resolved.addresses, [IpAddr::from([192, 0, 2, 7])]);
    }
    Ok(())
}

#[test]
fn links_that_behave_like_wire_carry_full_checksums() -> anyhow::Result<()> {
    let cluster = Cluster::new(1, Options { wire: true, ..Options::default() })?;
    let shown = cluster.host(1).exec("ethtool", &["-k", "eth0"])?.success()?.stdout;
    for off in ["tx-checksumming: off", "tcp-segmentation-offload: off"] {
        assert!(shown.contains(off), "{shown}");
    }
    let _server = cluster.host(1).serve(&["http", "--name", "web", "--port", "80"])?;
    cluster.client().http_get(&cluster.host(1).port(80))?;
    cluster.clean()
}

#[test]
fn a_cluster_that_is_dropped_leaves_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::new(2, Options::default())?;
    let instance = cluster.instance().clone();
    let mut server = cluster.host(1).serve(&["pause"])?;
    server.keep();
    assert!(!instance.leftovers().is_empty());
    drop(cluster);
    assert_eq!(instance.leftovers(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_cluster_whose_maker_panics_leaves_nothing() {
    let made = std::panic::catch_unwind(|| {
        let cluster = Cluster::new(1, Options::default()).expect("made");
        std::panic::panic_any(cluster.instance().clone());
    });
    let instance = made.expect_err("it panics").downcast::<Instance>().expect("the instance");
    assert_eq!(instance.leftovers(), Vec::<String>::new());
}

#[test]
fn the_guardian_removes_what_a_killed_maker_left() -> anyhow::Result<()> {
    let instance = Instance::random();
    std::fs::create_dir(&instance.dir)?;
    bpffs::ensure_mounted()?;
    let mut guardian = std::process::Command::new(binaries::testkit()?)
        .args(["guard", "--prefix", &instance.prefix, "--dir"])
        .arg(&instance.dir)
        .stdin(Stdio::piped())
        .spawn()?;
    let namespace = instance.namespace("h1");
    netns::create(&namespace)?;
    std::fs::create_dir(instance.pin_dir())?;
    let enter = [format!("--net={}", netns::path(&namespace).display())];
    let mut sleep = netns::command(&namespace, &enter, "sleep").arg("60").spawn()?;
    // The pipe ends with the maker, however it ends.
    drop(guardian.stdin.take());
    assert!(guardian.wait()?.success());
    assert!(!sleep.wait()?.success(), "it was killed");
    assert_eq!(instance.leftovers(), Vec::<String>::new());
    Ok(())
}

#[test]
fn pins_are_told_apart_and_known_to_be_gone() -> anyhow::Result<()> {
    let cluster = Cluster::new(1, Options::default())?;
    let dir = cluster.instance().pin_dir();
    std::fs::create_dir_all(&dir)?;
    let map = dir.join("numbers");
    let command = ["map", "create", map.to_str().unwrap_or_default(), "type", "array"];
    let sizes = ["key", "4", "value", "4", "entries", "1", "name", "numbers"];
    cluster.host(1).exec("bpftool", &[&command[..], &sizes].concat())?.success()?;
    let objects = bpffs::objects(&dir)?;
    assert!(matches!(objects.first(), Some(bpffs::Object::Map(_))), "{objects:?}");
    let object = objects.into_iter().next().expect("one");
    assert!(bpffs::exists(object)?);
    cluster.clean()?;
    overlay_tests::eventually("the map is freed", std::time::Duration::from_secs(10), || {
        anyhow::ensure!(!bpffs::exists(object)?, "{object:?} exists");
        Ok(())
    })
}
