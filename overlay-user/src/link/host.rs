//! The interfaces that a host has once: the kernel's vxlan device and the host link.

use rtnetlink::{LinkMessageBuilder, LinkVeth, LinkVxlan, packet_route::link::InfoKind};

use super::{
    HostLink, LinkError, device,
    netns::{Namespace, kernel},
    rtnl::{Device, Rtnl, errno, failed},
};

/// Makes, adopts or repairs the vxlan device. Returns its index.
///
/// It claims the port, lets GRO aggregate tunnel packets, and takes the packets of the kernel
/// encap and decap fallback.
pub(super) async fn ensure_vxlan(
    home: &Namespace,
    name: &str,
    port: u16,
) -> Result<u32, LinkError> {
    let rtnl = Rtnl::open(home)?;
    let mut adopted = false;
    if let Some(found) = rtnl.device(name).await? {
        adopted = found.vxlan == Some((port, true));
        if found.kind != Some(InfoKind::Vxlan) {
            return Err(foreign(name));
        }
        if !adopted {
            rtnl.delete(&found).await?;
        }
    }
    if !adopted {
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            // Tunnel packets of the programs over IPv6 have no outer checksum (RFC 6935).
            .udp_zero_csum6_rx(true)
            .build();
        rtnl.add(message).await.map_err(|e| vxlan_error(name, port, &e))?;
    }
    let made = rtnl.made(name).await?;
    let outcome = match home.run(|| device::disable_ipv6(name)) {
        // The socket is opened when the device comes up, so this is where a taken port shows.
        Ok(Ok(())) => rtnl.up(&made).await.map_err(|e| vxlan_error(name, port, &e)),
        Ok(Err(e)) | Err(e) => Err(e),
    };
    if outcome.is_err() && !adopted {
        rtnl.abandon(name).await;
    }
    outcome.map(|()| made.index)
}

fn vxlan_error(name: &str, port: u16, error: &rtnetlink::Error) -> LinkError {
    match errno(error) {
        Some(nix::libc::EEXIST | nix::libc::EADDRINUSE) => LinkError::PortTaken { port },
        _ => failed(format!("make the vxlan device {name} on port {port}"), error),
    }
}

fn foreign(name: &str) -> LinkError {
    kernel(
        format!("make the interface {name}"),
        "the host has an interface of that name that is not ours; remove it (`ip link del`)",
    )
}

/// Makes, adopts or repairs the host link. Returns the index of the program's end.
pub(super) async fn ensure_host_link(home: &Namespace, link: &HostLink) -> Result<u32, LinkError> {
    let rtnl = Rtnl::open(home)?;
    let adopted = adopt(&rtnl, link).await?;
    if !adopted {
        let pair = LinkVeth::new(&link.name, &link.program_side).mtu(link.mtu).build();
        let action = || format!("make the veth pair {} and {}", link.name, link.program_side);
        rtnl.add(pair).await.map_err(|e| failed(action(), &e))?;
    }
    let outcome = configure(home, &rtnl, link).await;
    if outcome.is_err() && !adopted {
        rtnl.abandon(&link.name).await;
    }
    outcome
}

/// Whether the pair exists. A half that does not fit is removed if it is a veth.
async fn adopt(rtnl: &Rtnl, link: &HostLink) -> Result<bool, LinkError> {
    let host = rtnl.device(&link.name).await?;
    let program = rtnl.device(&link.program_side).await?;
    if let (Some(host), Some(program)) = (&host, &program)
        && host.is_pair_of(program)
    {
        return Ok(true);
    }
    for half in [host, program].into_iter().flatten() {
        if !half.is_veth() {
            return Err(foreign(&half.name));
        }
        rtnl.delete(&half).await?;
    }
    Ok(false)
}

async fn configure(home: &Namespace, rtnl: &Rtnl, link: &HostLink) -> Result<u32, LinkError> {
    let host = rtnl.made(&link.name).await?;
    let program = rtnl.made(&link.program_side).await?;
    rtnl.repair(&host, link.mtu, Some(link.mac)).await?;
    rtnl.repair(&program, link.mtu, None).await?;
    home.run(|| set_sysctls(link))??;
    for end in [&host, &program] {
        up(rtnl, end).await?;
    }
    rtnl.ensure_address(&host, link.address).await?;
    rtnl.remove_other_addresses(&host, link.address).await?;
    Ok(program.index)
}

async fn up(rtnl: &Rtnl, device: &Device) -> Result<(), LinkError> {
    rtnl.up(device).await.map_err(|e| failed(format!("bring {} up", device.name), &e))
}

fn set_sysctls(link: &HostLink) -> Result<(), LinkError> {
    for end in [&link.name, &link.program_side] {
        device::disable_ipv6(end)?;
        device::enable_gro(end)?;
    }
    // bpf_fib_lookup refuses an interface without forwarding; this one is ours to turn it on.
    device::set_sysctl("ipv4", &link.program_side, "forwarding", "1")?;
    device::forward_ipv6(&link.program_side)?;
    // The stronger of `all` and the device's own value holds (Documentation/networking/ip-sysctl),
    // and loose is stronger than strict: a host that is strict everywhere stays so elsewhere.
    device::set_sysctl("ipv4", &link.name, "rp_filter", "2")?;
    // A flow of the host's own comes back here with one of the host's addresses as its source.
    device::set_sysctl("ipv4", &link.name, "accept_local", "1")
}

#[cfg(test)]
mod tests {
    use overlay_common::Mac;

    use super::*;
    use crate::link::{
        Links as _, NetlinkLinks,
        testing::{TestNetns, is_root},
    };

    #[test]
    fn the_vxlan_device_is_made_once_and_follows_its_port() {
        if !is_root("making vxlan devices") {
            return;
        }
        let host = TestNetns::new();
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let first = links.ensure_vxlan("ovl-vxlan", 4789).await.expect("made");
            assert_eq!(links.ensure_vxlan("ovl-vxlan", 4789).await.expect("adopted"), first);
            let shown = host.command("ip -d link show ovl-vxlan");
            assert!(shown.contains("external") && shown.contains("nolearning"), "{shown}");
            assert!(shown.contains("dstport 4789") && shown.contains(",UP"), "{shown}");
            let second = links.ensure_vxlan("ovl-vxlan", 4790).await.expect("made anew");
            assert_ne!(first, second, "another port means another device");
            links.remove("ovl-vxlan").await.expect("removed");
            links.remove("ovl-vxlan").await.expect("a missing one is no error");
            assert!(links.list("ovl-").await.expect("listed").is_empty());
        });
    }

    #[test]
    fn a_taken_port_is_said_and_leaves_no_device() {
        if !is_root("making vxlan devices") {
            return;
        }
        let host = TestNetns::new();
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let socket = std::net::UdpSocket::bind("0.0.0.0:4789").expect("a socket");
            let by_socket = links.ensure_vxlan("ovl-vxlan", 4789).await;
            assert!(matches!(by_socket, Err(LinkError::PortTaken { port: 4789 })), "{by_socket:?}");
            drop(socket);
            host.command("ip link add other type vxlan external dstport 4789");
            host.command("ip link set other up");
            let by_device = links.ensure_vxlan("ovl-vxlan", 4789).await;
            assert!(matches!(by_device, Err(LinkError::PortTaken { port: 4789 })), "{by_device:?}");
            host.command("ip link add ovl-vxlan type bridge");
            let by_name = links.ensure_vxlan("ovl-vxlan", 4790).await;
            assert!(matches!(by_name, Err(LinkError::Kernel { .. })), "{by_name:?}");
            host.command("ip link del ovl-vxlan");
            assert!(links.list("ovl-").await.expect("listed").is_empty());
        });
    }

    #[test]
    fn the_host_link_is_made_repaired_and_moved_to_another_subnet() {
        if !is_root("making veth pairs") {
            return;
        }
        let host = TestNetns::new();
        let mut link = HostLink {
            name: "ovl-host".to_owned(),
            program_side: "ovl-prog".to_owned(),
            address: "10.255.0.2/16".parse().expect("an address"),
            mac: Mac::new([2, 0x42, 10, 255, 0, 2]),
            mtu: 1450,
        };
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let index = links.ensure_host_link(&link).await.expect("made");
            host.command("ip link set ovl-host down mtu 1000");
            assert_eq!(links.ensure_host_link(&link).await.expect("repaired"), index);
            let shown = host.command("ip -o link show ovl-host");
            assert!(shown.contains("mtu 1450") && shown.contains(",UP"), "{shown}");
            assert!(shown.contains("02:42:0a:ff:00:02"), "{shown}");
            link.address = "10.9.0.2/16".parse().expect("an address");
            links.ensure_host_link(&link).await.expect("moved");
            let addresses = host.command("ip -o addr show ovl-host");
            assert!(addresses.contains("10.9.0.2/16"), "{addresses}");
            assert!(!addresses.contains("10.255.0.2"), "the old address is gone: {addresses}");
            assert!(!addresses.contains("inet6"), "IPv6 is off: {addresses}");
            assert_eq!(links.list("ovl-").await.expect("listed").len(), 2);
        });
        let sysctl = |key: &str| {
            host.run(|| {
                std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{key}")).expect("a sysctl")
            })
        };
        assert_eq!(sysctl("ovl-prog/forwarding"), "1\n");
        assert_eq!(sysctl("ovl-host/forwarding"), "0\n");
        assert_eq!(sysctl("ovl-host/rp_filter"), "2\n");
        assert_eq!(sysctl("all/forwarding"), "0\n");
    }
}
