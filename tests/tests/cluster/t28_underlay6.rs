//! Clusters with hosts that reach each other by IPv6: 70 bytes of outer headers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::ensure;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Shared, binaries, eventually, process::Process,
    testkit, wait_listening,
};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| formed(2, Options::default()));

/// Size of the transfers.
const BULK: u64 = 64 << 20;

fn address(number: usize) -> String {
    format!("fd00::{number}")
}

fn shell(host: &Host, script: &str) -> anyhow::Result<()> {
    host.exec("sh", &["-ec", script])?.success().map(drop)
}

/// Hosts with IPv6 addresses beside the IPv4 ones, which clients outside use.
fn hosts(count: usize, options: Options) -> anyhow::Result<Cluster> {
    let cluster = Cluster::new(count, options)?;
    for number in 1..=count {
        let add = format!("ip address add {}/64 dev eth0 nodad", address(number));
        shell(cluster.host(number), &add)?;
    }
    Ok(cluster)
}

/// The control plane is IPv4's, the data path IPv6's.
fn formed(count: usize, options: Options) -> anyhow::Result<Cluster> {
    let cluster = hosts(count, options)?;
    let data_path = |number: usize| ["--data-path-addr".to_owned(), address(number)];
    let first = cluster.host(1);
    let token = first.init(&data_path(1))?;
    for number in 2..=count {
        cluster.host(number).join(&token, first, &data_path(number))?;
    }
    first.sync()?;
    Ok(cluster)
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// A container on each host that receives transfers of both families.
fn receivers(cluster: &Cluster, network: &str) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &["--ipv6"])?;
    let receives = |number: usize, name: &str| {
        let args = ["bulk-recv", "--port", "9000", "--address", "::"];
        cluster.host(number).container(name).network(network).testkit(&args)
    };
    Ok([receives(1, "a")?, receives(2, "b")?])
}

#[test]
fn transfers_of_both_families_arrive_unaltered_both_ways() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = receivers(&cluster, "bulk")?;
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.ping(&to.ip()?.to_string(), 3)?;
        from.bulk_send(&to.port(9000)?, BULK)?;
        from.ping(&to.ip6()?.to_string(), 3)?;
        from.bulk_send(&format!("[{}]:9000", to.ip6()?), BULK)?;
    }
    for host in cluster.hosts() {
        for reason in ["encapsulated", "decapsulated"] {
            assert!(counter(host, reason)? > 0, "{reason} on {}", host.name());
        }
    }
    Ok(())
}

#[test]
fn interfaces_leave_room_for_70_bytes_and_larger_packets_arrive_in_fragments() -> anyhow::Result<()>
{
    let cluster = CLUSTER.turn()?;
    let [a, b] = receivers(&cluster, "mtu")?;
    let shown = a.exec("ip", &["-o", "link", "show", "eth0"])?.success()?.stdout;
    assert!(shown.contains("mtu 1430 "), "{shown}");
    for (target, header) in [(b.ip()?.to_string(), 28), (b.ip6()?.to_string(), 48)] {
        for size in [1430 - header, 1431 - header, 5000] {
            let ping = ["ping", &target, "--size", &size.to_string()];
            let pinged: testkit::Pinged = a.ask(&ping)?;
            assert_eq!(pinged.answered, 1, "{size} bytes to {target}");
        }
    }
    Ok(())
}

#[test]
fn datagrams_cross_alone_and_many_of_one_call() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("datagrams", &[])?;
    let a = cluster.host(1).container("a").network("datagrams").idle()?;
    let b = cluster.host(2).container("b").network("datagrams").udp_echo(7)?;
    assert_eq!(a.udp_ask(&b.port(7)?)?.client, IpAddr::V4(a.ip()?));
    let segmented: testkit::Segmented = a.ask(&["udp-segment", &b.port(7)?])?;
    assert_eq!((segmented.sent, segmented.answered), (32, 32));
    Ok(())
}

#[test]
fn datagrams_of_one_call_arrive_each_over_ipv6_as_well() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("segments", &["--ipv6"])?;
    let a = cluster.host(1).container("a").network("segments").idle()?;
    let echo = ["udp-echo", "--name", "b", "--host", "h2", "--port", "7", "--address", "::"];
    let b = cluster.host(2).container("b").network("segments").testkit(&echo)?;
    let target = format!("[{}]:7", b.ip6()?);
    let segmented: testkit::Segmented = a.ask(&["udp-segment", &target])?;
    assert_eq!((segmented.sent, segmented.answered), (32, 32));
    Ok(())
}

#[test]
fn a_sender_learns_of_a_path_that_takes_less_than_its_interface() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = receivers(&cluster, "small-path")?;
    let h1 = cluster.host(1);
    shell(h1, &format!("ip -6 route replace {} dev eth0 mtu lock 1300", address(2)))?;
    let told = counter(h1, "too_big_answered")?;
    let outcome = eventually("the sender is told", Duration::from_secs(20), || {
        if let Err(broken) = a.bulk_send(&b.port(9000)?, 8 << 20) {
            return Ok(Err(broken));
        }
        let route = a.exec("ip", &["route", "get", &b.ip()?.to_string()])?.success()?.stdout;
        ensure!(route.contains("mtu 1230"), "{route}");
        Ok(Ok(()))
    });
    let grew = counter(h1, "too_big_answered")? > told;
    shell(h1, &format!("ip -6 route del {}", address(2)))?;
    outcome??;
    assert!(grew);
    Ok(())
}

#[test]
fn a_vip_is_answered_by_backends_on_both_hosts() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("vip", &[])?;
    h1.service_create("web", &["--network", "vip", "--drain", "0s"])?;
    let here = h1.container("web.1").service("web").http(80)?;
    let there = cluster.host(2).container("web.2").service("web").http(80)?;
    let asker = h1.container("asker").network("vip").idle()?;
    cluster.settle()?;
    let answers = asker.http_get_many("web:80", 20)?;
    for name in [here.name(), there.name()] {
        assert!(answers.iter().any(|answer| answer.name == name), "{name}: {answers:?}");
    }
    let own = IpAddr::V4(asker.ip()?);
    assert!(answers.iter().all(|answer| answer.client == own), "{answers:?}");
    Ok(())
}

#[test]
fn a_published_port_sees_the_clients_address_through_every_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("outside", &[])?;
    for (service, port) in [("site", "8080:80"), ("sink", "9001:9000")] {
        h1.service_create(service, &["--network", "outside", "-p", port, "--drain", "0s"])?;
    }
    let _site = h2.container("site.1").service("site").http(80)?;
    let _sink = h2.container("sink.1").service("sink").bulk_recv(9000)?;
    cluster.settle()?;
    let client = cluster.client();
    for host in [h1, h2] {
        let answers = client.http_get_many(&host.port(8080), 5)?;
        let real = IpAddr::V4(client.address());
        assert!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
        client.bulk_send(&host.port(9001), BULK)?;
        // Requests from the host itself.
        host.http_get_many("127.0.0.1:8080", 2)?;
    }
    Ok(())
}

#[test]
fn services_are_asked_over_ipv6_by_containers_and_by_clients_outside() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("dual", &["--ipv6"])?;
    h1.service_create("web6", &["--network", "dual", "-p", "8086:80", "--drain", "0s"])?;
    let backend = |number: usize| {
        let host = cluster.host(number);
        let name = format!("web6.{number}");
        let args = ["http", "--name", &name, "--host", host.name(), "--port", "80"];
        host.container(&name).service("web6").testkit(&[&args[..], &["--address", "::"]].concat())
    };
    let _backends = [backend(1)?, backend(2)?];
    let both = BTreeSet::from(["web6.1".to_owned(), "web6.2".to_owned()]);
    let vip = h1.state()?.service("web6").and_then(|s| s.networks[0].vip6).expect("a VIP");
    let client = cluster.client();
    let outside = address(9);
    let add = ["address", "add", &format!("{outside}/64"), "dev", "eth0", "nodad"];
    client.exec("ip", &add)?.success()?;
    for number in [1, 2] {
        let asker = cluster.host(number).container(&format!("asker-{number}"));
        let asker = asker.network("dual").idle()?;
        let answers = asker.http_get_many(&format!("[{vip}]:80"), 12)?;
        assert_eq!(answers.into_iter().map(|a| a.name).collect::<BTreeSet<_>>(), both);
        let answers = client.http_get_many(&format!("[{}]:8086", address(number)), 12)?;
        let real: IpAddr = outside.parse()?;
        assert!(answers.iter().all(|answer| answer.client == real), "{answers:?}");
        assert_eq!(answers.into_iter().map(|a| a.name).collect::<BTreeSet<_>>(), both);
    }
    Ok(())
}

#[test]
fn a_datagram_to_a_group_is_heard_on_the_other_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("group", &["--opt", "multicast=replicate"])?;
    let asker = h1.container("asker").network("group").idle()?;
    let group = "239.129.1.2";
    let args = ["udp-echo", "--name", "far", "--host", "h2", "--port", "5000", "--group", group];
    let _far = cluster.host(2).container("far").network("group").testkit(&args)?;
    cluster.settle()?;
    let heard = asker.group_ask(&format!("{group}:5000"), &["far"], 10)?;
    assert_eq!(heard.answers, BTreeMap::from([("far".to_owned(), 10)]));
    Ok(())
}

#[test]
fn addresses_of_the_data_path_are_shown_and_one_of_the_other_family_is_refused()
-> anyhow::Result<()> {
    let cluster = hosts(3, Options::default())?;
    let [h1, h2, h3] = [1, 2, 3].map(|number| cluster.host(number));
    let data_path = |number: usize| ["--data-path-addr".to_owned(), address(number)];
    let token = h1.init(&data_path(1))?;
    h2.join(&token, h1, &data_path(2))?;
    h1.sync()?;
    h1.network_create("shown", &[])?;
    let _a = h1.container("a").network("shown").idle()?;
    let _b = h2.container("b").network("shown").idle()?;
    cluster.host(1).sync()?;
    for (args, shown) in [
        (&["bpf", "peers"][..], address(2)),
        (&["node", "ls"], address(2)),
        (&["status"], address(1)),
        (&["network", "inspect", "shown"], address(2)),
        (&["node", "inspect", "h2"], address(2)),
    ] {
        let output = h1.overlay(args)?.stdout;
        assert!(output.contains(&shown), "{args:?}: {output}");
    }
    let manager = h1.address().to_string();
    let join = ["join", "--token", &token, &manager, "--name", "h3"];
    h3.refuses(&join, &["IPv4", "IPv6", "--data-path-addr"])?;
    Ok(())
}

/// Managers and data path over IPv6, on hosts with one option for both.
#[test]
fn a_cluster_forms_over_ipv6_alone() -> anyhow::Result<()> {
    let cluster = hosts(2, Options::default())?;
    let [h1, h2] = [1, 2].map(|number| cluster.host(number));
    for host in [h1, h2] {
        shell(host, &format!("ip address del {}/24 dev eth0", host.address()))?;
    }
    let init = h1.overlay(&["init", "--advertise-addr", &address(1), "--name", "h1"])?.stdout;
    let mut words = init.split_whitespace();
    words.find(|word| *word == "--token");
    let token = words.next().unwrap_or_default();
    let manager = format!("[{}]:2377", address(1));
    assert!(init.contains(&manager), "{init}");
    h2.overlay(&["join", "--token", token, &manager, "--name", "h2"])?;
    h1.sync()?;
    let [a, b] = receivers(&cluster, "alone")?;
    a.ping(&b.ip()?.to_string(), 3)?;
    b.bulk_send(&a.port(9000)?, BULK).map(drop)
}

/// Like `cluster_26_vxlan_interop` over IPv4.
#[test]
fn a_plain_vxlan_host_and_a_container_exchange_traffic_over_ipv6() -> anyhow::Result<()> {
    let cluster = formed(2, Options::default())?;
    let [ours, theirs] = [cluster.host(1), cluster.host(2)];
    ours.network_create("interop", &[])?;
    let container = ours.container("ours").network("interop").bulk_recv(9000)?;
    let absent = theirs.container("theirs").network("interop").idle()?;
    cluster.settle()?;
    let state = ours.state()?;
    let network = state.networks.values().find(|n| n.name == "interop");
    let vni = network.expect("the network just made").vni;
    theirs.kill_agent()?;
    theirs.overlay(&["datapath", "unload"])?;
    let mac = |ip: std::net::Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    };
    let (here, there) = (container.ip()?, absent.ip()?);
    let script = format!(
        "ip link del ovl-vxlan; ip link add vx0 address {} type vxlan id {vni} dstport 4789 local {} \
         nolearning udp6zerocsumrx udp6zerocsumtx; ip link set vx0 mtu 1430 up; ip address add \
         {there}/24 dev vx0; bridge fdb append {} dev vx0 dst {}; ip neigh add {here} lladdr {} dev \
         vx0",
        mac(there),
        address(2),
        mac(here),
        address(1),
        mac(here),
    );
    shell(theirs, &script)?;
    theirs.ping(&here.to_string(), 3)?;
    container.ping(&there.to_string(), 3)?;
    theirs.bulk_send(&container.port(9000)?, BULK)?;
    let mut receiver: Process =
        theirs.spawn(&binaries::testkit()?, &["bulk-recv", "--port", "9001"])?;
    wait_listening(&mut receiver)?;
    container.bulk_send(&format!("{there}:9001"), BULK).map(drop)
}
