//! `--return direct` with clients of IPv6: replies of published ports go from the backend's host straight to them.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_tests::{Cluster, Container, Host, Options, Place, eventually, testkit::Asked};

/// Number of the client outside.
const OUTSIDE: usize = 9;

fn ip6(number: usize) -> String {
    format!("2001:db8::{number}")
}

/// A port of the first host, on its IPv6 address.
fn port6(port: u16) -> String {
    format!("[{}]:{port}", ip6(1))
}

fn address(machine: &impl Place, number: usize) -> anyhow::Result<()> {
    let address = format!("{}/64", ip6(number));
    machine.exec("ip", &["address", "add", &address, "dev", "eth0", "nodad"])?.success()?;
    Ok(())
}

/// A host without a backend and one with all of them.
struct Direct {
    cluster: Cluster,
    _backends: Vec<Container>,
}

fn direct(options: Options) -> anyhow::Result<Direct> {
    let cluster = Cluster::new(2, options)?;
    for (number, host) in cluster.hosts().iter().enumerate() {
        address(host, number + 1)?;
    }
    address(cluster.client(), OUTSIDE)?;
    cluster.form()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("dual", &["--ipv6"])?;
    let mut backends = Vec::new();
    for (service, kind, port) in [
        ("web", "http", "8080:80"),
        ("echo", "udp-echo", "5007:80/udp"),
        ("bulk", "bulk-recv", "9000:80"),
    ] {
        h1.service_create(service, &["--network", "dual", "-p", port, "--return", "direct"])?;
        let name = format!("{service}.1");
        let mut args = vec![kind, "--port", "80", "--address", "::"];
        if kind != "bulk-recv" {
            args.extend(["--name", &name, "--host", h2.name()]);
        }
        backends.push(h2.container(&name).service(service).testkit(&args)?);
    }
    knows_addresses(h2)?;
    // What the last one has begun to serve, the other host knows too.
    cluster.settle()?;
    Ok(Direct { cluster, _backends: backends })
}

/// Waits until a host has heard what IPv6 addresses the other one has.
fn knows_addresses(host: &Host) -> anyhow::Result<()> {
    eventually("the other host's addresses are known", Duration::from_secs(10), || {
        let table = host.overlay(&["bpf", "frontends6"])?.stdout;
        ensure!(table.contains(&ip6(1)), "{table}");
        Ok(())
    })
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// Packets of replies that a host has sent on to clients, by TC or by XDP.
fn passed_on(host: &Host) -> anyhow::Result<u64> {
    Ok(counter(host, "sent_to_client")? + counter(host, "xdp_sent_to_client")?)
}

/// That all but the first answer of a transfer leaves from the backend's host.
fn transfer(cluster: &Cluster) -> anyhow::Result<()> {
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let before = (passed_on(h1)?, counter(h2, "sent_dsr")?);
    cluster.client().bulk_send(&port6(9000), 32 << 20)?;
    let by_h1 = passed_on(h1)? - before.0;
    let by_h2 = counter(h2, "sent_dsr")? - before.1;
    ensure!(by_h1 <= 4, "the first answer, and one more for each time it was lost: {by_h1}");
    ensure!(by_h2 > 40, "acknowledgements: {by_h2}");
    Ok(())
}

fn works(options: Options) -> anyhow::Result<()> {
    let direct = direct(options)?;
    let Direct { cluster, .. } = &direct;
    let (h1, h2, client) = (cluster.host(1), cluster.host(2), cluster.client());
    let real: IpAddr = ip6(OUTSIDE).parse()?;
    transfer(cluster)?;

    let before = counter(h2, "sent_dsr")?;
    let answers = client.http_get_many(&port6(8080), 20)?;
    ensure!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
    ensure!(counter(h2, "sent_dsr")? > before);

    // Also in fragments, of which the first answer's take both ways. The path MTU to the backend is learned by
    // what is lost first, as IPv6 has it.
    let _: Asked = client.ask(&["udp-ask", &port6(5007), "--say", &"x".repeat(9_000)])?;
    for length in [10, 1_400, 9_000] {
        let say = "x".repeat(length);
        let asked: Asked = client.ask(&["udp-ask", &port6(5007), "--say", &say, "--count", "6"])?;
        let failures = &asked.failures;
        ensure!(asked.answers.len() == 6 && failures.is_empty(), "{length}: {failures:?}");
    }
    // Clients of IPv4 as before.
    let answers = client.http_get_many(&h1.port(8080), 5)?;
    ensure!(answers.iter().all(|answer| answer.client == IpAddr::V4(client.address())));
    Ok(())
}

#[test]
fn replies_to_clients_of_ipv6_leave_from_the_backends_host_with_xdp_off() -> anyhow::Result<()> {
    works(Options::xdp("off"))
}

#[test]
fn replies_to_clients_of_ipv6_leave_from_the_backends_host_with_native_xdp() -> anyhow::Result<()> {
    works(Options::xdp("native"))
}

#[test]
fn a_hosts_addresses_are_shown_and_followed_and_outlive_the_manager() -> anyhow::Result<()> {
    let Direct { cluster, _backends } = direct(Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let shown = || -> anyhow::Result<serde_json::Value> {
        let json = h1.overlay(&["node", "inspect", h1.name()])?.stdout;
        Ok(serde_json::from_str::<serde_json::Value>(&json)?[0]["IPv6Addresses"].clone())
    };
    ensure!(shown()? == serde_json::json!([ip6(1)]), "{}", shown()?);
    h1.kill_agent()?;
    h1.start_agent()?;
    ensure!(shown()? == serde_json::json!([ip6(1)]), "{}", shown()?);
    transfer(&cluster)?;
    // Another address, which clients may ask at once: through the host at first.
    address(h1, 7)?;
    eventually("it is known", Duration::from_secs(30), || {
        let table = h2.overlay(&["bpf", "frontends6"])?.stdout;
        table.contains(&ip6(7)).then_some(()).with_context(|| table.clone())
    })?;
    let before = counter(h2, "sent_dsr")?;
    cluster.client().http_get_many(&format!("[{}]:8080", ip6(7)), 5)?;
    ensure!(counter(h2, "sent_dsr")? > before);
    Ok(())
}
