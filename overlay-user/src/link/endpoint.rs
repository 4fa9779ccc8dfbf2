//! An endpoint's veth pair: one end with the host, the other made directly in the container's
//! namespace, so that it never passes through the host under a name that could clash there.

use std::{net::IpAddr, os::fd::AsRawFd as _};

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth},
};

use super::{
    EndpointLink, LinkError, device,
    netns::{Namespace, kernel},
    rtnl::{Device, Family, Rtnl, errno, failed},
};

/// Makes, adopts or repairs the pair. Returns the index of the host-side end.
pub(super) async fn ensure(home: &Namespace, link: &EndpointLink) -> Result<u32, LinkError> {
    let namespace = Namespace::open(std::path::Path::new(&link.netns))?;
    refuse_own(home, &namespace)?;
    let (outside, inside) = (Rtnl::open(home)?, Rtnl::open(&namespace)?);
    let adopted = adopt(&outside, &inside, link).await?;
    if !adopted {
        make(&outside, &namespace, link).await?;
    }
    let outcome = configure(home, &namespace, (&outside, &inside), link).await;
    if outcome.is_err() && !adopted {
        // The inner end goes with the outer one.
        outside.abandon(&link.host_name).await;
    }
    outcome
}

/// An endpoint with a default route in the host's own namespace would cut the host off.
fn refuse_own(home: &Namespace, namespace: &Namespace) -> Result<(), LinkError> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |n: &Namespace| n.file().metadata().map(|m| (m.dev(), m.ino())).ok();
    if inode(home).is_some() && inode(home) == inode(namespace) {
        return Err(kernel(
            format!("make an endpoint in {}", namespace.name()),
            "this is the host's own network namespace; name a container's",
        ));
    }
    Ok(())
}

/// Whether the pair exists as wanted. A half of ours that does not fit is removed. A foreign
/// interface is left alone and rejected.
async fn adopt(outside: &Rtnl, inside: &Rtnl, link: &EndpointLink) -> Result<bool, LinkError> {
    if let Some(outer) = outside.device(&link.host_name).await? {
        let inner = inside.device(&link.name).await?;
        if inner.is_some_and(|i| outer.is_pair_of(&i) && i.mac == Some(link.mac)) {
            return Ok(true);
        }
        if !outer.is_veth() {
            return Err(kernel(
                format!("make the interface {}", link.host_name),
                "the host has another interface of that name; remove it (`ip link del`)",
            ));
        }
        outside.delete(&outer).await?;
    }
    if inside.device(&link.name).await?.is_some() {
        return Err(exists(link));
    }
    Ok(false)
}

fn exists(link: &EndpointLink) -> LinkError {
    LinkError::InterfaceExists { netns: link.netns.clone(), name: link.name.clone() }
}

async fn make(outside: &Rtnl, namespace: &Namespace, link: &EndpointLink) -> Result<(), LinkError> {
    let inner = LinkMessageBuilder::<LinkUnspec>::new()
        .name(link.name.clone())
        .mtu(link.mtu)
        .address(link.mac.bytes().to_vec())
        .setns_by_fd(namespace.file().as_raw_fd())
        .build();
    let pair = LinkVeth::new(&link.host_name, &link.name)
        .mtu(link.mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)))
        .build();
    outside.add(pair).await.map_err(|e| match errno(&e) {
        // The outer name was looked at just before, so it is the inner one that is taken.
        Some(nix::libc::EEXIST) => exists(link),
        _ => failed(format!("make the veth pair {} for {}", link.host_name, link.netns), &e),
    })
}

async fn configure(
    home: &Namespace,
    namespace: &Namespace,
    (outside, inside): (&Rtnl, &Rtnl),
    link: &EndpointLink,
) -> Result<u32, LinkError> {
    let outer = outside.made(&link.host_name).await?;
    let inner = inside.made(&link.name).await?;
    outside.repair(&outer, link.mtu, None).await?;
    inside.repair(&inner, link.mtu, Some(link.mac)).await?;
    home.run(|| {
        device::disable_ipv6(&link.host_name)?;
        device::enable_gro(&link.host_name)
    })??;
    namespace.run(|| {
        if link.ipv6.is_some() {
            device::enable_ipv6(&link.name)?;
        }
        device::enable_gro(&link.name)
    })??;
    up(outside, &outer).await?;
    if let Some(loopback) = inside.device("lo").await? {
        up(inside, &loopback).await?;
    }
    up(inside, &inner).await?;
    inside.ensure_address(&inner, link.address).await?;
    route(inside, &inner, (&link.netns, link.gateway.map(IpAddr::V4)), Family::V4).await?;
    if let Some(ipv6) = &link.ipv6 {
        inside.ensure_address6(&inner, ipv6.address).await?;
        route(inside, &inner, (&link.netns, ipv6.gateway.map(IpAddr::V6)), Family::V6).await?;
    }
    Ok(outer.index)
}

async fn up(rtnl: &Rtnl, device: &Device) -> Result<(), LinkError> {
    rtnl.up(device).await.map_err(|e| failed(format!("bring {} up", device.name), &e))
}

/// The default route of a family as the link says: through its gateway, or none through this
/// interface.
async fn route(
    inside: &Rtnl,
    inner: &Device,
    (netns, gateway): (&str, Option<IpAddr>),
    family: Family,
) -> Result<(), LinkError> {
    let mut present = false;
    let mut foreign = None;
    for route in inside.default_routes(family).await? {
        if route.device != Some(inner.index) {
            foreign = Some(route);
        } else if route.gateway.is_some() && route.gateway == gateway {
            present = true;
        } else {
            inside.delete_route(route).await?;
        }
    }
    let Some(gateway) = gateway.filter(|_| !present) else { return Ok(()) };
    if let Some(foreign) = foreign {
        let via = foreign.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        return Err(kernel(
            format!("add the default route via {gateway} in {netns}"),
            format!(
                "the namespace already has a default route{via}; remove it, or attach the \
                 namespace to internal networks only"
            ),
        ));
    }
    inside.add_default_route(inner, gateway).await
}

#[cfg(test)]
mod tests {
    use overlay_common::Mac;

    use super::*;
    use crate::link::{
        LinkIpv6, Links as _, NetlinkLinks,
        testing::{TestNetns, is_root},
    };

    fn link(container: &TestNetns) -> EndpointLink {
        EndpointLink {
            host_name: "ov0123456789ab".to_owned(),
            netns: container.name(),
            name: "eth0".to_owned(),
            mac: Mac::new([2, 0x42, 10, 0, 1, 2]),
            address: "10.0.1.2/24".parse().expect("an address"),
            gateway: Some("10.0.1.1".parse().expect("an address")),
            ipv6: None,
            mtu: 1450,
        }
    }

    fn dual_stack(container: &TestNetns) -> EndpointLink {
        let ipv6 = LinkIpv6 {
            address: "fd00:1::2/64".parse().expect("an address"),
            gateway: Some("fd00:1::1".parse().expect("an address")),
        };
        EndpointLink { ipv6: Some(ipv6), ..link(container) }
    }

    #[test]
    fn an_endpoint_gets_a_pair_with_its_address_and_route() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        let link = link(&container);
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let index = links.ensure_endpoint_link(&link).await.expect("made");
            let listed = links.list("ov").await.expect("listed");
            assert_eq!(listed, vec![(link.host_name.clone(), index)]);
            let again = links.ensure_endpoint_link(&link).await.expect("adopted");
            assert_eq!(again, index, "a second call adopts what is there");
        });
        let inside = container.command("ip -o link show eth0");
        assert!(inside.contains("02:42:0a:00:01:02") && inside.contains("mtu 1450"), "{inside}");
        assert!(container.command("ip -o addr show eth0").contains("10.0.1.2/24"));
        assert!(container.command("ip route").contains("default via 10.0.1.1 dev eth0"));
        assert!(container.command("ip -o link show lo").contains("UP"));
        let outside = host.command("ip -o link show ov0123456789ab");
        assert!(outside.contains(",UP") && outside.contains("mtu 1450"), "{outside}");
        for (netns, name) in [(&host, "ov0123456789ab"), (&container, "eth0")] {
            let features = netns.command(&format!("ethtool -k {name}"));
            assert!(features.contains("generic-receive-offload: on"), "NAPI on {name}");
        }
    }

    #[test]
    fn a_dual_stack_endpoint_has_its_addresses_at_once_and_listens_to_no_router() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        container.command("sysctl -q net.ipv6.conf.default.disable_ipv6=1");
        let mut link = dual_stack(&container);
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let index = links.ensure_endpoint_link(&link).await.expect("made");
            let shown = container.command("ip -6 -o addr show eth0");
            let global = shown.lines().find(|line| line.contains("fd00:1::2/64"));
            assert!(global.is_some_and(|line| !line.contains("tentative")), "{shown}");
            assert!(shown.contains("fe80::42:aff:fe00:102/64"), "{shown}");
            let route = container.command("ip -6 route show default");
            assert!(route.contains("via fd00:1::1 dev eth0"), "{route}");
            let ra = container.command("sysctl -n net.ipv6.conf.eth0.accept_ra");
            assert_eq!(ra.trim(), "0");
            container.command("ip -6 addr flush dev eth0 scope global");
            container.command("ip -6 route flush default");
            assert_eq!(links.ensure_endpoint_link(&link).await.expect("repaired"), index);
            assert!(container.command("ip -6 -o addr show eth0").contains("fd00:1::2/64"));
            assert!(container.command("ip -6 route show default").contains("fd00:1::1"));
            link.ipv6.as_mut().expect("dual-stack").gateway = None;
            links.ensure_endpoint_link(&link).await.expect("changed");
            assert_eq!(container.command("ip -6 route show default"), "");
            assert!(container.command("ip route").contains("default via 10.0.1.1"));
        });
    }

    #[test]
    fn an_mtu_without_room_for_ipv6_is_refused_and_leaves_nothing_behind() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let small = EndpointLink { mtu: 1200, ..dual_stack(&container) };
            let error = links.ensure_endpoint_link(&small).await.expect_err("refused");
            assert!(error.to_string().contains("1280"), "{error}");
            assert!(links.list("ov").await.expect("listed").is_empty());
        });
    }

    #[test]
    fn what_was_changed_behind_our_back_is_repaired() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        let mut link = link(&container);
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let index = links.ensure_endpoint_link(&link).await.expect("made");
            container.command("ip addr flush dev eth0");
            container.command("ip link set eth0 mtu 1000 down");
            link.mtu = 1400;
            assert_eq!(links.ensure_endpoint_link(&link).await.expect("repaired"), index);
            let route = container.command("ip route");
            assert!(route.contains("default via 10.0.1.1"), "{route}");
            assert!(container.command("ip -o link show eth0").contains("mtu 1400"));
            link.gateway = None;
            links.ensure_endpoint_link(&link).await.expect("changed");
            assert!(!container.command("ip route").contains("default"), "internal has no way out");
        });
    }

    #[test]
    fn a_pair_whose_other_end_belongs_to_an_earlier_container_is_made_anew() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, first, second) = (TestNetns::new(), TestNetns::new(), TestNetns::new());
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let before = links.ensure_endpoint_link(&link(&first)).await.expect("made");
            let after = links.ensure_endpoint_link(&link(&second)).await.expect("made anew");
            assert_ne!(before, after);
            assert_eq!(links.list("ov").await.expect("listed").len(), 1);
        });
        assert!(!first.command("ip -o link").contains("eth0"));
        assert!(second.command("ip -o link").contains("eth0"));
    }

    #[test]
    fn a_refused_endpoint_leaves_nothing_behind() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        container.command("ip link add eth0 type veth peer name other");
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let taken = links.ensure_endpoint_link(&link(&container)).await;
            assert!(
                matches!(taken, Err(LinkError::InterfaceExists { name, .. }) if name == "eth0")
            );
            let missing = EndpointLink { netns: "/nonexistent".to_owned(), ..link(&container) };
            let outcome = links.ensure_endpoint_link(&missing).await;
            assert!(matches!(outcome, Err(LinkError::NoNamespace(_))));
            let own = EndpointLink { netns: "/proc/thread-self/ns/net".to_owned(), ..missing };
            assert!(links.ensure_endpoint_link(&own).await.is_err(), "the host's own namespace");
            // The address is not of the gateway's subnet: the route fails after all the rest.
            let late = EndpointLink {
                name: "eth1".to_owned(),
                gateway: Some("192.0.2.1".parse().expect("an address")),
                ..link(&container)
            };
            let outcome = links.ensure_endpoint_link(&late).await;
            assert!(matches!(outcome, Err(LinkError::Kernel { .. })), "{outcome:?}");
            assert!(links.list("ov").await.expect("listed").is_empty());
        });
        assert!(!container.command("ip -o link").contains("eth1"));
    }

    #[test]
    fn a_default_route_of_somebody_else_is_kept_and_said() {
        if !is_root("making veth pairs") {
            return;
        }
        let (host, container) = (TestNetns::new(), TestNetns::new());
        container.command("ip link add up0 type veth peer name other");
        container.command("ip addr add 192.0.2.2/24 dev up0");
        container.command("ip link set up0 up");
        container.command("ip route add default via 192.0.2.1");
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let error = links.ensure_endpoint_link(&link(&container)).await.expect_err("refused");
            assert!(error.to_string().contains("already has a default route via 192.0.2.1"));
            assert!(links.list("ov").await.expect("listed").is_empty());
            let internal = EndpointLink { gateway: None, ..link(&container) };
            links.ensure_endpoint_link(&internal).await.expect("no route, no conflict");
        });
        assert!(container.command("ip route").contains("default via 192.0.2.1"));
    }
}
