//! Services like those of kube-proxy and Docker, without overlay: two nodes, joined by a link and
//! by the kernel's vxlan device, and pods with their own routes. Either nftables picks a backend
//! (`numgen`) and changes the destination, or IPVS does (masquerading). There is no bridge, which
//! favours this side.

use std::{io::Write as _, net::Ipv4Addr};

use anyhow::Context as _;

use super::{
    super::{
        floods::mac_of,
        rig::{KERNEL_PORT, KERNEL_VNI, Spot, ip},
    },
    report::Subject,
    rig::{PORTS, SHIFT},
};
use crate::{Cluster, Place as _, netns, process};

/// The client pod, and the backends on the other node and on its own.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 20);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 10);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 10);
/// Virtual addresses of the two services.
pub const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
/// The ingress node's address on the client's side, and on the link between the nodes.
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The nodes' addresses on the wire.
const WIRE: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)];
/// The addresses of the nodes themselves.
pub const SELVES: [Ipv4Addr; 2] = WIRE;
/// The client outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// What balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Against {
    /// nftables.
    Nftables,
    /// IPVS, of a kernel that has it.
    Ipvs,
}

impl Against {
    /// The subject of its measurements.
    pub fn subject(self) -> Subject {
        match self {
            Self::Nftables => Subject::Nftables,
            Self::Ipvs => Subject::Ipvs,
        }
    }

    /// The program that sets it up, and its Debian package.
    pub fn tool(self) -> (&'static str, &'static str) {
        match self {
            Self::Nftables => ("nft", "nftables"),
            Self::Ipvs => ("ipvsadm", "ipvsadm"),
        }
    }
}

/// The namespaces.
#[derive(Debug)]
pub struct Routed {
    /// The places of the backends: on the other node, and on the ingress node.
    pub backends: [Spot; 2],
    /// The other node, and the ingress node.
    pub nodes: [Spot; 2],
    /// A pod on the asked node.
    pub client: Spot,
    /// A machine beside the asked node.
    pub outside: Spot,
}

/// MAC of a node's vxlan device.
fn mac(node: u8) -> String {
    format!("02:42:0a:63:{node:02x}:00")
}

impl Routed {
    /// Builds it beside a cluster, with which it goes.
    ///
    /// # Errors
    /// The kernel or a tool reports an error.
    pub fn new(cluster: &Cluster, against: Against) -> anyhow::Result<Self> {
        let instance = cluster.instance();
        let name = |name: &str| instance.namespace(name);
        let names = ["n1", "n2", "p1", "p2", "pc", "out"].map(name);
        for name in &names {
            netns::create(name)?;
        }
        let [n1, n2, p1, p2, pc, out] = &names;
        ip(&format!("-n {n1} link add wire type veth peer name wire netns {n2}"))?;
        for (own, other, node) in [(1u8, 2u8, n1), (2, 1, n2)] {
            node_of(node, (own, other))?;
        }
        pod(n1, p1, ("far", FAR))?;
        pod(n2, p2, ("near", NEAR))?;
        pod(n2, pc, ("client", CLIENT))?;
        netns::link((n2, "outside", NODE), (out, OUTSIDE))?;
        // The return path from the other node itself, for requests without a service.
        ip(&format!("-n {n1} route add {OUTSIDE} via {}", WIRE[1]))?;
        let spot = |name: &String| Spot::at(instance, name.clone());
        let routed = Self {
            backends: [spot(p1), spot(p2)],
            nodes: [spot(n1), spot(n2)],
            client: spot(pc),
            outside: spot(out),
        };
        let [a, b] = &routed.nodes;
        neighbours((a, WIRE[0]), (b, WIRE[1]), "wire")?;
        match against {
            Against::Nftables => routed.balance(n2)?,
            Against::Ipvs => balance_by_ipvs(n2)?,
        }
        Ok(routed)
    }

    /// The rules of the asked node.
    fn balance(&self, node: &str) -> anyhow::Result<()> {
        feed(node, (&["nft", "-f", "-"], "nftables"), &rules())
    }
}

/// Makes two ends of a link know each other permanently: the floods' counter drops address requests
/// too, and the kernel gives up a neighbour without answers after some seconds.
///
/// # Errors
/// The error of ip(8).
pub fn neighbours(
    (one, address): (&Spot, Ipv4Addr),
    (other, its): (&Spot, Ipv4Addr),
    device: &str,
) -> anyhow::Result<()> {
    for (at, neighbour, known) in [(one, other, its), (other, one, address)] {
        let mac = mac_of(neighbour, device)?.map(|byte| format!("{byte:02x}")).join(":");
        let line = format!("neigh replace {known} lladdr {mac} dev {device} nud permanent");
        ip(&format!("-n {} {line}", at.tag()))?;
    }
    Ok(())
}

/// Has a program in a node's namespace read lines.
fn feed(node: &str, (program, package): (&[&str], &str), lines: &str) -> anyhow::Result<()> {
    let name = program[0];
    let mut child = std::process::Command::new("ip")
        .args(["netns", "exec", node])
        .args(program)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} (Debian package {package})"))?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(lines.as_bytes())?;
    drop(stdin);
    anyhow::ensure!(child.wait()?.success(), "{name} refuses the rules");
    Ok(())
}

/// Sets IPVS up as Docker does in the namespace of a network's load balancer: masquerading, round
/// robin, with connection tracking. A virtual address is one of the node's own, where IPVS listens.
fn balance_by_ipvs(node: &str) -> anyhow::Result<()> {
    let mut rules = String::new();
    for (vip, backend, shift) in [(VIPS[0], FAR, 0), (VIPS[1], NEAR, SHIFT)] {
        ip(&format!("-n {node} address add {vip}/32 dev lo"))?;
        for port in PORTS {
            let asked = [("-t", vip, port), ("-t", NODE, port + shift), ("-u", NODE, port + shift)];
            for (protocol, address, at) in asked {
                rules.push_str(&format!("-A {protocol} {address}:{at} -s rr\n"));
                rules.push_str(&format!("-a {protocol} {address}:{at} -r {backend}:{port} -m\n"));
            }
        }
    }
    ip(&format!("-n {node} link set lo up"))?;
    feed(node, (&["ipvsadm", "-R"], "ipvsadm"), &rules)?;
    for setting in ["conntrack=1", "expire_nodest_conn=1", "conn_reuse_mode=0"] {
        let mut sysctl = std::process::Command::new("ip");
        sysctl.args(["netns", "exec", node, "sysctl", "-qw", &format!("net.ipv4.vs.{setting}")]);
        process::run(sysctl)?.success()?;
    }
    Ok(())
}

/// The rules of kube-proxy's nftables mode: a verdict map by address, protocol and port, a chain
/// for each service, and source NAT of flows from outside to another node.
fn rules() -> String {
    let mut vips = Vec::new();
    let mut ports = Vec::new();
    for (name, vip, shift) in [("far", VIPS[0], 0), ("near", VIPS[1], SHIFT)] {
        for port in PORTS {
            vips.push(format!("{vip} . tcp . {port} : goto {name}_{port}"));
            let publish = if name == "far" { "far_outside" } else { "near" };
            for protocol in ["tcp", "udp"] {
                ports.push(format!("{protocol} . {} : goto {publish}_{port}", port + shift));
            }
        }
    }
    let mut chains = String::new();
    for (name, backend, mark) in
        [("far", FAR, ""), ("far_outside", FAR, "meta mark set 0x4000; "), ("near", NEAR, "")]
    {
        for port in PORTS {
            chains.push_str(&format!(
                "chain {name}_{port} {{ {mark}meta l4proto {{ tcp, udp }} dnat ip to numgen random mod 1 \
                 map {{ 0 : {backend} . {port} }}; }}\n"
            ));
        }
    }
    // Requests without a service have no cost of connection tracking.
    let selves = SELVES.map(|ip| ip.to_string()).join(", ");
    let untracked = format!(
        "meta l4proto tcp ip daddr {{ {selves} }} notrack\n \
         meta l4proto tcp ip saddr {{ {selves} }} notrack"
    );
    format!(
        "table ip services {{\n\
         {chains}\
         chain prerouting {{\n type nat hook prerouting priority dstnat;\n\
         ip daddr . meta l4proto . th dport vmap {{ {} }}\n\
         ip daddr {NODE} meta l4proto . th dport vmap {{ {} }}\n}}\n\
         chain postrouting {{\n type nat hook postrouting priority srcnat;\n\
         meta mark 0x4000 masquerade\n}}\n\
         chain unasked {{\n type filter hook prerouting priority raw;\n {}\n}}\n\
         chain unasked_answers {{\n type filter hook output priority raw;\n {}\n}}\n}}\n",
        vips.join(", "),
        ports.join(", "),
        untracked,
        untracked,
    )
}

fn node_of(node: &str, (own, other): (u8, u8)) -> anyhow::Result<()> {
    let (here, there) = (WIRE[usize::from(own) - 1], WIRE[usize::from(other) - 1]);
    for line in [
        format!("address add {here}/24 dev wire"),
        "link set wire up".to_owned(),
        format!(
            "link add vx0 mtu 1450 address {} type vxlan id {KERNEL_VNI} local {here} dstport \
             {KERNEL_PORT} nolearning",
            mac(own)
        ),
        format!("address add 10.99.{own}.0/32 dev vx0"),
        "link set vx0 up".to_owned(),
        format!("route add 10.99.{other}.0/24 via 10.99.{other}.0 dev vx0 onlink"),
        format!("neigh add 10.99.{other}.0 lladdr {} dev vx0 nud permanent", mac(other)),
    ] {
        ip(&format!("-n {node} {line}"))?;
    }
    let mut fdb = std::process::Command::new("bridge");
    let line = format!("-n {node} fdb add {} dev vx0 dst {there} self permanent", mac(other));
    fdb.args(line.split(' '));
    process::run(fdb)?.success()?;
    let mut forward = std::process::Command::new("ip");
    forward.args(["netns", "exec", node, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    process::run(forward)?.success().map(drop)
}

/// A pod with a veth to its node, which routes.
fn pod(node: &str, pod: &str, (port, address): (&str, Ipv4Addr)) -> anyhow::Result<()> {
    let [a, b, c, _] = address.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    for line in [
        format!("-n {node} link add {port} mtu 1450 type veth peer name eth0 mtu 1450 netns {pod}"),
        format!("-n {node} address add {gateway}/32 dev {port}"),
        format!("-n {node} link set {port} up"),
        format!("-n {node} route add {address}/32 dev {port}"),
        format!("-n {pod} address add {address}/32 dev eth0"),
        format!("-n {pod} link set eth0 up"),
        format!("-n {pod} route add {gateway} dev eth0"),
        format!("-n {pod} route add default via {gateway}"),
    ] {
        ip(&line)?;
    }
    Ok(())
}
