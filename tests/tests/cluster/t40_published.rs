//! Published ports, through TC and through XDP, from outside and from the hosts themselves.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, ensure};
use overlay_tests::{Client, Cluster, Container, Host, Options, Place, testkit::Asked};

/// One host without a backend and one with two; a TCP service, a UDP service and a transfer.
struct Published {
    cluster: Cluster,
    backends: Vec<Container>,
}

fn published(options: Options) -> anyhow::Result<Published> {
    let cluster = Cluster::formed(2, options)?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    for (service, port) in [("web", "8080:80"), ("echo", "5007:7/udp"), ("bulk", "9000:9001")] {
        h1.service_create(service, &["--network", "mynet", "-p", port, "--drain", "0s"])?;
    }
    let backends = vec![
        h2.container("web.1").service("web").http(80)?,
        h2.container("web.2").service("web").http(80)?,
        h2.container("echo.1").service("echo").udp_echo(7)?,
        h2.container("bulk.1").service("bulk").bulk_recv(9001)?,
    ];
    Ok(Published { cluster, backends })
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// The checks that hold on every path of the packets.
fn works(published: &Published) -> anyhow::Result<()> {
    let Published { cluster, .. } = published;
    let client = cluster.client();
    let real = IpAddr::V4(client.address());
    for host in cluster.hosts() {
        // From outside: the backend is on the ingress node, or elsewhere.
        let answers = client.http_get_many(&host.port(8080), 20)?;
        assert!(answers.iter().all(|a| a.client == real), "{answers:?}");
        let names: BTreeSet<_> = answers.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["web.1", "web.2"]), "through {}", host.name());
        let answers = client.udp_ask_many(&host.port(5007), 5)?;
        assert!(answers.iter().all(|a| a.client == real), "{answers:?}");
        client.bulk_send(&host.port(9000), 32 << 20)?;
        // Requests from the host itself.
        for target in ["127.0.0.1", "localhost", &host.address().to_string()] {
            host.http_get_many(&format!("{target}:8080"), 4)?;
            host.udp_ask_many(&format!("{target}:5007"), 2)?;
            let connected = ["udp-ask", &format!("{target}:5007"), "--connected"];
            let asked: Asked = host.ask(&connected)?;
            assert!(asked.failures.is_empty(), "{}: {asked:?}", host.name());
        }
    }
    // Requests from one host to the other's port.
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    assert_eq!(h1.http_get(&h2.port(8080))?.client, IpAddr::V4(h1.address()));
    assert_eq!(h2.http_get(&h1.port(8080))?.client, IpAddr::V4(h2.address()));
    assert_eq!(h2.udp_ask(&h1.port(5007))?.client, IpAddr::V4(h2.address()));
    Ok(())
}

#[test]
fn published_ports_work_with_xdp_off() -> anyhow::Result<()> {
    let published = published(Options::xdp("off"))?;
    assert_eq!(published.cluster.host(1).status()?.xdp, "off");
    works(&published)?;
    assert_eq!(counter(published.cluster.host(1), "xdp_encapsulated")?, 0);
    Ok(())
}

#[test]
fn published_ports_work_with_generic_xdp() -> anyhow::Result<()> {
    works_with_xdp("generic")
}

#[test]
fn published_ports_work_with_native_xdp() -> anyhow::Result<()> {
    works_with_xdp("native")
}

fn works_with_xdp(mode: &str) -> anyhow::Result<()> {
    let published = published(Options::xdp(mode))?;
    let h1 = published.cluster.host(1);
    assert_eq!(h1.status()?.xdp, mode);
    works(&published)?;
    // It was XDP that did it, in both directions.
    assert!(counter(h1, "xdp_encapsulated")? > 0, "{:?}", h1.status()?.counters);
    assert!(counter(h1, "xdp_sent_to_client")? > 0, "{:?}", h1.status()?.counters);
    Ok(())
}

#[test]
fn published_ports_work_over_links_with_offloads() -> anyhow::Result<()> {
    let mut published = published(Options::default())?;
    works(&published)?;
    let Published { cluster, backends } = &mut published;
    let client = cluster.client();

    // Only published ports answer, and only under their published numbers.
    for target in [cluster.host(2).port(80), cluster.host(2).port(7), cluster.host(1).port(9001)] {
        client.cannot_connect(&target)?;
    }
    client.cannot_connect(&cluster.host(1).port(5007))?;
    client.cannot_ask(&cluster.host(1).port(8080))?;

    // A container reaches them too, at the host's address.
    let inside = cluster.host(1).container("inside").publish("published=8081,target=81,mode=host");
    let inside = inside.network("mynet").http(81)?;
    assert_eq!(client.http_get(&cluster.host(1).port(8081))?.name, "inside");
    client.cannot_connect(&cluster.host(2).port(8081))?;
    inside.stop()?;
    client.cannot_connect(&cluster.host(1).port(8081))?;

    // Without backends nothing answers.
    for backend in std::mem::take(backends) {
        backend.stop()?;
    }
    client.cannot_connect(&cluster.host(1).port(8080))?;
    client.cannot_ask(&cluster.host(1).port(5007))
}

#[test]
fn a_port_chosen_by_the_cluster_is_told_and_answers() -> anyhow::Result<()> {
    let cluster = Cluster::formed(1, Options::default())?;
    let h1 = cluster.host(1);
    h1.network_create("mynet", &[])?;
    h1.service_create("web", &["--network", "mynet", "-p", "80"])?;
    let _backend = h1.container("web.1").service("web").http(80)?;
    let state = h1.state()?;
    let port = state.service("web").and_then(|s| s.ports[0].published).expect("a port");
    assert!((30_000..=32_767).contains(&port), "{port}");
    assert_eq!(cluster.client().http_get(&h1.port(port))?.name, "web.1");
    Ok(())
}

#[test]
fn a_service_on_ingress_alone_publishes_without_a_network_of_its_own() -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.service_create("plain", &["-p", "8080:80"])?;
    let _backend = h2.container("plain.1").service("plain").http(80)?;
    for host in [h1, h2] {
        let answer = cluster.client().http_get(&host.port(8080))?;
        assert_eq!(answer.client, IpAddr::V4(cluster.client().address()));
        host.http_get("localhost:8080")?;
    }
    Ok(())
}

/// Resets that a machine has sent.
fn resets(client: &Client) -> anyhow::Result<u64> {
    let counters = client.exec("cat", &["/proc/net/snmp"])?.stdout;
    let mut tcp = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().context("names")?, tcp.next().context("values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutRsts");
    Ok(found.context("OutRsts")?.1.parse()?)
}

/// The clients' ports of a machine's connections in TIME-WAIT.
fn time_wait(place: &impl Place) -> anyhow::Result<BTreeSet<u16>> {
    let tables = place.exec("cat", &["/proc/net/tcp", "/proc/net/tcp6"])?.success()?.stdout;
    let mut ports = BTreeSet::new();
    for line in tables.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, remote, "06", ..] = words[..] {
            let port = remote.rsplit(':').next().context("a port")?;
            ports.insert(u16::from_str_radix(port, 16)?);
        }
    }
    Ok(ports)
}

#[test]
fn a_clients_port_meets_no_time_wait_of_what_it_asked_through_another_host() -> anyhow::Result<()> {
    let cluster = Cluster::formed(3, Options::default())?;
    let [h1, h2, h3] = [1, 2, 3].map(|number| cluster.host(number));
    h1.network_create("mynet", &[])?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80"])?;
    let backend = h1.container("web.1").service("web").http(80)?;
    // All its connections have one of twenty ports, and the backend closes them first.
    let client = cluster.outsider("few", 77)?;
    client.exec("sysctl", &["-qw", "net.ipv4.ip_local_port_range=30000 30039"])?;
    let ports = |host: &Host| -> anyhow::Result<BTreeSet<_>> {
        let answers = client.http_get_many(&host.port(8080), 20)?;
        Ok(answers.iter().map(|answer| answer.client_port).collect())
    };
    let first = ports(h2)?;
    assert!(first.iter().all(|port| (30_000..30_040).contains(port)), "{first:?}");
    // The entries expire after 30 s, and the backend's TIME-WAIT after 60 s. In between, the
    // backend would answer a SYN that another host's entry passes with an old acknowledgement, and
    // the client would reset the connection.
    for host in cluster.hosts() {
        host.age_flows(31)?;
    }
    // If the client closed first, the backend has nothing in TIME-WAIT.
    let remembered = &time_wait(&backend)? & &first;
    ensure!(!remembered.is_empty(), "the backend remembers none of {first:?}");
    for host in [h3, h1] {
        let still = time_wait(&backend)?;
        ensure!(still.is_superset(&remembered), "{still:?} has lost some of {remembered:?}");
        let next = ports(host)?;
        assert_eq!(resets(&client)?, 0, "{first:?} {next:?}");
        let name = host.name();
        assert!(remembered.is_disjoint(&next), "through {name}: {remembered:?} {next:?}");
    }
    Ok(())
}
