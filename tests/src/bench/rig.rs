//! Two hosts, and a pair of places on each of the three paths between them.
//!
//! Two links join the hosts. One belongs to overlay. The other carries the subjects that overlay is
//! compared with, so that overlay's program on its own link does not disturb them.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{pin::Placement, report::Subject};
use crate::{
    Cluster, Container, Options, Place,
    cleanup::Instance,
    netns,
    place::wait_listening,
    process::{self, Process},
};

/// VNI of the kernel's vxlan devices.
pub const KERNEL_VNI: u32 = 42;
/// Their port: 4789 is overlay's on these hosts.
pub const KERNEL_PORT: u16 = 4790;
/// Overlay's port.
pub const OVERLAY_PORT: u16 = 4789;
const NETWORK: &str = "bench";

/// A namespace to run programs in.
#[derive(Clone, Debug)]
pub struct Spot {
    name: String,
    tag: String,
    enter: Vec<String>,
    logs: PathBuf,
}

impl Spot {
    /// That of a place.
    pub fn of(place: &impl Place) -> Self {
        Self {
            name: place.name().to_owned(),
            tag: place.tag().to_owned(),
            enter: place.enter(),
            logs: place.logs().to_owned(),
        }
    }

    /// A namespace of an instance's, which is called by its own name.
    pub fn at(instance: &Instance, namespace: String) -> Self {
        Self {
            name: namespace.clone(),
            enter: vec![format!("--net={}", netns::path(&namespace).display())],
            tag: namespace,
            logs: instance.dir.clone(),
        }
    }
}

impl Place for Spot {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.tag
    }

    fn enter(&self) -> Vec<String> {
        self.enter.clone()
    }

    fn logs(&self) -> &Path {
        &self.logs
    }
}

/// One way between the hosts.
#[derive(Clone, Debug)]
pub struct Way {
    /// The origin of requests: on host 2.
    pub client: Spot,
    /// The destination of requests: on host 1.
    pub server: Spot,
    /// Their addresses.
    pub addresses: (Ipv4Addr, Ipv4Addr),
    /// The interface of the hosts that its packets cross.
    pub link: &'static str,
    /// The interface of the server, and of the client.
    pub interface: &'static str,
    /// The interface that the client's packets come out of, which is the other end of its own, and
    /// its place.
    pub behind: (Spot, String),
}

/// The hosts and everything on them.
#[derive(Debug)]
pub struct Rig {
    ways: [Way; 3],
    vni: u32,
    server_link: String,
    _servers: Vec<Process>,
    _containers: [Container; 2],
    cluster: Cluster,
}

fn tool(program: &str, line: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(line.split_whitespace());
    process::run(command)?.success().map(drop)
}

/// Runs a line as a command of ip(8).
///
/// # Errors
/// The error of ip(8).
pub fn ip(line: &str) -> anyhow::Result<()> {
    tool("ip", line)
}

/// MAC of the container of `number` behind the kernel's vxlan device.
pub fn kernel_mac(number: u8) -> [u8; 6] {
    [0x02, 0x42, 10, 99, 0, number]
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Rig {
    /// Builds it and starts the servers.
    ///
    /// # Errors
    /// The process is not root, or the kernel or a tool reports an error. Everything is removed
    /// then.
    pub fn new(placement: Placement) -> anyhow::Result<Self> {
        let cluster = Cluster::new(2, Options::default())?;
        let [host1, host2] = [1, 2].map(|n| cluster.host(n).tag().to_owned());
        // The harness joins hosts by a switch. A plain link between them adds no cost of its own.
        ip(&format!("-n {host1} link del eth0"))?;
        ip(&format!("-n {host2} link del eth0"))?;
        wire(&host1, &host2, "eth0", "172.16.1")?;
        wire(&host1, &host2, "eth1", "172.16.2")?;
        cluster.form()?;
        let host = cluster.host(1);
        host.network_create(NETWORK, &[])?;
        let server = host.container("server").network(NETWORK).idle()?;
        let client = cluster.host(2).container("client").network(NETWORK).idle()?;
        let (server_link, client_link) = (link_of(&server)?, link_of(&client)?);
        let state = host.state()?;
        let network = state.networks.values().find(|network| network.name == NETWORK);
        let vni = network.context("the network was made and is not there")?.vni;
        let ways = [
            Way {
                client: Spot::of(cluster.host(2)),
                server: Spot::of(host),
                addresses: (Ipv4Addr::new(172, 16, 2, 11), Ipv4Addr::new(172, 16, 2, 10)),
                link: "eth1",
                interface: "eth1",
                behind: (Spot::of(host), "eth1".to_owned()),
            },
            kernel_vxlan(&cluster)?,
            Way {
                addresses: (client.ip()?, server.ip()?),
                client: Spot::of(&client),
                server: Spot::of(&server),
                link: "eth0",
                interface: "eth0",
                behind: (Spot::of(cluster.host(2)), client_link),
            },
        ];
        let program = std::env::current_exe().context("the path of this program")?;
        let cpu = placement.server_cpu().to_string();
        let mut servers = Vec::new();
        for way in &ways {
            let mut server = way.server.spawn(&program, &["serve", "--cpu", &cpu])?;
            wait_listening(&mut server)?;
            servers.push(server);
        }
        Ok(Self {
            ways,
            vni,
            server_link,
            _servers: servers,
            _containers: [server, client],
            cluster,
        })
    }

    /// The way of a subject.
    pub fn way(&self, subject: Subject) -> &Way {
        &self.ways[subject as usize]
    }

    /// The hosts.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The host's end of the server container's interface.
    pub fn server_link(&self) -> &str {
        &self.server_link
    }

    /// The path at which the daemon of host 1 has pinned a program (`progs`) or a map (`maps`).
    pub fn pinned(&self, kind: &str, name: &str) -> PathBuf {
        let version = format!("v{}", overlay_common::LAYOUT_VERSION);
        self.cluster.host(1).dirs().pins.join(version).join(kind).join(name)
    }

    /// VNI of overlay's network.
    pub fn vni(&self) -> u32 {
        self.vni
    }
}

/// The host's end of a container's interface.
fn link_of(container: &Container) -> anyhow::Result<String> {
    let attached = container.attached().and_then(|container| container.interfaces.first());
    let endpoint = &attached.context("the container is attached to no network")?.endpoint;
    Ok(format!("ov{:.12}", endpoint.to_string()))
}

/// Joins the hosts: addresses .10 and .11.
///
/// # Errors
/// The error of ip(8).
pub fn wire(host1: &str, host2: &str, name: &str, net: &str) -> anyhow::Result<()> {
    ip(&format!("-n {host1} link add {name} type veth peer name {name} netns {host2}"))?;
    for (host, last) in [(host1, 10), (host2, 11)] {
        ip(&format!("-n {host} address add {net}.{last}/24 dev {name}"))?;
        ip(&format!("-n {host} link set {name} up"))?;
    }
    Ok(())
}

/// Containers as in Docker's overlay: a namespace per host with a bridge and the vxlan device,
/// which was made in the host's namespace; forwarding entries and neighbours are static.
fn kernel_vxlan(cluster: &Cluster) -> anyhow::Result<Way> {
    let instance = cluster.instance();
    let mut spots = Vec::new();
    for (own, other) in [(1u8, 2u8), (2, 1)] {
        let host = instance.namespace(&format!("h{own}"));
        let segment = instance.namespace(&format!("segment{own}"));
        let container = instance.namespace(&format!("kernel{own}"));
        let (mac, far) = (shown(kernel_mac(own)), shown(kernel_mac(other)));
        let (here, there) = (9 + own, 9 + other);
        netns::create(&segment)?;
        netns::create(&container)?;
        for line in [
            format!(
                "-n {host} link add vx0 mtu 1450 type vxlan id {KERNEL_VNI} local 172.16.2.{here} \
                 dstport {KERNEL_PORT} nolearning"
            ),
            format!("-n {host} link set vx0 netns {segment}"),
            format!("-n {segment} link add br0 mtu 1450 type bridge forward_delay 0"),
            format!("-n {segment} link set vx0 master br0 up"),
            format!(
                "-n {segment} link add port mtu 1450 type veth peer name eth0 mtu 1450 \
                 address {mac} netns {container}"
            ),
            format!("-n {segment} link set port master br0 up"),
            format!("-n {segment} link set br0 up"),
            format!("-n {container} address add 10.99.0.{own}/24 dev eth0"),
            format!("-n {container} link set eth0 up"),
            format!("-n {container} neigh add 10.99.0.{other} lladdr {far} dev eth0 nud permanent"),
        ] {
            ip(&line)?;
        }
        let fdb = format!("-n {segment} fdb add {far} dev vx0");
        tool("bridge", &format!("{fdb} dst 172.16.2.{there} self permanent"))?;
        tool("bridge", &format!("{fdb} master static"))?;
        let spot = |name: &str, namespace: String| Spot {
            name: format!("{name}{own}"),
            enter: vec![format!("--net={}", netns::path(&namespace).display())],
            tag: namespace,
            logs: instance.dir.clone(),
        };
        spots.push((spot("kernel", container), spot("segment", segment)));
    }
    let (client, segment) = spots.pop().context("two hosts")?;
    let (server, _) = spots.pop().context("two hosts")?;
    let addresses = (Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 1));
    let behind = (segment, "port".to_owned());
    Ok(Way { client, server, addresses, link: "eth1", interface: "eth0", behind })
}
