//! Datagrams in fragments through VIPs, published ports and egress, and ICMP errors about
//! translated flows, as sockets receive them.

use std::net::Ipv4Addr;

use overlay_tests::{
    Client, Cluster, Container, Host, Options, Place,
    testkit::{Asked, FailureKind, Pinged},
};

/// Two hosts, each with a backend of a service that echoes datagrams, on port 7 and 5007 of the
/// hosts.
struct Echo {
    cluster: Cluster,
    asker: Container,
    _backends: Vec<Container>,
}

fn echo(options: Options) -> anyhow::Result<Echo> {
    let cluster = Cluster::formed(2, options)?;
    let h1 = cluster.host(1);
    h1.network_create("mynet", &[])?;
    let ports = ["--network", "mynet", "-p", "5007:7/udp", "-p", "5008:8/udp", "--drain", "0s"];
    h1.service_create("echo", &ports)?;
    let _backends = vec![
        h1.container("echo.1").service("echo").udp_echo(7)?,
        cluster.host(2).container("echo.2").service("echo").udp_echo(7)?,
    ];
    let asker = h1.container("asker").network("mynet").idle()?;
    Ok(Echo { cluster, asker, _backends })
}

/// Sends a datagram of `length` bytes `times` times, each from a new connected socket.
fn ask<P: Place>(from: &P, target: &str, (length, times): (usize, usize)) -> anyhow::Result<Asked> {
    let (say, times) = ("x".repeat(length), times.to_string());
    from.ask(&["udp-ask", target, "--say", &say, "--count", &times, "--connected"])
}

/// All are answered, by both backends.
fn all_answered(asked: &Asked) {
    assert!(asked.failures.is_empty(), "{:?}", asked.failures);
    let names: std::collections::BTreeSet<_> = asked.answers.iter().map(|a| &a.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

#[test]
fn datagrams_larger_than_a_packet_go_through_vips_and_published_ports() -> anyhow::Result<()> {
    for xdp in ["off", "native"] {
        let Echo { cluster, asker, _backends } = echo(Options::xdp(xdp))?;
        // The answers are as long and more.
        for length in [1_400, 1_500, 9_000, 40_000] {
            all_answered(&ask(&asker, "echo:7", (length, 6))?);
            for host in cluster.hosts() {
                all_answered(&ask(cluster.client(), &host.port(5007), (length, 6))?);
            }
        }
        for host in cluster.hosts() {
            assert_eq!(counter(host, "fragment")?, 0, "{}", host.name());
        }
    }
    Ok(())
}

#[test]
fn a_port_of_a_service_on_which_nobody_listens_is_refused_and_not_waited_for() -> anyhow::Result<()>
{
    let Echo { cluster, asker, _backends } = echo(Options::default())?;
    let refused = |asked: Asked| {
        assert_eq!((asked.answers.len(), asked.failures.len()), (0, 6), "{asked:?}");
        assert!(asked.failures.iter().all(|f| f.kind == FailureKind::Connect), "{asked:?}");
    };
    // Requests from a container, and from outside through each node, to backends on both nodes.
    refused(ask(&asker, "echo:9", (10, 6))?);
    for host in cluster.hosts() {
        refused(ask(cluster.client(), &host.port(5008), (10, 6))?);
    }
    Ok(())
}

/// A router outside with a narrow link, and a machine behind it.
fn behind_a_narrow_link(cluster: &Cluster) -> anyhow::Result<(Client, Client)> {
    let router = cluster.outsider("router", 200)?;
    let addresses = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let far = cluster.behind(&router, "eth1", "far", addresses)?;
    router.exec("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?.success()?;
    router.exec("ip", &["link", "set", "eth1", "mtu", "1300"])?.success()?;
    let via = router.address().to_string();
    for host in cluster.hosts() {
        host.exec("ip", &["route", "add", "192.0.2.0/24", "via", &via])?.success()?;
    }
    Ok((router, far))
}

#[test]
fn backends_hear_how_narrow_the_way_to_a_client_outside_is() -> anyhow::Result<()> {
    let Echo { cluster, _backends, .. } = echo(Options::default())?;
    let (_router, far) = behind_a_narrow_link(&cluster)?;
    for host in cluster.hosts() {
        // The question fits and the answer does not. The first answers of each backend are lost,
        // with an ICMP error to it.
        let target = host.port(5007);
        let asked = ask(&far, &target, (1_250, 8))?;
        let lost = asked.failures.iter().all(|f| f.kind == FailureKind::Timeout);
        assert!(lost && asked.answers.len() >= 4, "through {}: {asked:?}", host.name());
        all_answered(&ask(&far, &target, (1_250, 4))?);
    }
    Ok(())
}

#[test]
fn a_connection_whose_backend_was_taken_away_is_reset() -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    h1.service_create("db", &["--network", "mynet", "-p", "3306:3306", "--drain", "0s"])?;
    let _backend = h2.container("db.1").service("db").tcp_id(3306)?;
    let asker = h1.container("asker").network("mynet").idle()?;
    let chats = [asker.chat("db:3306")?, cluster.client().chat(&h1.port(3306))?];
    // The server still runs, but cannot answer: its interface is removed.
    h2.overlay(&["endpoint", "detach", "db.1"])?;
    for chat in chats {
        let failure = chat.chat_ended()?.failure;
        let kind = failure.as_ref().map(|failure| failure.kind);
        assert_eq!(kind, Some(FailureKind::Reset), "{failure:?}");
    }
    Ok(())
}

#[test]
fn a_long_ping_finds_its_way_out_and_back() -> anyhow::Result<()> {
    let Echo { cluster, asker, _backends } = echo(Options::default())?;
    let target = cluster.client().address().to_string();
    let pinged: Pinged = asker.ask(&["ping", &target, "--size", "4000"])?;
    assert_eq!(pinged.answered, 1, "{pinged:?}");
    Ok(())
}
