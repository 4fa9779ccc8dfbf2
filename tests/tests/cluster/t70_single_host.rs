//! Features of one host: `overlay run` with the network modes host, none, bridge and
//! container:NAME.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overlay_tests::{Cluster, Options, Place as _, Shared, process::Output};

static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

/// `overlay run OPTIONS -- COMMAND` on h1, to its end.
fn run(cluster: &Cluster, options: &[&str], command: &[&str]) -> anyhow::Result<Output> {
    cluster.host(1).try_overlay(&[&["run"], options, &["--"], command].concat())
}

#[test]
fn on_the_hosts_network_a_command_has_the_hosts_addresses() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let shown = run(&cluster, &["--network", "host"], &["ip", "-brief", "address"])?.success()?;
    assert!(shown.stdout.contains("172.16.1.10"), "{}", shown.stdout);
    let server = cluster.host(1).container("on-host").network("host").http(7070)?;
    let answer = cluster.client().http_get(&cluster.host(1).port(7070))?;
    assert_eq!(answer.name, "on-host");
    server.stop().map(drop)
}

#[test]
fn without_a_network_there_is_only_loopback() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let shown = run(&cluster, &["--network", "none"], &["ip", "-brief", "address"])?.success()?;
    let lines: Vec<_> = shown.stdout.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("lo "), "{lines:?}");
    assert!(lines[0].contains("127.0.0.1"), "loopback is up: {lines:?}");
    Ok(())
}

#[test]
fn bridge_is_the_default_and_its_containers_reach_each_other() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let a = cluster.host(1).container("a").idle()?;
    let b = cluster.host(1).container("b").network("bridge").http(80)?;
    assert!(a.ip()?.to_string().starts_with("172.17."), "{}", a.ip()?);
    assert_eq!(a.http_get(&b.port(80)?)?.client, IpAddr::V4(a.ip()?));
    assert_eq!(a.http_get("b:80")?.name, "b");
    a.ping(&Ipv4Addr::new(172, 17, 0, 1).to_string(), 1)
}

#[test]
fn bridge_lives_on_each_host_by_itself() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let a = cluster.host(1).container("a").idle()?;
    let b = cluster.host(2).container("b").http(80)?;
    a.cannot_ping(&b.ip()?.to_string())?;
    a.cannot_connect(&b.port(80)?)
}

#[test]
fn a_port_published_on_bridge_answers_on_that_host_with_the_clients_address() -> anyhow::Result<()>
{
    let cluster = CLUSTER.turn()?;
    let (h1, h2, client) = (cluster.host(1), cluster.host(2), cluster.client());
    let web = h1.container("web").publish("8080:80").http(80)?;
    let udp = h1.container("udp").publish("5007:7/udp").udp_echo(7)?;
    assert_eq!(client.http_get(&h1.port(8080))?.client, IpAddr::V4(client.address()));
    assert_eq!(client.udp_ask(&h1.port(5007))?.client, IpAddr::V4(client.address()));
    h1.http_get("localhost:8080")?;
    h1.http_get(&h1.port(8080))?;
    h1.udp_ask("localhost:5007")?;
    h2.http_get(&h1.port(8080))?;
    client.cannot_connect(&h2.port(8080))?;
    web.stop()?;
    udp.stop()?;
    client.cannot_connect(&h1.port(8080))
}

#[test]
fn a_published_port_is_free_again_when_its_container_ends() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    for name in ["first", "second"] {
        let web = h1.container(name).publish("8090:80").http(80)?;
        assert_eq!(cluster.client().http_get(&h1.port(8090))?.name, name);
        web.stop()?;
    }
    Ok(())
}

#[test]
fn a_command_in_another_containers_network_shares_its_loopback_and_address() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let web = cluster.host(1).container("shared").http(80)?;
    let guest = cluster.host(1).container("guest").network("container:shared").idle()?;
    assert_eq!(guest.http_get("127.0.0.1:80")?.name, "shared");
    let addresses = guest.exec("ip", &["-brief", "address"])?.success()?.stdout;
    assert!(addresses.contains(&web.ip()?.to_string()), "{addresses}");
    guest.stop()?;
    // The guest's end leaves the other's network alone.
    let asker = cluster.host(1).container("asker").idle()?;
    assert_eq!(asker.http_get(&web.port(80)?)?.name, "shared");
    Ok(())
}

#[test]
fn the_exit_status_is_the_commands() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    for network in ["host", "none", "bridge"] {
        let status = |command: &[&str]| -> anyhow::Result<Option<i32>> {
            Ok(run(&cluster, &["--network", network], command)?.status.code())
        };
        assert_eq!(status(&["true"])?, Some(0), "{network}");
        assert_eq!(status(&["sh", "-c", "exit 7"])?, Some(7), "{network}");
        assert_eq!(status(&["there-is-no-such-command"])?, Some(127), "{network}");
    }
    let killed = run(&cluster, &[], &["sh", "-c", "kill -TERM $$"])?;
    assert_eq!(killed.status.code(), Some(143));
    Ok(())
}

#[test]
fn the_host_name_and_the_files_inside_are_the_containers() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let command = ["sh", "-c", "hostname; cat /etc/hostname"];
    let shown = run(&cluster, &["--name", "box", "--hostname", "inside"], &command)?.success()?;
    assert_eq!(shown.stdout.lines().collect::<Vec<_>>(), ["inside", "inside"]);
    let own = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert_ne!(own.trim(), "inside", "the host's own file is untouched");
    Ok(())
}

#[test]
fn the_end_of_a_container_leaves_nothing_on_the_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let links =
        || -> anyhow::Result<String> { Ok(h1.exec("ip", &["-brief", "link"])?.success()?.stdout) };
    // Processes that an earlier test ended may still be exiting.
    overlay_tests::eventually("a host without containers", Duration::from_secs(20), || {
        let links = links()?;
        let left = links.lines().any(|link| link.starts_with("ov") && !link.starts_with("ovl-"));
        anyhow::ensure!(!left && h1.containers()?.is_empty(), "there is still: {links}");
        Ok(())
    })?;
    cluster.settle()?;
    let (links_before, entries_before) = (links()?, h1.status()?.entries);
    for _ in 0..3 {
        run(&cluster, &["-p", "8091:80"], &["true"])?.success()?;
    }
    cluster.settle()?;
    assert_eq!(links()?, links_before);
    // Flows are left to the table's own ageing.
    let settled = |mut entries: std::collections::BTreeMap<String, u64>| {
        entries.remove("conntrack");
        entries
    };
    assert_eq!(settled(h1.status()?.entries), settled(entries_before));
    Ok(())
}
