//! Containers on networks: allowed and forbidden paths between them.

use anyhow::Context as _;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Shared, of_both_families, rig::Family,
};

of_both_families! {
    containers_on_one_host_reach_each_other,
    containers_on_two_hosts_reach_each_other,
    the_gateway_answers_pings_on_every_host,
    a_ping_larger_than_the_mtu_arrives_in_fragments,
    a_transfer_between_containers_of_one_host_arrives_unaltered_both_ways,
    a_transfer_between_containers_of_two_hosts_arrives_unaltered_both_ways,
    containers_of_another_network_are_out_of_reach_on_the_same_and_on_other_hosts,
}

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(3, Options::default()));

/// Size of the transfers.
const BULK: u64 = 192 << 20;

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// Makes a network for a test of a family, and returns its name.
fn network(cluster: &Cluster, family: Family, name: &str) -> anyhow::Result<String> {
    let (name, args): (_, &[&str]) = match family {
        Family::Ipv4 => (name.to_owned(), &[]),
        Family::Ipv6 => (format!("{name}-6"), &["--ipv6"]),
    };
    cluster.host(1).network_create(&name, args)?;
    Ok(name)
}

/// `a` serves UDP and `b` HTTP, on the two hosts.
fn pair(
    cluster: &Cluster,
    family: Family,
    name: &str,
    hosts: [usize; 2],
) -> anyhow::Result<[Container; 2]> {
    let network = network(cluster, family, name)?;
    let [a, b] = hosts.map(|number| cluster.host(number));
    Ok([
        a.container("a").network(&network).family(family).udp_echo(7)?,
        b.container("b").network(&network).family(family).http(8080)?,
    ])
}

/// Over a family and, if that is IPv6, over IPv4 beside it.
fn reach_each_other(family: Family, a: &Container, b: &Container) -> anyhow::Result<()> {
    let beside = if family == Family::Ipv6 { &Family::BOTH[..] } else { &[Family::Ipv4] };
    for family in beside.iter().copied() {
        a.ping(&b.ip_of(family)?.to_string(), 3)?;
        b.ping(&a.ip_of(family)?.to_string(), 3)?;
        let answer = a.http_get(&b.port_of(family, 8080)?)?;
        assert_eq!((answer.name.as_str(), answer.client), ("b", a.ip_of(family)?));
        let answer = b.udp_ask(&a.port_of(family, 7)?)?;
        assert_eq!((answer.name.as_str(), answer.client), ("a", b.ip_of(family)?));
    }
    Ok(())
}

fn containers_on_one_host_reach_each_other(family: Family) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, family, "one-host", [2, 2])?;
    reach_each_other(family, &a, &b)?;
    let answered = if family == Family::Ipv6 { "nd_answered" } else { "arp_answered" };
    assert!(counter(cluster.host(2), answered)? > 0);
    Ok(())
}

fn containers_on_two_hosts_reach_each_other(family: Family) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, family, "two-hosts", [1, 3])?;
    reach_each_other(family, &a, &b)?;
    assert!(counter(cluster.host(1), "encapsulated")? > 0);
    assert!(counter(cluster.host(3), "decapsulated")? > 0);
    Ok(())
}

#[test]
fn an_interface_has_the_mac_of_its_address_and_an_mtu_that_fits_the_tunnel() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("shape", &[])?;
    let a = cluster.host(2).container("a").network("shape").idle()?;
    let shown = a.exec("ip", &["link", "show", "eth0"])?.success()?.stdout;
    let [w, x, y, z] = a.ip()?.octets();
    let mac = format!("02:42:{w:02x}:{x:02x}:{y:02x}:{z:02x}");
    assert!(shown.contains(&mac) && shown.contains("mtu 1450"), "{shown}");
    let route = a.exec("ip", &["route", "show", "default"])?.success()?.stdout;
    assert!(route.contains("dev eth0"), "{route}");
    Ok(())
}

#[test]
fn an_mtu_of_the_networks_own_is_used() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let option = ["--opt", "com.docker.network.driver.mtu=1300"];
    cluster.host(1).network_create("small-mtu", &option)?;
    let a = cluster.host(1).container("a").network("small-mtu").idle()?;
    let b = cluster.host(2).container("b").network("small-mtu").bulk_recv(9000)?;
    let shown = a.exec("ip", &["link", "show", "eth0"])?.success()?.stdout;
    assert!(shown.contains("mtu 1300"), "{shown}");
    a.bulk_send(&b.port(9000)?, 8 << 20)?;
    Ok(())
}

fn the_gateway_answers_pings_on_every_host(family: Family) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let network = network(&cluster, family, "gateways")?;
    for host in cluster.hosts() {
        let a = host.container(&format!("on-{}", host.name())).network(&network).idle()?;
        let interface = &a.attached().context("it is attached")?.interfaces[0];
        let gateway = match family {
            Family::Ipv4 => interface.gateway.map(|gateway| gateway.to_string()),
            Family::Ipv6 => interface.gateway6.map(|gateway| gateway.to_string()),
        };
        a.ping(&gateway.context("a gateway")?, 2)?;
    }
    Ok(())
}

fn a_ping_larger_than_the_mtu_arrives_in_fragments(family: Family) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, family, "fragments", [1, 2])?;
    let ping = ["ping", &b.ip_of(family)?.to_string(), "--size", "4000", "--count", "2"];
    let pinged: overlay_tests::testkit::Pinged = a.ask(&ping)?;
    assert_eq!(pinged.answered, 2);
    Ok(())
}

fn a_transfer_between_containers_of_one_host_arrives_unaltered_both_ways(
    family: Family,
) -> anyhow::Result<()> {
    transfer_both_ways(family, "bulk-one-host", [2, 2])
}

fn a_transfer_between_containers_of_two_hosts_arrives_unaltered_both_ways(
    family: Family,
) -> anyhow::Result<()> {
    transfer_both_ways(family, "bulk-two-hosts", [1, 2])
}

fn transfer_both_ways(family: Family, name: &str, hosts: [usize; 2]) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let network = network(&cluster, family, name)?;
    let receiver = |name: &str, number: usize| {
        cluster.host(number).container(name).network(&network).family(family).bulk_recv(9000)
    };
    let (a, b) = (receiver("a", hosts[0])?, receiver("b", hosts[1])?);
    let (to_a, to_b) = (a.port_of(family, 9000)?, b.port_of(family, 9000)?);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| a.bulk_send(&to_b, BULK));
        b.bulk_send(&to_a, BULK)?;
        sending.join().expect("the thread of the other direction")?;
        Ok(())
    })
}

fn containers_of_another_network_are_out_of_reach_on_the_same_and_on_other_hosts(
    family: Family,
) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, family, "ours", [1, 2])?;
    let theirs = network(&cluster, family, "theirs")?;
    for number in [1, 2, 3] {
        let host = cluster.host(number);
        let stranger = host.container("stranger").network(&theirs).idle()?;
        stranger.cannot_connect(&b.port_of(family, 8080)?)?;
        stranger.cannot_ask(&a.port_of(family, 7)?)?;
        stranger.cannot_ping(&a.ip_of(family)?.to_string())?;
        stranger.cannot_ping(&b.ip_of(family)?.to_string())?;
        stranger.stop()?;
    }
    // The other way round nothing got lost.
    reach_each_other(family, &a, &b)
}

#[test]
fn containers_are_out_of_reach_from_outside_the_cluster() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [_a, b] = pair(&cluster, Family::Ipv4, "inside", [1, 2])?;
    let client = cluster.client();
    // A client that tries to route into the network through a host.
    client.exec("ip", &["route", "replace", "10.0.0.0/8", "via", "172.16.1.11"])?.success()?;
    client.cannot_connect(&b.port(8080)?)?;
    client.cannot_ping(&b.ip()?.to_string())?;
    client.exec("ip", &["route", "del", "10.0.0.0/8"])?.success()?;
    Ok(())
}

#[test]
fn a_container_cannot_send_as_another() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, Family::Ipv4, "honest", [1, 2])?;
    let (own, target) = (a.ip()?.to_string(), b.ip()?.to_string());
    let [w, x, y, _] = a.ip()?.octets();
    let false_ip = format!("{w}.{x}.{y}.200");
    let before = counter(cluster.host(1), "spoofed_source")?;
    a.exec("ip", &["address", "add", &format!("{false_ip}/32"), "dev", "eth0"])?.success()?;
    a.exec("ip", &["route", "replace", &target, "dev", "eth0", "src", &false_ip])?.success()?;
    a.cannot_ping(&target)?;
    assert!(counter(cluster.host(1), "spoofed_source")? > before);
    // With its own address restored it reaches the other container.
    a.exec("ip", &["route", "replace", &target, "dev", "eth0", "src", &own])?.success()?;
    a.ping(&target, 1)
}

#[test]
fn a_fixed_address_is_given_and_an_address_rests_after_use() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("fixed", &["--subnet", "10.77.0.0/24"])?;
    let a = h1.container("a").network("fixed").option("--ip", "10.77.0.77").idle()?;
    assert_eq!(a.ip()?.to_string(), "10.77.0.77");
    let b = h1.container("b").network("fixed").idle()?;
    let first = b.ip()?;
    b.stop()?;
    let c = h1.container("c").network("fixed").idle()?;
    assert_ne!(c.ip()?, first, "a freed address rests");
    a.ping(&c.ip()?.to_string(), 1)
}

#[test]
fn a_container_on_two_networks_reaches_both_and_joins_neither_to_the_other() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("left", &[])?;
    h1.network_create("right", &[])?;
    let both = cluster.host(2).container("both").network("left").network("right").http(80)?;
    let left = cluster.host(1).container("left").network("left").http(80)?;
    let right = cluster.host(3).container("right").network("right").http(80)?;
    assert_eq!(
        both.http_get(&left.port(80)?)?.client,
        both.ip_on(0)?.to_string().parse::<std::net::IpAddr>()?
    );
    assert_eq!(both.http_get(&right.port(80)?)?.name, "right");
    assert_eq!(left.http_get(&both.port(80)?)?.name, "both");
    assert_eq!(right.http_get(&format!("{}:80", both.ip_on(1)?))?.name, "both");
    left.cannot_connect(&right.port(80)?)?;
    right.cannot_connect(&left.port(80)?)
}

#[test]
fn an_internal_network_has_no_way_out() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("internal", &["--internal"])?;
    let a = cluster.host(1).container("a").network("internal").idle()?;
    let b = cluster.host(2).container("b").network("internal").idle()?;
    a.ping(&b.ip()?.to_string(), 1)?;
    let routes = a.exec("ip", &["route"])?.success()?.stdout;
    assert!(!routes.contains("default"), "{routes}");
    a.cannot_ping("172.16.1.100")
}

#[test]
fn a_network_in_use_is_not_removed_and_then_it_is() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("used", &[])?;
    let a = cluster.host(2).container("in-use").network("used").idle()?;
    h1.refuses(&["network", "rm", "used"], &["used", "in-use"])?;
    a.stop()?;
    h1.overlay(&["network", "rm", "used"])?;
    h1.network_create("used", &[])?;
    Ok(())
}

#[test]
fn a_node_holds_a_networks_state_only_while_it_has_endpoints_there() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("lazy", &[])?;
    let networks = |host: &Host| -> anyhow::Result<u64> {
        Ok(host.status()?.entries.get("networks").copied().unwrap_or_default())
    };
    let h3 = cluster.host(3);
    let before = networks(h3)?;
    let elsewhere = cluster.host(1).container("elsewhere").network("lazy").idle()?;
    assert_eq!(networks(h3)?, before);
    let here = h3.container("here").network("lazy").idle()?;
    assert_eq!(networks(h3)?, before + 1);
    here.ping(&elsewhere.ip()?.to_string(), 1)?;
    here.stop()?;
    cluster.settle()?;
    assert_eq!(networks(h3)?, before);
    Ok(())
}
