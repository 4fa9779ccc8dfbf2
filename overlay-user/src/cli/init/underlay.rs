//! Which of the host's addresses and interfaces the cluster uses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::{
    cli::{error::refuse, format::list},
    link::Links,
};

/// The address and interface of the data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Underlay {
    pub addr: IpAddr,
    pub iface: String,
}

/// An address that must be on this host, and the interface that has it. `option` is where it was
/// given.
pub(super) async fn with_address(
    links: &impl Links,
    option: &str,
    addr: IpAddr,
    iface: Option<&str>,
) -> anyhow::Result<Underlay> {
    let Some(found) = links.interface_with(addr).await? else {
        return Err(refuse(
            format!("{option} {addr} is not an address of this host"),
            format!("this host has {}", list(candidates(links).await?)),
        ));
    };
    match iface {
        Some(iface) if iface != found => Err(refuse(
            format!("{option} {addr} is on {found}, not on {iface}"),
            "leave out --iface, or give an address of that interface",
        )),
        _ => Ok(Underlay { addr, iface: found }),
    }
}

/// The only address of an interface.
pub(super) async fn on_interface(links: &impl Links, iface: &str) -> anyhow::Result<Underlay> {
    // Tells an interface that does not exist from one without an address.
    links.underlay(iface).await?;
    let mut addresses = Vec::new();
    for addr in candidates(links).await? {
        if links.interface_with(addr.into()).await?.as_deref() == Some(iface) {
            addresses.push(addr);
        }
    }
    match addresses[..] {
        [addr] => Ok(Underlay { addr: addr.into(), iface: iface.to_owned() }),
        [] => Err(refuse(
            format!("--iface {iface} has no IPv4 address"),
            format!("give it one: `ip address add ADDRESS/PREFIX dev {iface}`"),
        )),
        _ => Err(refuse(
            format!("--iface {iface} has several addresses: {}", list(addresses)),
            "choose one with --advertise-addr",
        )),
    }
}

/// The only address of the host.
pub(super) async fn only(links: &impl Links) -> anyhow::Result<Underlay> {
    let addresses = candidates(links).await?;
    match addresses[..] {
        [addr] => with_address(links, "--advertise-addr", addr.into(), None).await,
        [] => Err(refuse(
            "this host has no IPv4 address that others could reach it at",
            "give one of its interfaces an address",
        )),
        _ => Err(refuse(
            format!("this host has several addresses: {}", list(addresses)),
            "choose the one that the other hosts reach it at with --advertise-addr",
        )),
    }
}

/// The address that the host uses towards another one. No packet is sent.
pub(super) fn towards(peer: SocketAddr) -> anyhow::Result<IpAddr> {
    let unreachable = |why: String| {
        refuse(
            format!("there is no route to the manager {peer}: {why}"),
            "check the address and `ip route`",
        )
    };
    let any = match peer {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer).map_err(|e| unreachable(e.to_string()))?;
    Ok(socket.local_addr()?.ip())
}

async fn candidates(links: &impl Links) -> anyhow::Result<Vec<Ipv4Addr>> {
    let mut addresses = links.addresses(&[]).await?;
    addresses.retain(|addr| !addr.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}
