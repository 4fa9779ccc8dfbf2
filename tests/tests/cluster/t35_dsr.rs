//! `--return direct`: replies of published ports go from the backend's host directly to the client
//! (DSR).

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_tests::{
    Cluster, Container, Host, Options, Place, eventually, of_both_families, rig::Family,
    testkit::Asked,
};

of_both_families! {
    replies_leave_from_the_backends_host_with_xdp_off,
    replies_leave_from_the_backends_host_with_native_xdp,
    the_way_back_is_changed_under_load_and_nothing_is_lost,
}

/// A host without a backend and one with all of them; clients ask over a family.
struct Direct {
    cluster: Cluster,
    family: Family,
    _backends: Vec<Container>,
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

fn direct(family: Family, options: Options) -> anyhow::Result<Direct> {
    let cluster = Cluster::new(2, options)?;
    if family == Family::Ipv6 {
        for (number, host) in cluster.hosts().iter().enumerate() {
            address(host, number + 1)?;
        }
        address(cluster.client(), OUTSIDE)?;
    }
    cluster.form()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let of_network: &[&str] = if family == Family::Ipv6 { &["--ipv6"] } else { &[] };
    h1.network_create("mynet", of_network)?;
    let services =
        [("web", "8080:80"), ("echo", "5007:7/udp"), ("bulk", "9000:9001"), ("db", "3306:3306")];
    for (service, port) in services {
        h1.service_create(service, &["--network", "mynet", "-p", port, "--return", "direct"])?;
    }
    let backend = |name: &str, service: &str| h2.container(name).service(service).family(family);
    let _backends = vec![
        backend("web.1", "web").http(80)?,
        backend("web.2", "web").http(80)?,
        backend("echo.1", "echo").udp_echo(7)?,
        backend("bulk.1", "bulk").bulk_recv(9001)?,
        backend("db.1", "db").tcp_id(3306)?,
    ];
    if family == Family::Ipv6 {
        eventually("the other host's addresses are known", Duration::from_secs(10), || {
            let table = h2.overlay(&["bpf", "frontends6"])?.stdout;
            ensure!(table.contains(&ip6(1)), "{table}");
            Ok(())
        })?;
    }
    // The other host also knows the service that started last.
    cluster.settle()?;
    Ok(Direct { cluster, family, _backends })
}

impl Direct {
    /// A port of a host, as the client asks it.
    fn port(&self, number: usize, port: u16) -> String {
        match self.family {
            Family::Ipv4 => self.cluster.host(number).port(port),
            Family::Ipv6 => format!("[{}]:{port}", ip6(number)),
        }
    }

    /// The client's address.
    fn client(&self) -> anyhow::Result<IpAddr> {
        Ok(match self.family {
            Family::Ipv4 => self.cluster.client().address().into(),
            Family::Ipv6 => ip6(OUTSIDE).parse()?,
        })
    }

    /// Checks that all answers of a transfer except the first leave from the backend's host.
    fn transfer(&self) -> anyhow::Result<()> {
        let (h1, h2) = (self.cluster.host(1), self.cluster.host(2));
        let before = (passed_on(h1)?, counter(h2, "sent_dsr")?);
        self.cluster.client().bulk_send(&self.port(1, 9000), 32 << 20)?;
        let by_h1 = passed_on(h1)? - before.0;
        let by_h2 = counter(h2, "sent_dsr")? - before.1;
        ensure!(by_h1 <= 4, "the first answer, and one more for each time it was lost: {by_h1}");
        ensure!(by_h2 > 40, "acknowledgements: {by_h2}");
        Ok(())
    }

    /// Sends datagrams of `length` bytes from one socket.
    fn datagrams(&self, length: usize, count: u32) -> anyhow::Result<Asked> {
        let (say, count) = ("x".repeat(length), count.to_string());
        let target = self.port(1, 5007);
        self.cluster.client().ask(&["udp-ask", &target, "--say", &say, "--count", &count])
    }
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// Packets of replies that a host has sent on to clients, by TC or by XDP.
fn passed_on(host: &Host) -> anyhow::Result<u64> {
    Ok(counter(host, "sent_to_client")? + counter(host, "xdp_sent_to_client")?)
}

fn works(family: Family, options: Options) -> anyhow::Result<Direct> {
    let direct = direct(family, options)?;
    let Direct { cluster, .. } = &direct;
    let (h1, h2, client) = (cluster.host(1), cluster.host(2), cluster.client());
    let real = direct.client()?;
    direct.transfer()?;

    let before = counter(h2, "sent_dsr")?;
    for number in [1, 2] {
        let answers = client.http_get_many(&direct.port(number, 8080), 20)?;
        ensure!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
        ensure!(counter(h2, "sent_dsr")? > before, "through h{number}");
    }

    // The test also sends fragments. Those of the first answer take both paths. The path MTU to the
    // backend is learned by the loss of the first packets, as IPv6 requires.
    if family == Family::Ipv6 {
        direct.datagrams(9_000, 1)?;
    }
    for length in [10, 1_400, 9_000] {
        let asked = direct.datagrams(length, 6)?;
        assert_eq!((asked.answers.len(), asked.failures.len()), (6, 0), "{length}: {asked:?}");
    }

    // Clients of IPv4 in either case.
    let answers = client.http_get_many(&h1.port(8080), 5)?;
    ensure!(answers.iter().all(|answer| answer.client == IpAddr::V4(client.address())));
    // The hosts themselves, to which only the ingress node has a route.
    for (from, to) in [(h1, h2), (h2, h1), (h1, h1), (h2, h2)] {
        let answer = from.http_get(&to.port(8080))?;
        if from.name() != to.name() {
            assert_eq!(answer.client, IpAddr::V4(from.address()));
        }
        from.udp_ask_many(&to.port(5007), 3)?;
    }
    Ok(direct)
}

fn replies_leave_from_the_backends_host_with_xdp_off(family: Family) -> anyhow::Result<()> {
    let Direct { cluster, .. } = works(family, Options::xdp("off"))?;
    assert_eq!(counter(cluster.host(1), "xdp_encapsulated")?, 0);
    Ok(())
}

fn replies_leave_from_the_backends_host_with_native_xdp(family: Family) -> anyhow::Result<()> {
    let Direct { cluster, .. } = works(family, Options::xdp("native"))?;
    assert!(counter(cluster.host(1), "xdp_encapsulated")? > 0);
    Ok(())
}

#[test]
fn a_client_that_was_refused_hears_of_it_from_the_port_that_it_asked() -> anyhow::Result<()> {
    let Direct { cluster, _backends, .. } = direct(Family::Ipv4, Options::default())?;
    let h1 = cluster.host(1);
    h1.overlay(&["service", "update", "echo", "--publish-add", "5008:8/udp"])?;
    h1.overlay(&["service", "update", "web", "--publish-add", "8081:81"])?;
    cluster.settle()?;
    let target = h1.port(5008);
    let asked: Asked =
        cluster.client().ask(&["udp-ask", &target, "--count", "3", "--connected"])?;
    let refused = |asked: &Asked| {
        asked.answers.is_empty() && asked.failures.iter().all(|f| f.message.contains("refused"))
    };
    assert!(asked.failures.len() == 3 && refused(&asked), "{asked:?}");
    let asked: Asked = cluster.client().ask(&["tcp-get", &h1.port(8081)])?;
    assert!(asked.failures.len() == 1 && refused(&asked), "{asked:?}");
    Ok(())
}

fn the_way_back_is_changed_under_load_and_nothing_is_lost(family: Family) -> anyhow::Result<()> {
    let direct = direct(family, Options::default())?;
    let Direct { cluster, .. } = &direct;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let load = cluster.client().load(&[1, 2].map(|number| direct.port(number, 8080)))?;
    let chat = cluster.client().chat(&direct.port(1, 3306))?;
    for way in ["asked", "direct", "asked", "direct"] {
        for service in ["web", "db"] {
            h1.overlay(&["service", "update", service, "--return", way])?;
        }
        cluster.settle()?;
        load.goes_on(200)?;
        chat.goes_on(10)?;
    }
    assert!(load.load_report()?.all_answered()? > 100);
    let chat = chat.chat_report()?;
    assert!(chat.failure.is_none() && chat.lines > 0, "{chat:?}");
    assert!(counter(h2, "sent_dsr")? > 0);
    let inspected = h1.overlay(&["service", "inspect", "web"])?;
    assert!(inspected.stdout.contains("\"Return\": \"direct\""));
    Ok(())
}

#[test]
fn a_hosts_ipv6_addresses_are_shown_and_followed_and_outlive_the_manager() -> anyhow::Result<()> {
    let direct = direct(Family::Ipv6, Options::default())?;
    let Direct { cluster, .. } = &direct;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let shown = || -> anyhow::Result<serde_json::Value> {
        let json = h1.overlay(&["node", "inspect", h1.name()])?.stdout;
        Ok(serde_json::from_str::<serde_json::Value>(&json)?[0]["IPv6Addresses"].clone())
    };
    ensure!(shown()? == serde_json::json!([ip6(1)]), "{}", shown()?);
    h1.kill_agent()?;
    h1.start_agent()?;
    ensure!(shown()? == serde_json::json!([ip6(1)]), "{}", shown()?);
    direct.transfer()?;
    // Another address, to which clients may send at once: first through the host.
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
