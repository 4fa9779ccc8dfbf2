//! Egress: containers send to the outside through their host.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::ensure;
use overlay_tests::{
    Client, Cluster, Container, Host, Options, Place as _, eventually,
    process::Process,
    testkit::{Asked, FailureKind, Pinged},
};

/// Two hosts with a container each and a client outside that serves.
struct Outside {
    cluster: Cluster,
    containers: [Container; 2],
    _servers: Vec<Process>,
}

const HTTP: u16 = 80;
const ECHO: u16 = 7;
const BULK: u16 = 9001;

/// Serves on a machine outside.
fn serve(client: &Client) -> anyhow::Result<Vec<Process>> {
    let (http, echo, bulk) = (HTTP.to_string(), ECHO.to_string(), BULK.to_string());
    Ok(vec![
        client.serve(&["http", "--name", "outside", "--host", "client", "--port", &http])?,
        client.serve(&["tcp-id", "--name", "outside", "--host", "client", "--port", "3306"])?,
        client.serve(&["udp-echo", "--name", "outside", "--host", "client", "--port", &echo])?,
        client.serve(&["bulk-recv", "--port", &bulk])?,
    ])
}

fn outside(options: Options) -> anyhow::Result<Outside> {
    let cluster = Cluster::formed(2, options)?;
    cluster.host(1).network_create("mynet", &[])?;
    let containers = [
        cluster.host(1).container("a").network("mynet").idle()?,
        cluster.host(2).container("b").network("bridge").idle()?,
    ];
    let servers = serve(cluster.client())?;
    Ok(Outside { cluster, containers, _servers: servers })
}

fn at(client: &Client, port: u16) -> String {
    format!("{}:{port}", client.address())
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

#[test]
fn the_outside_is_reached_under_the_address_of_the_containers_host() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let client = cluster.client();
    for (container, host) in containers.iter().zip(cluster.hosts()) {
        let seen = IpAddr::V4(host.address());
        let answers = container.http_get_many(&at(client, HTTP), 5)?;
        assert!(answers.iter().all(|a| a.client == seen && a.client_port >= 61_000), "{answers:?}");
        let answers = container.udp_ask_many(&at(client, ECHO), 5)?;
        assert!(answers.iter().all(|a| a.client == seen && a.client_port >= 61_000), "{answers:?}");
        container.ping(&client.address().to_string(), 3)?;
        container.bulk_send(&at(client, BULK), 32 << 20)?;
        // A closed port says so.
        let asked: Asked =
            container.ask(&["udp-ask", &at(client, 9), "--connected", "--timeout-ms", "5000"])?;
        assert_eq!(asked.failures[0].kind, FailureKind::Connect, "{asked:?}");
        assert!(counter(host, "masqueraded")? > 0 && counter(host, "returned_from_outside")? > 0);
        // The host itself is not outside.
        container.cannot_ping(&host.address().to_string())?;
    }
    // Another host is, and its published ports.
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    containers[0].ping(&h2.address().to_string(), 1)?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80", "--drain", "0s"])?;
    let _web = h1.container("web.1").service("web").http(80)?;
    assert_eq!(containers[1].http_get(&h1.port(8080))?.client, IpAddr::V4(h2.address()));
    // The host's own ports are reached under the container's address: from the service's network,
    // from another one, and on the host without the backend.
    h1.network_create("other", &[])?;
    h1.network_create("closed", &["--internal"])?;
    for host in cluster.hosts() {
        for network in ["mynet", "other", "bridge"] {
            let name = format!("in-{network}-{}", host.name());
            let container = host.container(&name).network(network).idle()?;
            let answers = container.http_get_many(&host.port(8080), 3)?;
            let own = IpAddr::V4(container.ip()?);
            assert!(answers.iter().all(|answer| answer.client == own), "{name}: {answers:?}");
            container.cannot_connect(&host.port(8081))?;
        }
    }
    let closed = h1.container("closed.1").network("closed").idle()?;
    let gateway = closed.ip()?.octets();
    let gateway = Ipv4Addr::new(gateway[0], gateway[1], gateway[2], 1).to_string();
    closed.exec("ip", &["route", "add", "default", "via", &gateway])?.success()?;
    closed.cannot_connect(&h1.port(8080))?;
    Ok(())
}

#[test]
fn containers_with_one_source_port_speak_to_one_server() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let second = cluster.host(1).container("c").network("bridge").idle()?;
    let mut ports = BTreeSet::new();
    for container in [&containers[0], &second] {
        let target = at(cluster.client(), ECHO);
        let asked: Asked =
            container.ask(&["udp-ask", &target, "--from-port", "5353", "--count", "3"])?;
        assert!(asked.failures.is_empty(), "{asked:?}");
        ports.extend(asked.answers.iter().map(|answer| answer.client_port));
    }
    assert_eq!(ports.len(), 2, "one port each: {ports:?}");
    let listed = cluster.host(1).overlay(&["bpf", "conntrack"])?.stdout;
    assert!(listed.contains(" masquerade ") && listed.contains(" unmasquerade "), "{listed}");
    Ok(())
}

#[test]
fn an_internal_network_and_another_network_are_not_reached() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let (h1, client) = (cluster.host(1), cluster.client());
    h1.network_create("inside", &["--internal"])?;
    h1.network_create("other", &[])?;
    let inside = h1.container("inside").network("inside").idle()?;
    // It has no route; with one it gets no further.
    inside.cannot_ping(&client.address().to_string())?;
    let gateway = inside.ip()?.octets();
    let gateway = Ipv4Addr::new(gateway[0], gateway[1], gateway[2], 1).to_string();
    inside.exec("ip", &["route", "add", "default", "via", &gateway])?.success()?;
    inside.cannot_ping(&client.address().to_string())?;
    inside.cannot_connect(&at(client, HTTP))?;
    assert!(counter(h1, "no_way_out")? > 0);

    // Networks of the cluster are inside on every host, whatever the host's routes are.
    let there = cluster.host(2).container("there").network("other").http(80)?;
    let via = ["route", "add", "default", "via", &client.address().to_string()];
    h1.exec("ip", &via)?.success()?;
    let before = counter(h1, "masqueraded")?;
    containers[0].cannot_connect(&there.port(80)?)?;
    containers[0].cannot_ping(&there.ip()?.to_string())?;
    assert_eq!(counter(h1, "masqueraded")?, before);
    Ok(())
}

/// A router outside and a machine behind it, 192.0.2.2.
fn far(cluster: &Cluster) -> anyhow::Result<(Client, Client)> {
    let router = cluster.outsider("router", 200)?;
    let addresses = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let far = cluster.behind(&router, "eth1", "far", addresses)?;
    router.exec("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?.success()?;
    let via = router.address().to_string();
    for host in cluster.hosts() {
        host.exec("ip", &["route", "add", "192.0.2.0/24", "via", &via])?.success()?;
    }
    Ok((router, far))
}

#[test]
fn routers_on_the_way_out_are_heard() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let (router, far) = far(&cluster)?;
    let _more = serve(&far)?;
    let target = far.address().to_string();
    let a = &containers[0];
    a.ping(&target, 2)?;
    let seen = a.http_get(&at(&far, HTTP))?;
    assert_eq!(seen.client, IpAddr::V4(cluster.host(1).address()));

    // The gateway is the first router, the next one is outside.
    let mut gateway = a.ip()?.octets();
    gateway[3] = 1;
    let pinged: Pinged = a.ask(&["ping", &target, "--ttl", "1"])?;
    assert_eq!(pinged.exceeded_at, [Ipv4Addr::from(gateway)], "{pinged:?}");
    let pinged: Pinged = a.ask(&["ping", &target, "--ttl", "2"])?;
    assert_eq!(pinged.exceeded_at, [router.address()], "{pinged:?}");
    let pinged: Pinged = a.ask(&["ping", &target, "--ttl", "3"])?;
    assert_eq!(pinged.answered, 1, "{pinged:?}");

    // A narrow link behind the router: the sender gets an error, and sends smaller packets.
    router.exec("ip", &["link", "set", "eth1", "mtu", "1300"])?.success()?;
    a.bulk_send(&at(&far, BULK), 4 << 20)?;
    Ok(())
}

#[test]
fn another_interface_is_a_way_out_and_answers_published_ports() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let h1 = cluster.host(1);
    let own = Ipv4Addr::new(198, 51, 100, 1);
    let lan = cluster.behind(h1, "eth1", "lan", (own, Ipv4Addr::new(198, 51, 100, 2)))?;
    let _more = serve(&lan)?;
    let ways = |count: u64| {
        eventually("the ways out are those of the host", std::time::Duration::from_secs(20), || {
            let entries = h1.status()?.entries;
            ensure!(entries.get("egress") == Some(&count), "{entries:?}");
            Ok(())
        })
    };
    ways(2)?;
    let listed = h1.overlay(&["bpf", "egress"])?.stdout;
    assert!(listed.contains("eth1") && listed.contains("198.51.100.1"), "{listed}");
    let a = &containers[0];
    assert_eq!(a.http_get(&at(&lan, HTTP))?.client, IpAddr::V4(own));
    assert_eq!(a.udp_ask(&at(&lan, ECHO))?.client, IpAddr::V4(own));
    a.ping(&lan.address().to_string(), 1)?;
    a.bulk_send(&at(&lan, BULK), 8 << 20)?;

    // Published ports answer there too, from this host and from the other.
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80", "--drain", "0s"])?;
    let near = h1.container("web.1").service("web").http(80)?;
    let target = format!("{own}:8080");
    assert_eq!(lan.http_get(&target)?.client, IpAddr::V4(lan.address()));
    near.stop()?;
    let _there = cluster.host(2).container("web.2").service("web").http(80)?;
    let answer = lan.http_get(&target)?;
    assert_eq!((answer.name.as_str(), answer.client), ("web.2", IpAddr::V4(lan.address())));

    // A restarted daemon keeps the program there, and detaches it from a removed interface.
    h1.stop_agent()?;
    a.udp_ask(&at(&lan, ECHO))?;
    h1.start_agent()?;
    ways(2)?;
    a.udp_ask(&at(&lan, ECHO))?;
    h1.exec("ip", &["link", "del", "eth1"])?.success()?;
    ways(1)?;
    let links = h1.overlay(&["datapath", "show"])?.stdout;
    assert!(!links.contains("eth1"), "{links}");
    for container in containers {
        container.stop()?;
    }
    h1.leave(true)?;
    assert!(h1.leftovers()?.is_empty(), "{:?}", h1.leftovers()?);
    Ok(())
}

/// Makes a machine send tunnel packets with host 2's address to host 1, as if from the container
/// `from` there, to `to`.
fn forge(
    at: &Client,
    cluster: &Cluster,
    (from, to): (&Container, &Container),
) -> anyhow::Result<()> {
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let state = h1.state()?;
    let network = state.networks.values().find(|network| network.name == "mynet");
    let vni = network.expect("the network of the containers").vni;
    let listed = h1.exec("ip", &["-o", "link", "show", "dev", "eth1"])?.success()?.stdout;
    let mac = listed.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    let (from, to) = (from.ip()?, to.ip()?);
    let inner = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    };
    let (node, stolen) = (h1.address(), h2.address());
    let script = format!(
        "ip address add {stolen}/32 dev eth0; ip route add {node} dev eth0 src {stolen}; \
         ip neigh replace {node} lladdr {} dev eth0 nud permanent; \
         ip link add vx0 address {} type vxlan id {vni} dstport 4789 local {stolen} remote {node} \
         nolearning; ip link set vx0 mtu 1450 up; ip address add {from}/24 dev vx0; \
         ip neigh add {to} lladdr {} dev vx0 nud permanent",
        mac.expect("a MAC"),
        inner(from),
        inner(to),
    );
    at.exec("sh", &["-ec", &script])?.success().map(drop)
}

#[test]
fn tunnel_packets_are_refused_on_another_interface_with_an_address_and_without()
-> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    let a = h1.container("a").network("mynet").idle()?;
    let b = h2.container("b").network("mynet").idle()?;
    let own = Ipv4Addr::new(198, 51, 100, 1);
    let stranger = cluster.behind(h1, "eth1", "stranger", (own, Ipv4Addr::new(198, 51, 100, 2)))?;
    let ways = |count: u64| {
        eventually("the ways out are those of the host", std::time::Duration::from_secs(20), || {
            let entries = h1.status()?.entries;
            ensure!(entries.get("egress") == Some(&count), "{entries:?}");
            Ok(())
        })
    };
    ways(2)?;
    // The packets that may arrive through the tunnel do arrive.
    b.ping(&a.ip()?.to_string(), 1)?;
    forge(&stranger, &cluster, (&b, &a))?;
    let is_refused = || -> anyhow::Result<()> {
        let count =
            || Ok::<_, anyhow::Error>((counter(h1, "not_peer")?, counter(h1, "decapsulated")?));
        let before = count()?;
        stranger.cannot_ping(&a.ip()?.to_string())?;
        let now = count()?;
        ensure!(now.0 > before.0 && now.1 == before.1, "{before:?}, {now:?}");
        Ok(())
    };
    is_refused()?;
    h1.exec("ip", &["address", "flush", "dev", "eth1"])?.success()?;
    ways(1)?;
    h1.stop_agent()?;
    h1.start_agent()?;
    ways(1)?;
    is_refused()?;
    b.ping(&a.ip()?.to_string(), 1)
}

#[test]
fn an_endpoint_has_as_many_flows_as_it_may_and_no_more() -> anyhow::Result<()> {
    let options = Options::default().every(&["--flow-limit", "4"]);
    let Outside { cluster, containers, _servers } = outside(options)?;
    let (h1, target) = (cluster.host(1), at(cluster.client(), ECHO));
    let a = &containers[0];
    let second = h1.container("c").network("mynet").idle()?;
    a.udp_ask_many(&target, 4)?;
    a.cannot_ask(&target)?;
    assert!(counter(h1, "masquerade_limit")? > 0);
    second.udp_ask(&target)?;
    // The daemon counts live flows. Their number is the same, also after a restart of the daemon.
    h1.stop_agent()?;
    h1.start_agent()?;
    a.cannot_ask(&target)
}

#[test]
fn flows_outlive_the_daemon_and_strangers_do_not_enter_by_them() -> anyhow::Result<()> {
    let Outside { cluster, containers, _servers } = outside(Options::default())?;
    let (h1, client, a) = (cluster.host(1), cluster.client(), &containers[0]);
    let chat = a.chat(&at(client, 3306))?;
    h1.stop_agent()?;
    a.http_get(&at(client, HTTP))?;
    h1.start_agent()?;
    a.http_get(&at(client, HTTP))?;
    let report = chat.chat_report()?;
    ensure!(report.failure.is_none(), "{report:?}");

    // A port of the same range that belongs to the host itself, and a request of the same client to
    // it.
    let port = 61_234;
    let args = ["udp-echo", "--name", "own", "--host", "h1", "--port", &port.to_string()];
    let _own = h1.serve(&args)?;
    assert_eq!(client.udp_ask(&h1.port(port))?.name, "own");
    for port in 61_000..61_010 {
        client.cannot_connect(&h1.port(port))?;
    }
    Ok(())
}
