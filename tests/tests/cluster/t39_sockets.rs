//! Sockets that are connected to a backend in place of the VIP, or to the host link in place of an
//! address of the host, and the paths that they replace.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, connect, setsockopt, socket, sockopt,
};
use overlay::link::netns::in_netns;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Running, Shared, eventually, netns,
    testkit::{Asked, ChatReport, FailureKind},
};
use serde_json::Value;

/// Each test has its own services on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| formed(&[]));

/// The same, and VIPs are balanced by packets.
static PACKETS: Shared = Shared::new(|| formed(&["--no-socket-lb"]));

fn formed(options: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::formed(2, Options::default().every(options))?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
}

/// Whether the socket programs can be attached here.
fn has_sockets(cluster: &Cluster) -> anyhow::Result<bool> {
    let status = cluster.host(1).status()?;
    if let Err(why) = &status.socket_programs {
        println!("skipped: {why}");
    }
    Ok(status.socket_programs.is_ok())
}

fn create(cluster: &Cluster, service: &str, args: &[&str]) -> anyhow::Result<()> {
    let all = [&["--network", "mynet", "--drain", "500ms"], args].concat();
    cluster.host(1).service_create(service, &all)
}

fn replica(cluster: &Cluster, service: &str, host: usize) -> anyhow::Result<Container> {
    let container = cluster.host(host).container(&format!("{service}.{host}"));
    container.service(service).tcp_id(3306)
}

fn asker(cluster: &Cluster) -> anyhow::Result<Container> {
    cluster.host(1).container("asker").network("mynet").idle()
}

fn vip(cluster: &Cluster, service: &str) -> anyhow::Result<SocketAddr> {
    let state = cluster.host(1).state()?;
    let service = state.service(service).context("the service")?;
    let vip = service.networks.first().and_then(|n| n.vip).context("a VIP")?;
    Ok((vip, 3306).into())
}

/// How many connections were assigned to a backend when they were made.
fn balanced(host: &Host) -> anyhow::Result<u64> {
    let status = host.status()?;
    let counter = status.counters.iter().find(|c| c.reason == "socket_balanced");
    Ok(counter.map_or(0, |counter| counter.packets))
}

/// The rows that `overlay` shows, as objects.
fn rows(host: &Host, command: &[&str]) -> anyhow::Result<Vec<Value>> {
    let shown = host.overlay(&[command, &["--format", "json"]].concat())?;
    Ok(serde_json::from_str(&shown.stdout)?)
}

/// Active and new connections of all backends of a service, through its VIP over TCP.
fn connections(host: &Host, service: &str) -> anyhow::Result<(u64, u64)> {
    let servers = rows(host, &["ipvs", "--stats"])?;
    let is = |s: &&Value| s["service"] == service && s["protocol"] == "tcp" && s["port"] == 0;
    let server = servers.iter().find(is).context("the service")?;
    let backends = server["backends"].as_array().context("backends")?;
    let sum = |of: fn(&Value) -> &Value| backends.iter().filter_map(|b| of(b).as_u64()).sum();
    Ok((sum(|b| &b["active"]), sum(|b| &b["stats"]["connections"])))
}

/// Conntrack entries of packets to a VIP.
fn entries(host: &Host, vip: SocketAddr) -> anyhow::Result<usize> {
    let rows = rows(host, &["bpf", "conntrack"])?;
    Ok(rows.iter().filter(|row| row["destination"] == vip.to_string()).count())
}

/// Waits until chats have been going on.
fn go_on(chats: &[&Running]) -> anyhow::Result<()> {
    chats.iter().try_for_each(|chat| chat.goes_on(6))
}

fn went_well(report: &ChatReport) -> anyhow::Result<()> {
    ensure!(report.failure.is_none() && report.lines > 5, "{report:?}");
    Ok(())
}

#[test]
fn a_connection_to_a_vip_is_given_its_backend_at_once_and_says_that_it_asked_the_vip()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    if !has_sockets(&cluster)? {
        return Ok(());
    }
    create(&cluster, "plain", &[])?;
    let _replicas = [replica(&cluster, "plain", 1)?, replica(&cluster, "plain", 2)?];
    let (h1, asker, vip) = (cluster.host(1), asker(&cluster)?, vip(&cluster, "plain")?);
    let before = balanced(h1)?;
    let chats = [asker.chat("plain:3306")?, asker.chat("plain:3306")?];
    go_on(&chats.each_ref())?;
    assert_eq!(balanced(h1)? - before, 2);
    assert_eq!(entries(h1, vip)?, 0, "no packet is translated");
    assert_eq!(connections(h1, "plain")?, (2, 2));
    let sockets = rows(h1, &["bpf", "sockets"])?;
    let mine = || sockets.iter().filter(|row| row["service"] == "plain");
    assert!(mine().all(|row| row["asked"] == vip.ip().to_string()), "{sockets:?}");
    let backends: BTreeSet<_> = mine().filter_map(|row| row["backend"].as_str()).collect();
    assert_eq!(backends, BTreeSet::from(["plain.1", "plain.2"]), "here and elsewhere");
    for chat in chats {
        let report = chat.chat_report()?;
        went_well(&report)?;
        assert_eq!(report.named, Some(vip));
        assert_eq!(report.peer.map(|peer| peer.client), Some(asker.ip()?.into()));
    }
    assert_eq!(connections(h1, "plain")?, (0, 2), "they are closed");
    ensure!(rows(h1, &["bpf", "sockets"])?.iter().all(|row| row["service"] != "plain"));
    Ok(())
}

#[test]
fn an_ipv6_socket_that_asks_for_a_mapped_vip_is_balanced_too() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    if !has_sockets(&cluster)? {
        return Ok(());
    }
    create(&cluster, "mapped", &[])?;
    let _replica = replica(&cluster, "mapped", 2)?;
    let (h1, asker, vip) = (cluster.host(1), asker(&cluster)?, vip(&cluster, "mapped")?);
    let before = balanced(h1)?;
    let chat = asker.chat(&format!("[::ffff:{}]:3306", vip.ip()))?;
    go_on(&[&chat])?;
    let report = chat.chat_report()?;
    went_well(&report)?;
    assert_eq!(report.named.map(|named| named.ip().to_canonical()), Some(vip.ip()));
    assert_eq!(balanced(h1)? - before, 1);
    Ok(())
}

#[test]
fn over_ipv6_a_connection_is_given_its_backend_at_once_too() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    if !has_sockets(&cluster)? {
        return Ok(());
    }
    let h1 = cluster.host(1);
    h1.network_create("dual", &["--ipv6"])?;
    let args = ["--network", "dual", "--lb", "lc", "--drain", "500ms"];
    h1.service_create("six", &args)?;
    let replica = |host: usize| {
        let name = format!("six.{host}");
        let args = ["tcp-id", "--name", &name, "--port", "3306", "--address", "::"];
        let host = cluster.host(host);
        host.container(&name)
            .service("six")
            .testkit(&[&args[..], &["--host", host.name()]].concat())
    };
    let replicas = [replica(1)?, replica(2)?];
    let asker = h1.container("asker6").network("dual").idle()?;
    let state = h1.state()?;
    let on = state.service("six").context("the service")?.networks.first();
    let vip = SocketAddr::from((on.and_then(|on| on.vip6).context("an IPv6 VIP")?, 3306));
    let before = balanced(h1)?;
    let chats = [asker.chat(&vip.to_string())?, asker.chat(&vip.to_string())?];
    go_on(&chats.each_ref())?;
    assert_eq!(balanced(h1)? - before, 2);
    assert_eq!(entries(h1, vip)?, 0, "no packet is translated");
    let sockets = rows(h1, &["bpf", "sockets"])?;
    let mine = || sockets.iter().filter(|row| row["service"] == "six");
    assert!(mine().all(|row| row["asked"] == vip.ip().to_string()), "{sockets:?}");
    let connected: BTreeSet<_> = mine().filter_map(|row| row["connected_to"].as_str()).collect();
    let addresses = [replicas[0].ip6()?.to_string(), replicas[1].ip6()?.to_string()];
    assert_eq!(connected, addresses.iter().map(String::as_str).collect(), "one for each");
    let servers = rows(h1, &["ipvs", "--stats"])?;
    let six = |s: &&Value| s["service"] == "six" && s["address"] == vip.ip().to_string();
    let server = servers.iter().find(six).context("its IPv6 VIP")?;
    let active = |b: &Value| (b["active"].as_u64(), b["stats"]["connections"].as_u64());
    let backends: Vec<_> = server["backends"].as_array().context("them")?.iter().collect();
    assert!(backends.iter().all(|b| active(b) == (Some(1), Some(1))), "{backends:?}");
    let [first, second] = chats;
    let report = first.chat_report()?;
    went_well(&report)?;
    assert_eq!(report.named, Some(vip), "what it asked");
    assert_eq!(report.peer.map(|peer| peer.client), Some(asker.ip6()?.into()));
    // Its backend is removed, and its server still runs but cannot answer.
    for host in [1, 2] {
        cluster.host(host).overlay(&["endpoint", "detach", &format!("six.{host}")])?;
    }
    let failure = second.chat_ended()?.failure.context("it went on")?;
    assert_eq!(failure.kind, FailureKind::Reset, "{failure}");
    Ok(())
}

#[test]
fn a_backend_reaches_itself_through_its_vip() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "hairpin", &[])?;
    let replica = replica(&cluster, "hairpin", 1)?;
    let answer = replica.tcp_get("hairpin:3306")?;
    assert_eq!(answer.name, "hairpin.1");
    if has_sockets(&cluster)? {
        assert_eq!(answer.client, std::net::IpAddr::from(replica.ip()?), "as itself");
    }
    Ok(())
}

#[test]
fn a_container_on_several_networks_asks_vips_of_each() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    create(&cluster, "left", &[])?;
    h1.network_create("other", &[])?;
    h1.service_create("right", &["--network", "other", "--drain", "500ms"])?;
    let _replicas = [replica(&cluster, "left", 2)?, replica(&cluster, "right", 2)?];
    let both = h1.container("both").network("mynet").network("other").idle()?;
    let before = balanced(h1)?;
    for (index, service) in ["left", "right"].into_iter().enumerate() {
        let answer = both.tcp_get(&format!("{service}:3306"))?;
        assert_eq!(answer.name, format!("{service}.2"));
        assert_eq!(answer.client, std::net::IpAddr::from(both.ip_on(index)?));
    }
    if has_sockets(&cluster)? {
        assert_eq!(balanced(h1)? - before, 2);
    }
    Ok(())
}

#[test]
fn least_connections_goes_by_the_connections_of_sockets() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "least", &["--lb", "lc"])?;
    let _one = replica(&cluster, "least", 1)?;
    let asker = asker(&cluster)?;
    let chats = [asker.chat("least:3306")?, asker.chat("least:3306")?];
    let _two = replica(&cluster, "least", 2)?;
    cluster.settle()?;
    // Two are selected at random, and of two backends these are always both.
    for _ in 0..4 {
        assert_eq!(asker.tcp_get("least:3306")?.name, "least.2", "it has none");
    }
    drop(chats);
    Ok(())
}

#[test]
fn a_connection_that_is_refused_can_be_tried_again_from_the_same_socket() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "again", &[])?;
    let _replica = replica(&cluster, "again", 2)?;
    let (h1, asker, vip) = (cluster.host(1), asker(&cluster)?, vip(&cluster, "again")?);
    let SocketAddr::V4(vip) = vip else { anyhow::bail!("{vip}") };
    let namespace = std::path::PathBuf::from(format!("/proc/{}/ns/net", asker.pid()));
    let stream = in_netns(&namespace, || -> anyhow::Result<TcpStream> {
        let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Inet, kind, flags, None)?;
        let closed = std::net::SocketAddrV4::new(*vip.ip(), 3307);
        let address = |to| nix::sys::socket::SockaddrIn::from(to);
        let refused = connect(socket.as_raw_fd(), &address(closed));
        ensure!(refused == Err(nix::Error::ECONNREFUSED), "{refused:?}");
        connect(socket.as_raw_fd(), &address(vip))?;
        // SAFETY: `into_raw_fd` gave up the descriptor, so nothing else owns it.
        Ok(unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) })
    })??;
    assert_eq!(stream.peer_addr()?, SocketAddr::V4(vip));
    (&stream).read_exact(&mut [0])?;
    if has_sockets(&cluster)? {
        assert_eq!(connections(h1, "again")?.0, 1, "the first one is not counted any more");
    }
    drop(stream);
    Ok(())
}

#[test]
fn connections_keep_their_backend_and_their_name_while_the_daemon_is_away() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    if !has_sockets(&cluster)? {
        return Ok(());
    }
    create(&cluster, "kept", &[])?;
    let _replica = replica(&cluster, "kept", 2)?;
    let (h1, asker, vip) = (cluster.host(1), asker(&cluster)?, vip(&cluster, "kept")?);
    let target = vip.to_string();
    let before = balanced(h1)?;
    let early = asker.chat(&target)?;
    h1.kill_agent()?;
    let meanwhile = asker.chat(&target)?;
    go_on(&[&early, &meanwhile])?;
    h1.start_agent()?;
    assert_eq!(balanced(h1)? - before, 2, "also without a daemon");
    assert_eq!(connections(h1, "kept")?.0, 2);
    let late = asker.chat(&target)?;
    assert_eq!(balanced(h1)? - before, 3, "the namespace is known again");
    go_on(&[&early, &meanwhile, &late])?;
    for chat in [early, meanwhile, late] {
        let report = chat.chat_report()?;
        went_well(&report)?;
        assert_eq!(report.named, Some(vip));
    }
    Ok(())
}

/// Waits until every node has counted the flows of draining backends. A node counts those of all of
/// them at once. A backend without flows is stopped when every node has counted none for it.
fn every_node_counts(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let h1 = cluster.host(1);
    h1.service_create(name, &["--network", "mynet", "--drain", "600s"])?;
    cluster.host(2).container(&format!("{name}.1")).service(name).tcp_id(80)?.stop()?;
    h1.overlay(&["service", "rm", name]).map(drop)
}

#[test]
fn a_backend_is_told_to_stop_only_when_its_last_socket_is_closed() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.service_create("patient", &["--network", "mynet", "--drain", "2m"])?;
    let mut replica = replica(&cluster, "patient", 2)?;
    let (asker, direct) = (asker(&cluster)?, replica.port(3306)?);
    let chat = asker.chat("patient:3306")?;
    replica.signal(Signal::SIGTERM);
    eventually("it drains", Duration::from_secs(20), || {
        let shown = h1.overlay(&["service", "ps", "patient"])?.stdout;
        ensure!(shown.contains("draining"), "{shown}");
        Ok(())
    })?;
    every_node_counts(&cluster, "patient-marker")?;
    // Sent past the service: a stopped server would accept no connection any more.
    asker.tcp_get(&direct).context("it was told to stop too early")?;
    went_well(&chat.chat_report()?)?;
    replica.wait()?;
    Ok(())
}

#[test]
fn a_connection_whose_backend_has_gone_ends_as_its_service_says() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    for (service, on_loss, expected) in
        [("told", "reset", FailureKind::Reset), ("untold", "drop", FailureKind::Timeout)]
    {
        create(&cluster, service, &["--on-loss", on_loss])?;
        let replica = replica(&cluster, service, 2)?;
        let asker = asker(&cluster)?;
        let chat = asker.chat(&format!("{service}:3306"))?;
        // The server still runs, but cannot answer: its interface is removed.
        cluster.host(2).overlay(&["endpoint", "detach", &format!("{service}.2")])?;
        let failure = chat.chat_ended()?.failure.context("it went on")?;
        assert_eq!(failure.kind, expected, "{service}: {failure}");
        drop((replica, asker));
    }
    let forgotten = || {
        let rows = rows(h1, &["bpf", "stale_backends"])?;
        ensure!(rows.is_empty(), "{rows:?}");
        Ok(())
    };
    eventually("nobody is connected to them any more", Duration::from_secs(10), forgotten)
}

#[test]
fn the_hosts_ipv6_sockets_reach_published_ports_on_localhost() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    if !has_sockets(&cluster)? {
        return Ok(());
    }
    create(&cluster, "local", &["-p", "8071:3306", "-p", "8072:5300/udp"])?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let _tcp = replica(&cluster, "local", 2)?;
    let chat = h1.chat("[::1]:8071")?;
    go_on(&[&chat])?;
    let report = chat.chat_report()?;
    went_well(&report)?;
    assert_eq!(report.named, Some((Ipv6Addr::LOCALHOST, 8071).into()));
    for target in ["[::1]:8071", "[::ffff:127.0.0.1]:8071", "127.0.0.1:8071"] {
        assert_eq!(h1.tcp_get(target)?.name, "local.2", "{target}");
    }
    h1.cannot_connect("[::1]:8073")?;
    // A socket with IPV6_V6ONLY would get ENETUNREACH.
    let namespace = netns::path(h1.tag());
    let refused = in_netns(&namespace, || -> anyhow::Result<nix::Result<()>> {
        let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Inet6, kind, flags, None)?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        let to = std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 8071, 0, 0);
        Ok(connect(socket.as_raw_fd(), &SockaddrIn6::from(to)))
    })??;
    assert_eq!(refused, Err(nix::Error::ECONNREFUSED), "it is left alone");
    drop(_tcp);
    let _udp = h2.container("local.3").service("local").udp_echo(5300)?;
    assert_eq!(h1.udp_ask("127.0.0.1:8072")?.name, "local.3");
    let asked: Asked = h1.ask(&["udp-ask", "[::1]:8072", "--connected"])?;
    ensure!(asked.failures.is_empty(), "a connected socket: {asked:?}");
    Ok(())
}

#[test]
fn without_it_every_packet_of_a_connection_is_translated() -> anyhow::Result<()> {
    let cluster = PACKETS.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    create(&cluster, "packets", &[])?;
    let replicas = [replica(&cluster, "packets", 1)?, replica(&cluster, "packets", 2)?];
    let (asker, vip) = (asker(&cluster)?, vip(&cluster, "packets")?);
    let chats = [asker.chat("packets:3306")?, asker.chat("packets:3306")?];
    go_on(&chats.each_ref())?;
    assert_eq!((balanced(h1)?, entries(h1, vip)?), (0, 2));
    assert_eq!(connections(h1, "packets")?, (2, 2));
    ensure!(rows(h1, &["bpf", "netns"])?.is_empty());
    let mut names = BTreeSet::new();
    for chat in chats {
        let report = chat.chat_report()?;
        went_well(&report)?;
        assert_eq!(report.named, Some(vip));
        names.extend(report.peer.map(|peer| peer.name));
    }
    assert_eq!(names, BTreeSet::from(["packets.1".to_owned(), "packets.2".to_owned()]));
    // The replica sends to itself through the VIP.
    let near = &replicas[0];
    let answers = near.tcp_get_many("packets:3306", 4)?;
    let own = answers.iter().find(|a| a.name == "packets.1").context("an answer of its own")?;
    assert_eq!(own.client, vip.ip());
    // A backend that is taken away.
    h1.overlay(&["endpoint", "update", "--weight", "0", "packets.1"])?;
    let chat = asker.chat("packets:3306")?;
    go_on(&[&chat])?;
    h2.overlay(&["endpoint", "detach", "packets.2"])?;
    let failure = chat.chat_ended()?.failure.context("it went on")?;
    assert_eq!(failure.kind, FailureKind::Reset, "{failure}");
    Ok(())
}
