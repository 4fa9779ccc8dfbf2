//! Containers on networks: who reaches whom, and who must not.

use anyhow::Context as _;
use overlay_tests::{Cluster, Container, Host, Options, Place as _, Shared};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(3, Options::default()));

/// Size of the transfers.
const BULK: u64 = 192 << 20;

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

fn pair(cluster: &Cluster, network: &str, hosts: [usize; 2]) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &[])?;
    let [a, b] = hosts.map(|number| cluster.host(number));
    Ok([
        a.container("a").network(network).udp_echo(7)?,
        b.container("b").network(network).http(8080)?,
    ])
}

fn reach_each_other(a: &Container, b: &Container) -> anyhow::Result<()> {
    a.ping(&b.ip()?.to_string(), 3)?;
    b.ping(&a.ip()?.to_string(), 3)?;
    let answer = a.http_get(&b.port(8080)?)?;
    assert_eq!((answer.name.as_str(), answer.client), ("b", a.ip()?.into()));
    let answer = b.udp_ask(&a.port(7)?)?;
    assert_eq!((answer.name.as_str(), answer.client), ("a", b.ip()?.into()));
    Ok(())
}

#[test]
fn containers_on_one_host_reach_each_other() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "one-host", [2, 2])?;
    reach_each_other(&a, &b)
}

#[test]
fn containers_on_two_hosts_reach_each_other() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "two-hosts", [1, 3])?;
    reach_each_other(&a, &b)?;
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

#[test]
fn the_gateway_answers_pings_on_every_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("gateways", &[])?;
    for host in cluster.hosts() {
        let a = host.container(&format!("on-{}", host.name())).network("gateways").idle()?;
        let gateway = a.attached().and_then(|c| c.interfaces[0].gateway).context("a gateway")?;
        a.ping(&gateway.to_string(), 2)?;
    }
    Ok(())
}

#[test]
fn a_ping_larger_than_the_mtu_arrives_in_fragments() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "fragments", [1, 2])?;
    let ping = ["ping", &b.ip()?.to_string(), "--size", "4000", "--count", "2"];
    let pinged: overlay_tests::testkit::Pinged = a.ask(&ping)?;
    assert_eq!(pinged.answered, 2);
    Ok(())
}

#[test]
fn a_transfer_between_containers_of_one_host_arrives_unaltered_both_ways() -> anyhow::Result<()> {
    transfer_both_ways("bulk-one-host", [2, 2])
}

#[test]
fn a_transfer_between_containers_of_two_hosts_arrives_unaltered_both_ways() -> anyhow::Result<()> {
    transfer_both_ways("bulk-two-hosts", [1, 2])
}

fn transfer_both_ways(network: &str, hosts: [usize; 2]) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create(network, &[])?;
    let a = cluster.host(hosts[0]).container("a").network(network).bulk_recv(9000)?;
    let b = cluster.host(hosts[1]).container("b").network(network).bulk_recv(9000)?;
    let (to_a, to_b) = (a.port(9000)?, b.port(9000)?);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| a.bulk_send(&to_b, BULK));
        b.bulk_send(&to_a, BULK)?;
        sending.join().expect("the thread of the other direction")?;
        Ok(())
    })
}

#[test]
fn containers_of_another_network_are_out_of_reach_on_the_same_and_on_other_hosts()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "ours", [1, 2])?;
    cluster.host(1).network_create("theirs", &[])?;
    for number in [1, 2, 3] {
        let host = cluster.host(number);
        let stranger = host.container("stranger").network("theirs").idle()?;
        stranger.cannot_connect(&b.port(8080)?)?;
        stranger.cannot_ask(&a.port(7)?)?;
        stranger.cannot_ping(&a.ip()?.to_string())?;
        stranger.cannot_ping(&b.ip()?.to_string())?;
        stranger.stop()?;
    }
    // The other way round nothing got lost.
    reach_each_other(&a, &b)
}

#[test]
fn containers_are_out_of_reach_from_outside_the_cluster() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [_a, b] = pair(&cluster, "inside", [1, 2])?;
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
    let [a, b] = pair(&cluster, "honest", [1, 2])?;
    let (own, target) = (a.ip()?.to_string(), b.ip()?.to_string());
    let [w, x, y, _] = a.ip()?.octets();
    let false_ip = format!("{w}.{x}.{y}.200");
    let before = counter(cluster.host(1), "spoofed_source")?;
    a.exec("ip", &["address", "add", &format!("{false_ip}/32"), "dev", "eth0"])?.success()?;
    a.exec("ip", &["route", "replace", &target, "dev", "eth0", "src", &false_ip])?.success()?;
    a.cannot_ping(&target)?;
    assert!(counter(cluster.host(1), "spoofed_source")? > before);
    // With its own address again it reaches the other.
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
