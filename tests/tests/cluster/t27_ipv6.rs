//! Dual-stack networks: IPv6 beside IPv4, with the same isolation.

use std::time::Duration;

use anyhow::Context as _;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Shared, eventually,
    testkit::{Resolved, Segmented},
};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(3, Options::default()));

/// Size of the transfers.
const BULK: u64 = 192 << 20;

const NOERROR: &str = "No Error";

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// A server of the testkit in a container, on both families.
fn serves(host: &Host, name: &str, network: &str, kind: &str) -> anyhow::Result<Container> {
    let args = [kind, "--name", name, "--host", host.name(), "--port", "80", "--address", "::"];
    host.container(name).network(network).testkit(&args)
}

fn receives(host: &Host, name: &str, network: &str) -> anyhow::Result<Container> {
    let args = ["bulk-recv", "--port", "9000", "--address", "::"];
    host.container(name).network(network).testkit(&args)
}

fn port(container: &Container, port: u16) -> anyhow::Result<String> {
    Ok(format!("[{}]:{port}", container.ip6()?))
}

/// `a` serves UDP and `b` HTTP, on the two hosts.
fn pair(cluster: &Cluster, network: &str, hosts: [usize; 2]) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &["--ipv6"])?;
    let [a, b] = hosts.map(|number| cluster.host(number));
    Ok([serves(a, "a", network, "udp-echo")?, serves(b, "b", network, "http")?])
}

#[test]
fn an_interface_has_both_addresses_at_once_and_default_routes_through_the_gateways()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("shape", &["--ipv6", "--subnet", "fd00:77::/64"])?;
    let a = cluster.host(2).container("a").network("shape").idle()?;
    assert_eq!(a.ip6()?.to_string(), "fd00:77::2");
    let shown = a.exec("ip", &["-6", "-o", "address", "show", "dev", "eth0"])?.success()?.stdout;
    let global =
        shown.lines().find(|line| line.contains("fd00:77::2/64")).context("its address")?;
    assert!(!global.contains("tentative"), "{shown}");
    let route = a.exec("ip", &["-6", "route", "show", "default"])?.success()?.stdout;
    assert!(route.contains("via fd00:77::1 dev eth0"), "{route}");
    let fixed = h1.container("fixed").network("shape").option("--ip", "fd00:77::77").idle()?;
    assert_eq!(fixed.ip6()?.to_string(), "fd00:77::77");
    a.ping("fd00:77::77", 1)?;
    let listed = h1.overlay(&["endpoint", "ls", "--network", "shape"])?.stdout;
    assert!(listed.contains("fd00:77::77"), "{listed}");
    Ok(())
}

#[test]
fn inspect_shows_both_pools_and_both_addresses() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let subnets = ["--ipv6", "--subnet", "10.78.0.0/24", "--subnet", "fd00:78::/64"];
    h1.network_create("shown", &subnets)?;
    let _a = h1.container("a").network("shown").idle()?;
    let shown = h1.overlay(&["network", "inspect", "shown"])?.stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    assert_eq!(shown[0]["EnableIPv6"], true);
    let pools = shown[0]["IPAM"]["Config"].as_array().context("a list")?;
    assert_eq!(
        (&pools[0]["Subnet"], &pools[1]["Subnet"]),
        (&"10.78.0.0/24".into(), &"fd00:78::/64".into())
    );
    assert_eq!(pools[1]["Gateway"], "fd00:78::1");
    let containers = shown[0]["Containers"].as_object().context("an object")?;
    let a = containers.values().next().context("a container")?;
    assert_eq!(a["IPv6Address"], "fd00:78::2/64");
    Ok(())
}

/// Limits the path between the first two hosts to `mtu` bytes, or lifts the limit.
fn path(cluster: &Cluster, mtu: Option<u32>) -> anyhow::Result<()> {
    for (host, other) in [(1, 2), (2, 1)] {
        let to = cluster.host(other).address();
        let script = match mtu {
            Some(mtu) => format!("ip route replace {to} dev eth0 mtu lock {mtu}"),
            None => format!("ip route del {to}"),
        };
        cluster.host(host).exec("sh", &["-ec", &script])?.success()?;
    }
    Ok(())
}

/// Both senders learn the MTU of the path, and everything arrives.
fn path_is_found_out(network: &str, mtu: u32) -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create(network, &["--ipv6"])?;
    let a = receives(h1, "a", network)?;
    let b = receives(cluster.host(2), "b", network)?;
    path(&cluster, Some(mtu))?;
    let outcome = (|| {
        let before = counter(h1, "too_big_answered")?;
        // The programs may remember the path before for a moment.
        eventually("the sender is told", Duration::from_secs(20), || {
            if let Err(broken) = a.bulk_send(&port(&b, 9000)?, 8 << 20) {
                return Ok(Err(broken));
            }
            anyhow::ensure!(counter(h1, "too_big_answered")? > before, "it is not yet");
            Ok(Ok(()))
        })??;
        b.bulk_send(&port(&a, 9000)?, BULK)?;
        let ping = ["ping", &b.ip6()?.to_string(), "--size", "1400", "--count", "2"];
        // TCP sends segments as small as the other end requests, so `b` gets an error about its
        // first answer.
        let told = |pinged: &overlay_tests::testkit::Pinged| pinged.answered == 2;
        let [first, second] = [a.ask(&ping)?, a.ask(&ping)?];
        anyhow::ensure!(told(&second), "in fragments as large as was told: {first:?}, {second:?}");
        Ok(())
    })();
    path(&cluster, None)?;
    outcome
}

#[test]
fn a_path_that_is_smaller_than_the_interfaces_is_found_out_over_ipv6() -> anyhow::Result<()> {
    path_is_found_out("smaller", 1400)
}

/// Of 1300 bytes 1250 are left, and IPv6 requires 1280 on every link: the outer packet is
/// fragmented.
#[test]
fn a_path_that_leaves_ipv6_less_than_its_least_mtu_carries_it_in_fragments() -> anyhow::Result<()> {
    let before = {
        let cluster = CLUSTER.turn()?;
        counter(cluster.host(1), "kernel_encap")?
    };
    path_is_found_out("smallest", 1300)?;
    let cluster = CLUSTER.turn()?;
    assert!(counter(cluster.host(1), "kernel_encap")? > before);
    Ok(())
}

#[test]
fn datagrams_of_one_call_arrive_each_over_ipv6() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [echo, a] = pair(&cluster, "segments", [2, 1])?;
    let segmented: Segmented = a.ask(&["udp-segment", &port(&echo, 80)?])?;
    assert_eq!((segmented.sent, segmented.answered), (32, 32));
    Ok(())
}

#[test]
fn link_local_addresses_reach_across_hosts() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "link-local", [1, 2])?;
    let shown = b.exec("ip", &["-6", "-o", "address", "show", "dev", "eth0"])?.success()?.stdout;
    let local = shown.split_whitespace().find(|word| word.starts_with("fe80::"));
    let local = local.and_then(|word| word.split('/').next()).context("a link-local address")?;
    let link = a.exec("ip", &["-o", "link", "show", "eth0"])?.success()?.stdout;
    let (scope, _) = link.split_once(':').context("an index")?;
    a.ping(&format!("[{local}%{scope}]"), 2)
}

#[test]
fn a_container_cannot_send_ipv6_as_another_nor_claim_anothers_address() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "honest", [1, 2])?;
    let h1 = cluster.host(1);
    let target = b.ip6()?.to_string();
    let [p, q, r, s, ..] = a.ip6()?.segments();
    let false_ip = format!("{p:x}:{q:x}:{r:x}:{s:x}::200");
    let before = counter(h1, "spoofed_source")?;
    let add = ["-6", "address", "add", &format!("{false_ip}/128"), "dev", "eth0", "nodad"];
    a.exec("ip", &add)?.success()?;
    let route = ["-6", "route", "replace", &target, "dev", "eth0", "src", &false_ip];
    a.exec("ip", &route)?.success()?;
    a.cannot_ping(&target)?;
    assert!(counter(h1, "spoofed_source")? > before);
    // Duplicate address detection finds the address of another endpoint in use.
    let taken = ["-6", "address", "add", &format!("{target}/128"), "dev", "eth0"];
    a.exec("sysctl", &["-q", "-w", "net.ipv6.conf.eth0.accept_dad=1"])?.success()?;
    a.exec("ip", &taken)?.success()?;
    eventually("the duplicate is found out", Duration::from_secs(20), || {
        let shown = a.exec("ip", &["-6", "address", "show", "dev", "eth0"])?.stdout;
        anyhow::ensure!(shown.contains("dadfailed"), "{shown}");
        Ok(())
    })?;
    a.exec("ip", &["-6", "address", "del", &format!("{target}/128"), "dev", "eth0"])?.success()?;
    let own = a.ip6()?.to_string();
    let back = ["-6", "route", "replace", &target, "dev", "eth0", "src", &own];
    a.exec("ip", &back)?.success()?;
    a.ping(&target, 1)
}

#[test]
fn names_have_ipv6_addresses_on_dual_stack_networks_alone() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("names", &["--ipv6"])?;
    h1.network_create("single", &[])?;
    h1.service_create("web", &["--network", "names", "--drain", "0s"])?;
    h1.service_create("old", &["--network", "single", "--drain", "0s"])?;
    let asker = h1.container("asker").network("names").network("single").idle()?;
    let db = cluster.host(2).container("db").network("names").idle()?;
    let _plain = cluster.host(2).container("plain").network("single").idle()?;
    let task = cluster.host(3).container("web.1").service("web").idle()?;
    let aaaa = |name: &str| -> anyhow::Result<Resolved> {
        asker.ask(&["resolve", name, "--kind", "AAAA"])
    };
    assert_eq!(aaaa("db")?.addresses, [db.ip6()?]);
    assert_eq!(aaaa("tasks.web")?.addresses, [task.ip6()?]);
    for known in ["old", "plain"] {
        let answer = aaaa(known)?;
        assert_eq!((answer.code.as_str(), answer.addresses.len()), (NOERROR, 0), "{known}");
    }
    let shown: serde_json::Value =
        serde_json::from_str(&h1.overlay(&["service", "inspect", "web"])?.stdout)?;
    let vip = shown[0]["Endpoint"]["VirtualIPs"][1]["Addr"].as_str().context("an IPv6 VIP")?;
    let (vip, prefix) = vip.split_once('/').context("a prefix length")?;
    assert_eq!(prefix, "64");
    assert_eq!(aaaa("web")?.addresses, [vip.parse::<std::net::IpAddr>()?]);
    let db_ip6 = db.ip6()?.to_string();
    for (address, name) in [(db_ip6.as_str(), "db.names"), (vip, "web.names")] {
        let reverse: Resolved = asker.ask(&["resolve", address, "--kind", "PTR"])?;
        assert_eq!(reverse.names, [name]);
    }
    Ok(())
}

#[test]
fn a_network_of_ipv4_alone_carries_no_ipv6() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("plain", &[])?;
    let a = h1.container("a").network("plain").idle()?;
    let b = cluster.host(2).container("b").network("plain").idle()?;
    assert!(a.ip6().is_err());
    for (container, address) in [(&a, "fd00:99::1/64"), (&b, "fd00:99::2/64")] {
        let add = ["-6", "address", "add", address, "dev", "eth0", "nodad"];
        container.exec("ip", &add)?.success()?;
    }
    a.cannot_ping("fd00:99::2")?;
    a.ping(&b.ip()?.to_string(), 1)
}
