//! Named network namespaces and the veth pairs between them, by iproute2.
//!
//! They are entered with `nsenter --net`: `ip netns exec` would remount /sys and hide the bpffs.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process;

/// The folder of named namespaces of iproute2.
pub const DIR: &str = "/run/netns";

/// Prefix length of the underlay.
const UNDERLAY_PREFIX: u8 = 24;

/// Environment variable that every process of an instance carries: its prefix.
pub const TAG: &str = "OVERLAY_BOX";

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    process::run(command)?.success().map(drop)
}

/// Path of a namespace.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(DIR).join(name)
}

/// A command that will run inside a namespace, as part of the instance `prefix`.
pub fn command(prefix: &str, enter: &[String], program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.args(enter).arg("--").arg(program).env(TAG, prefix);
    command
}

/// Makes a namespace with `lo` up.
///
/// # Errors
/// The error of `ip`.
pub fn create(name: &str) -> anyhow::Result<()> {
    ip(&["netns", "add", name]).context("making a network namespace (needs root)")?;
    ip(&["-n", name, "link", "set", "lo", "up"])
}

/// Makes the switch: a namespace with a bridge, which stands for the physical switch between the
/// hosts.
///
/// # Errors
/// The error of `ip`.
pub fn create_switch(name: &str) -> anyhow::Result<()> {
    create(name)?;
    ip(&["-n", name, "link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
    ip(&["-n", name, "link", "set", "br0", "up"])
}

/// A machine on the underlay.
pub struct Attachment<'a> {
    /// Namespace of the switch.
    pub switch: &'a str,
    /// Name of the switch's port.
    pub port: &'a str,
    /// Namespace of the machine, in which the interface is eth0.
    pub machine: &'a str,
    /// Address of the machine.
    pub address: Ipv4Addr,
    /// Makes both ends behave like a cable: no checksum offload and no segmentation offload on
    /// either side, so that XDP sees real checksums in frames of at most the MTU. The switch's side
    /// has an XDP program that passes every packet: without one the kernel queues frames of XDP_TX
    /// out of a veth at its peer, but does not wake the peer (`veth_xdp_flush`, seen on Linux 6.18
    /// with GRO alone).
    pub wire: bool,
    /// MTU of the link in bytes, if it is not Ethernet's usual one.
    pub mtu: Option<u32>,
}

/// Plugs a machine into the switch.
///
/// # Errors
/// The error of `ip` or `ethtool`.
pub fn attach(attachment: &Attachment<'_>) -> anyhow::Result<()> {
    let Attachment { switch, port, machine, address, wire, mtu } = attachment;
    ip(&[
        "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine,
    ])?;
    ip(&["-n", machine, "address", "add", &format!("{address}/{UNDERLAY_PREFIX}"), "dev", "eth0"])?;
    if let Some(mtu) = mtu {
        let mtu = mtu.to_string();
        ip(&["-n", machine, "link", "set", "eth0", "mtu", &mtu])?;
        ip(&["-n", switch, "link", "set", port, "mtu", &mtu])?;
    }
    if *wire {
        let off = ["-K", "eth0", "tx", "off", "tso", "off"];
        ethtool(machine, &off)?;
        ethtool(switch, &["-K", port, "tx", "off", "tso", "off"])?;
    }
    ip(&["-n", switch, "link", "set", port, "master", "br0", "up"])?;
    ip(&["-n", machine, "link", "set", "eth0", "up"])?;
    if *wire { pass_xdp(switch, port) } else { Ok(()) }
}

/// Sets a port of the switch up or down.
///
/// # Errors
/// The error of `ip`.
pub fn set_port(switch: &str, port: &str, up: bool) -> anyhow::Result<()> {
    ip(&["-n", switch, "link", "set", port, if up { "up" } else { "down" }])
}

/// Connects a machine and another one that is only reached through it: their ends of the link are
/// `iface` and eth0, in one /24, and the other one's default route leads through the machine.
///
/// # Errors
/// The error of `ip`.
pub fn link(
    (machine, iface, address): (&str, &str, Ipv4Addr),
    (other, other_address): (&str, Ipv4Addr),
) -> anyhow::Result<()> {
    ip(&[
        "-n", machine, "link", "add", iface, "type", "veth", "peer", "name", "eth0", "netns", other,
    ])?;
    for (namespace, device, address) in [(machine, iface, address), (other, "eth0", other_address)]
    {
        let address = format!("{address}/24");
        ip(&["-n", namespace, "address", "add", &address, "dev", device])?;
        ip(&["-n", namespace, "link", "set", device, "up"])?;
    }
    ip(&["-n", other, "route", "add", "default", "via", &address.to_string()])
}

/// The datapath's maps that are sized for a real node.
const TABLES: [&str; 33] = [
    "networks",
    "flood",
    "endpoints",
    "endpoints6",
    "addresses6",
    "links",
    "links6",
    "peers",
    "services",
    "rr_cursor",
    "slots",
    "lb_tables",
    "active",
    "affinity",
    "backends",
    "backend_stats",
    "published",
    "local_addrs",
    "local_addrs6",
    "frontends6",
    "egress",
    "subnets",
    "subnets6",
    "snat_usage",
    "conntrack",
    "ct_new",
    "addr6_ids",
    "addr6_ids_new",
    "fragments",
    "sock_origin",
    "netns",
    "sock_flows",
    "stale_backends",
];

/// Attaches an XDP program that passes every packet to a port of the switch. It is the datapath's
/// own program, with empty maps that nothing else uses: it passes unknown packets.
fn pass_xdp(switch: &str, port: &str) -> anyhow::Result<()> {
    let mut loader = aya::EbpfLoader::new();
    // They stay empty, and the kernel sets aside memory for each by its size.
    for map in TABLES {
        loader.map_max_entries(map, 64);
    }
    let mut object = loader.load(overlay::datapath::OBJECT).context("load the object")?;
    let program = object.program_mut("xdp_underlay").context("no program xdp_underlay")?;
    overlay::datapath::load_program(program)?;
    // `ip` takes a program by its pin. The interface keeps the program when the pin is removed.
    let pin = Path::new(crate::bpffs::ROOT).join(format!("{switch}-{port}"));
    program.pin(&pin)?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(switch).display()));
    command.args(["ip", "link", "set", "dev", port, "xdpdrv", "pinned"]).arg(&pin);
    let attached = process::run(command).and_then(|done| done.success().map(drop));
    std::fs::remove_file(&pin).context("unpin the switch's program")?;
    attached
}

fn ethtool(namespace: &str, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace).display())).arg("ethtool").args(args);
    process::run(command)?.success().map(drop)
}
