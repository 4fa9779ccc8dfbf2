//! Traffic with a host that runs nothing of ours: a plain vxlan device of Linux with static entries
//! (RFC 7348).
//!
//! The cluster must know the peer and the addresses behind it, so the host joins, attaches a
//! container and then loses the datapath: what is left of it in the state is a node that is silent
//! and an endpoint there, which the plain device then answers for.

use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, binaries, process::Process, wait_listening,
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

#[test]
fn a_plain_vxlan_host_and_a_container_exchange_traffic() -> anyhow::Result<()> {
    interop(4789, "")?.exchanges_traffic()
}

#[test]
fn a_plain_vxlan_host_on_another_port_and_with_udp_checksums_does_as_well() -> anyhow::Result<()> {
    interop(5789, "udpcsum tos inherit ttl 3 df set")?.exchanges_traffic()
}
