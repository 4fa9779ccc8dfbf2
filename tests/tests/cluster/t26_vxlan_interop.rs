//! Traffic with a host without overlay: a plain vxlan device of Linux with static entries (RFC
//! 7348).
//!
//! The cluster must know the peer and the addresses behind it. So the host joins, attaches a
//! container and then loses the datapath: the state still has a silent node and an endpoint there,
//! which the plain device then answers for.

use std::time::Duration;

use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, binaries, eventually, process::Process, testkit,
    wait_listening,
};

/// A container on the first host, and the second host with a plain device in its place.
struct Interop {
    container: Container,
    plain: String,
    /// Whose endpoint the plain device answers for.
    _absent: Container,
    cluster: Cluster,
}

/// Size of the transfers.
const BULK: u64 = 32 << 20;

fn mac(ip: std::net::Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn shell(host: &Host, script: &str) -> anyhow::Result<()> {
    host.exec("sh", &["-ec", script])?.success().map(drop)
}

/// `device` are further options of the plain device.
fn interop(port: u16, device: &str) -> anyhow::Result<Interop> {
    let options = Options::default().init(&["--data-path-port", &port.to_string()]);
    let cluster = Cluster::formed(2, options)?;
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
    let (here, there) = (container.ip()?, absent.ip()?);
    let script = format!(
        "ip link del ovl-vxlan; ip link add vx0 address {} type vxlan id {vni} dstport {port} local \
         {} nolearning {device}; ip link set vx0 mtu 1450 up; ip address add {there}/24 dev vx0; \
         bridge fdb append {} dev vx0 dst {}; ip neigh add {here} lladdr {} dev vx0",
        mac(there),
        theirs.address(),
        mac(here),
        ours.address(),
        mac(here),
    );
    shell(theirs, &script)?;
    Ok(Interop { container, plain: there.to_string(), _absent: absent, cluster })
}

impl Interop {
    fn exchanges_traffic(&self) -> anyhow::Result<()> {
        let Self { container, plain, cluster, .. } = self;
        let [ours, theirs] = [cluster.host(1), cluster.host(2)];
        theirs.ping(&container.ip()?.to_string(), 3)?;
        container.ping(plain, 3)?;
        // Aggregates and fragments, both ways.
        theirs.bulk_send(&container.port(9000)?, BULK)?;
        let mut receiver: Process =
            theirs.spawn(&binaries::testkit()?, &["bulk-recv", "--port", "9001"])?;
        wait_listening(&mut receiver)?;
        container.bulk_send(&format!("{plain}:9001"), BULK)?;
        let large = ["ping", plain.as_str(), "--size", "5000"];
        let pinged: overlay_tests::testkit::Pinged = container.ask(&large)?;
        assert_eq!(pinged.answered, 1);
        let counters = ours.status()?.counters;
        for reason in ["encapsulated", "decapsulated"] {
            assert!(counters.iter().any(|row| row.reason == reason && row.packets > 0), "{reason}");
        }
        Ok(())
    }
}

/// Checks that packets of the plain device on a network, whole and with a VLAN tag, are dropped and
/// counted under `reason`. Here the kernel's own device decapsulates them.
fn is_refused(interop: &Interop, vni: u32, reason: &str) -> anyhow::Result<()> {
    let Interop { container, cluster, plain, .. } = interop;
    let [ours, theirs] = [cluster.host(1), cluster.host(2)];
    let here = container.ip()?;
    let script = format!(
        "ip link add other type vxlan id {vni} dstport 4789 local {} nolearning; ip link set other mtu \
         1450 up; bridge fdb append {} dev other dst {}",
        theirs.address(),
        mac(here),
        ours.address(),
    );
    shell(theirs, &script)?;
    let counted = || -> anyhow::Result<u64> {
        let counters = ours.status()?.counters;
        Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
    };
    let kernel_decap = || -> anyhow::Result<u64> {
        let counters = ours.status()?.counters;
        Ok(counters.iter().filter(|row| row.reason == "kernel_decap").map(|row| row.packets).sum())
    };
    let before = (counted()?, kernel_decap()?);
    let (from, to) = (plain.as_str(), here.to_string());
    let tagged = ["tag-send", "--interface", "other", "--vlan", "5", "--from", from, "--to", &to];
    let _: testkit::Tagged = theirs.ask(&tagged)?;
    eventually("the tagged frame is counted", Duration::from_secs(10), || {
        let now = (counted()?, kernel_decap()?);
        anyhow::ensure!(now.0 > before.0 && now.1 > before.1, "{before:?}, {now:?}");
        Ok(())
    })?;
    let before = counted()?;
    shell(theirs, &format!("ip neigh add {to} lladdr {} dev other", mac(here)))?;
    shell(theirs, &format!("ip route replace {to} dev other"))?;
    theirs.cannot_ping(&to)?;
    assert!(counted()? > before, "a whole packet");
    shell(theirs, "ip link del other")
}

#[test]
fn a_host_of_the_cluster_sends_on_no_network_but_those_it_has_endpoints_of() -> anyhow::Result<()> {
    let interop = interop(4789, "")?;
    let ours = interop.cluster.host(1);
    ours.network_create("apart", &[])?;
    let _apart = ours.container("apart").network("apart").idle()?;
    interop.cluster.host(1).sync()?;
    let state = ours.state()?;
    let apart = state.networks.values().find(|n| n.name == "apart").expect("the network").vni;
    is_refused(&interop, apart, "not_peer")?;
    is_refused(&interop, 1_000_000, "unknown_vni")?;
    interop.exchanges_traffic()
}

#[test]
fn a_plain_vxlan_host_and_a_container_exchange_traffic() -> anyhow::Result<()> {
    interop(4789, "")?.exchanges_traffic()
}

#[test]
fn a_plain_vxlan_host_on_another_port_and_with_udp_checksums_does_as_well() -> anyhow::Result<()> {
    interop(5789, "udpcsum tos inherit ttl 3 df set")?.exchanges_traffic()
}
