//! Services over IPv6: VIPs, published ports, and the CLI's output about them.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    Cluster, Container, Host, Options, Place, Shared, eventually, testkit::Answer,
};

/// Each test has its own services on `dual`, where `h3` has no container. VIPs are balanced by
/// packets; `cluster_39_sockets` tests the sockets.
static CLUSTER: Shared = Shared::new(|| formed(Options::default().every(&["--no-socket-lb"])));

fn formed(options: Options) -> anyhow::Result<Cluster> {
    let cluster = Cluster::new(3, options)?;
    for (number, host) in cluster.hosts().iter().enumerate() {
        address(host, number + 1)?;
    }
    address(cluster.client(), OUTSIDE)?;
    cluster.form()?;
    cluster.host(1).network_create("dual", &["--ipv6"])?;
    cluster.host(1).network_create("single", &[])?;
    Ok(cluster)
}

/// Number of the client outside.
const OUTSIDE: usize = 9;

fn ip6(number: usize) -> String {
    format!("2001:db8::{number}")
}

fn address(machine: &impl Place, number: usize) -> anyhow::Result<()> {
    let address = format!("{}/64", ip6(number));
    machine.exec("ip", &["address", "add", &address, "dev", "eth0", "nodad"])?.success()?;
    Ok(())
}

/// A service on `dual`, with a backend on each of the first two hosts that serves both families.
fn service(
    cluster: &Cluster,
    name: &str,
    kind: &str,
    port: &str,
) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).service_create(name, &["--network", "dual", "-p", port, "--drain", "0s"])?;
    let backend = |number: usize| {
        let host = cluster.host(number);
        let name_of = format!("{name}.{number}");
        let args = [kind, "--name", &name_of, "--host", host.name(), "--port", "80"];
        let args = [&args[..], &["--address", "::"]].concat();
        host.container(&name_of).service(name).testkit(&args)
    };
    Ok([backend(1)?, backend(2)?])
}

fn vip6(cluster: &Cluster, service: &str) -> anyhow::Result<String> {
    let state = cluster.host(1).state()?;
    let service = state.service(service).context("the service")?;
    Ok(service.networks.first().and_then(|on| on.vip6).context("an IPv6 VIP")?.to_string())
}

fn names(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.name.as_str()).collect()
}

fn shown(host: &Host, args: &[&str]) -> anyhow::Result<String> {
    Ok(host.overlay(args)?.stdout)
}

#[test]
fn a_vip_is_asked_over_ipv6_and_backends_see_who_asks() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let _backends = service(&cluster, "web", "http", "8001:80")?;
    let vip = vip6(&cluster, "web")?;
    for number in [1, 2] {
        let asker = cluster.host(number).container(&format!("web-asker-{number}"));
        let asker = asker.network("dual").idle()?;
        let answers = asker.http_get_many(&format!("[{vip}]:80"), 12)?;
        assert_eq!(names(&answers), BTreeSet::from(["web.1", "web.2"]));
        let own = IpAddr::from(asker.ip6()?);
        assert!(answers.iter().all(|answer| answer.client == own), "{answers:?}");
        asker.ping(&vip, 2)?;
        // A name of both families.
        asker.http_get("web:80")?;
    }
    Ok(())
}

#[test]
fn datagrams_to_an_ipv6_vip_are_answered_by_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let _backends = service(&cluster, "echo", "udp-echo", "5002:80/udp")?;
    let asker = cluster.host(1).container("echo-asker").network("dual").idle()?;
    let answers = asker.udp_ask_many(&format!("[{}]:80", vip6(&cluster, "echo")?), 12)?;
    assert_eq!(names(&answers), BTreeSet::from(["echo.1", "echo.2"]));
    Ok(())
}

#[test]
fn a_backend_reaches_itself_through_the_ipv6_vip() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [first, _second] = service(&cluster, "self", "http", "8003:80")?;
    let answers = first.http_get_many(&format!("[{}]:80", vip6(&cluster, "self")?), 12)?;
    assert_eq!(names(&answers), BTreeSet::from(["self.1", "self.2"]));
    Ok(())
}

#[test]
fn a_service_without_a_backend_refuses_over_ipv6_at_once() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).service_create("empty", &["--network", "dual", "-p", "8004:80"])?;
    let asker = cluster.host(1).container("empty-asker").network("dual").idle()?;
    asker.cannot_connect(&format!("[{}]:80", vip6(&cluster, "empty")?))?;
    cluster.client().cannot_connect(&format!("[{}]:8004", ip6(1)))
}

#[test]
fn a_published_port_answers_on_every_hosts_ipv6_address_with_the_clients_own() -> anyhow::Result<()>
{
    answers_outside(&*CLUSTER.turn()?)
}

#[test]
fn published_ports_answer_over_ipv6_with_native_xdp() -> anyhow::Result<()> {
    answers_by_xdp("native")
}

#[test]
fn published_ports_answer_over_ipv6_with_generic_xdp() -> anyhow::Result<()> {
    answers_by_xdp("generic")
}

fn answers_by_xdp(mode: &str) -> anyhow::Result<()> {
    let cluster = formed(Options::xdp(mode))?;
    answers_outside(&cluster)?;
    // The third host has no backend: XDP forwarded its requests and the replies.
    let counters = cluster.host(3).status()?.counters;
    for reason in ["xdp_encapsulated", "xdp_sent_to_client"] {
        let by_xdp: u64 =
            counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum();
        assert!(by_xdp > 40, "{reason}: {counters:?}");
    }
    Ok(())
}

fn answers_outside(cluster: &Cluster) -> anyhow::Result<()> {
    let _web = service(cluster, "out", "http", "8005:80")?;
    let _echo = service(cluster, "out-echo", "udp-echo", "5005:80/udp")?;
    let client = cluster.client();
    let real: IpAddr = ip6(OUTSIDE).parse()?;
    for number in [1, 2, 3] {
        let answers = client.http_get_many(&format!("[{}]:8005", ip6(number)), 12)?;
        assert_eq!(names(&answers), BTreeSet::from(["out.1", "out.2"]), "through h{number}");
        assert!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
        let answers = client.udp_ask_many(&format!("[{}]:5005", ip6(number)), 12)?;
        assert_eq!(names(&answers), BTreeSet::from(["out-echo.1", "out-echo.2"]));
        assert!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
    }
    Ok(())
}

#[test]
fn a_port_of_a_service_without_ipv6_answers_over_ipv4_alone() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.service_create("plain", &["--network", "single", "-p", "8006:80", "--drain", "0s"])?;
    let _backend = h1.container("plain.1").service("plain").http(80)?;
    let client = cluster.client();
    client.http_get(&h1.port(8006))?;
    client.cannot_connect(&format!("[{}]:8006", ip6(1)))
}

#[test]
fn an_address_that_a_host_gets_later_answers_too() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let _backends = service(&cluster, "late", "http", "8007:80")?;
    let (host, client) = (cluster.host(3), cluster.client());
    address(host, 33)?;
    let target = format!("[{}]:8007", ip6(33));
    eventually("the address answers", Duration::from_secs(20), || {
        client.http_get(&target).map(drop)
    })
}

#[test]
fn flows_and_services_are_shown_by_their_ipv6_addresses() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [backend, _other] = service(&cluster, "seen", "http", "8008:80")?;
    let (h1, vip) = (cluster.host(1), vip6(&cluster, "seen")?);
    let asker = h1.container("seen-asker").network("dual").idle()?;
    asker.http_get_many(&format!("[{vip}]:80"), 4)?;
    cluster.client().http_get_many(&format!("[{}]:8008", ip6(1)), 4)?;
    let flows = shown(h1, &["bpf", "conntrack"])?;
    for address in [
        format!("[{vip}]:80"),
        format!("[{}]:", asker.ip6()?),
        format!("[{}]:80", backend.ip6()?),
        format!("[{}]:8008", ip6(1)),
        format!("[{}]:", ip6(OUTSIDE)),
    ] {
        assert!(flows.contains(&address), "{address} is not in\n{flows}");
    }
    let servers = shown(h1, &["ipvs"])?;
    for server in [format!("TCP  [{vip}]:0 rr"), "TCP  [::]:8008 rr".to_owned()] {
        assert!(servers.contains(&server), "{server} is not in\n{servers}");
    }
    let counted = shown(h1, &["ipvs", "--stats"])?;
    let line = counted.lines().find(|line| line.contains(&format!("[{vip}]:0")));
    let flows = line.and_then(|line| line.split_whitespace().nth(2)).context("a count")?;
    assert_eq!(flows, "4", "{counted}");
    let clients = shown(h1, &["bpf", "addr6_ids"])?;
    assert!(clients.contains(&ip6(OUTSIDE)), "{clients}");
    Ok(())
}

#[test]
fn transfers_go_through_vips_and_published_ports_of_every_host() -> anyhow::Result<()> {
    const BULK: u64 = 32 << 20;
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.service_create("sink", &["--network", "dual", "-p", "8009:9000", "--drain", "0s"])?;
    let args = ["bulk-recv", "--port", "9000", "--address", "::"];
    let _sink = cluster.host(2).container("sink.1").service("sink").testkit(&args)?;
    let vip = vip6(&cluster, "sink")?;
    for number in [1, 2] {
        let asker = cluster.host(number).container(&format!("sink-asker-{number}"));
        asker.network("dual").idle()?.bulk_send(&format!("[{vip}]:9000"), BULK)?;
    }
    for number in [1, 2, 3] {
        cluster.client().bulk_send(&format!("[{}]:8009", ip6(number)), BULK)?;
    }
    Ok(())
}

/// Waits until every node has counted the flows of draining backends. A node counts those of all of
/// them at once. A backend without flows is stopped when every node has counted none for it.
fn every_node_counts(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let h1 = cluster.host(1);
    h1.service_create(name, &["--network", "dual", "--drain", "600s"])?;
    cluster.host(2).container(&format!("{name}.1")).service(name).tcp_id(80)?.stop()?;
    h1.overlay(&["service", "rm", name]).map(drop)
}

#[test]
fn a_drain_waits_for_flows_of_ipv6_and_agents_may_restart_meanwhile() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2, h3) = (cluster.host(1), cluster.host(2), cluster.host(3));
    h1.service_create("patient", &["--network", "dual", "-p", "8010:80", "--drain", "600s"])?;
    let args = ["tcp-id", "--name", "patient.1", "--host", "h2", "--port", "80"];
    let args = [&args[..], &["--address", "::"]].concat();
    let mut replica = h2.container("patient.1").service("patient").testkit(&args)?;
    let asker = h1.container("patient-asker").network("dual").idle()?;
    // One flow is in h1's table alone, the other in h3's.
    let inside = asker.chat(&format!("[{}]:80", vip6(&cluster, "patient")?))?;
    let outside = cluster.client().chat(&format!("[{}]:8010", ip6(3)))?;
    for host in [h1, h3] {
        host.kill_agent()?;
        host.start_agent()?;
    }
    cluster.settle()?;
    replica.signal(Signal::SIGTERM);
    eventually("it drains", Duration::from_secs(20), || {
        let shown = shown(h1, &["service", "ps", "patient"])?;
        ensure!(shown.contains("draining"), "{shown}");
        Ok(())
    })?;
    let direct = format!("[{}]:80", replica.ip6()?);
    for chat in [inside, outside] {
        chat.goes_on(10)?;
        every_node_counts(&cluster, "patient-marker")?;
        // Sent past the service: a stopped server would accept no connection any more.
        asker.tcp_get(&direct).context("it was told to stop too early")?;
        let report = chat.chat_report()?;
        ensure!(report.failure.is_none() && report.lines > 10, "{report:?}");
    }
    let output = replica.wait()?;
    ensure!(output.describe().contains("draining"), "{}", output.describe());
    Ok(())
}
