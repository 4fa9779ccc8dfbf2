//! [`Links`] on the real kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use super::{
    EndpointLink, HostLink, LinkError, Links, UnderlayFacts, WayOut,
    device::receives_checksums,
    endpoint, host, listen,
    netns::{Namespace, kernel},
    rtnl::{Family, Rtnl},
};

/// [`Links`] over netlink. It works in the namespace of the thread that made it, whichever thread
/// uses it, and needs a tokio runtime around its calls.
#[derive(Debug)]
pub struct NetlinkLinks {
    home: Namespace,
}

impl NetlinkLinks {
    /// Links of the calling thread's namespace.
    ///
    /// # Errors
    /// [`LinkError::Kernel`] when /proc is not mounted.
    pub fn new() -> Result<Self, LinkError> {
        Ok(Self { home: Namespace::current()? })
    }
}

impl Links for NetlinkLinks {
    async fn underlay(&self, iface: &str) -> Result<UnderlayFacts, LinkError> {
        let device = Rtnl::open(&self.home)?.device(iface).await?;
        let device = device.ok_or_else(|| LinkError::NoInterface(iface.to_owned()))?;
        let Some(mac) = device.mac.filter(|_| device.ethernet) else {
            return Err(kernel(
                format!("use {iface} as the underlay"),
                "it is no Ethernet interface; choose one with a MAC address (--iface)",
            ));
        };
        let checksums = self.home.run(|| receives_checksums(iface))?;
        Ok(UnderlayFacts { ifindex: device.index, mac, mtu: device.mtu, checksums })
    }

    async fn interface_with(&self, address: IpAddr) -> Result<Option<String>, LinkError> {
        let rtnl = Rtnl::open(&self.home)?;
        let Some(index) = rtnl.device_with(address).await? else { return Ok(None) };
        let devices = rtnl.devices().await?;
        Ok(devices.into_iter().find(|d| d.index == index).map(|d| d.name))
    }

    /// Loopback addresses are left out: a packet from outside never has one, and for sockets of
    /// the host 127.0.0.0/8 is always local.
    async fn addresses(&self, not_on: &[&str]) -> Result<Vec<Ipv4Addr>, LinkError> {
        let rtnl = Rtnl::open(&self.home)?;
        let excluded = indexes(&rtnl, not_on).await?;
        let addresses = rtnl.addresses().await?.into_iter();
        let addresses = addresses.filter(|(index, _)| !excluded.contains(index));
        let addresses = addresses.map(|(_, net)| net.addr()).filter(|ip| !ip.is_loopback());
        Ok(addresses.collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Link-local addresses are left out as well: without an interface they identify no host.
    async fn addresses6(&self, not_on: &[&str]) -> Result<Vec<Ipv6Addr>, LinkError> {
        let rtnl = Rtnl::open(&self.home)?;
        let excluded = indexes(&rtnl, not_on).await?;
        let addresses = rtnl.addresses6().await?.into_iter();
        let addresses = addresses.filter(|(index, _)| !excluded.contains(index));
        let addresses = addresses.map(|(_, ip)| ip);
        let addresses = addresses.filter(|ip| !ip.is_loopback() && !ip.is_unicast_link_local());
        Ok(addresses.collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn ways_out(&self, not_on: &[&str]) -> Result<Vec<WayOut>, LinkError> {
        let rtnl = Rtnl::open(&self.home)?;
        let mut devices = rtnl.devices().await?;
        devices.retain(|d| d.ethernet && d.up && !not_on.contains(&d.name.as_str()));
        let addresses = rtnl.addresses().await?;
        let routes = rtnl.default_routes(Family::V4).await?;
        let mut ways: Vec<WayOut> = devices
            .into_iter()
            .filter_map(|device| {
                let mut own = addresses.iter().filter(|(index, _)| *index == device.index);
                let Some(first) = own.clone().next().map(|(_, net)| net.addr()) else {
                    let (name, ifindex) = (device.name, device.index);
                    return device.is_free.then_some(WayOut { name, ifindex, address: None });
                };
                // The same choice as the kernel's for its own sockets: the preferred source of the
                // route, else the interface's first address.
                let mut through = routes.iter().filter(|r| r.device == Some(device.index));
                let preferred = through.find_map(|route| route.source);
                let preferred = preferred.filter(|ip| own.any(|(_, net)| net.addr() == *ip));
                let address = preferred.unwrap_or(first);
                let address = Some(address);
                Some(WayOut { name: device.name, ifindex: device.index, address })
            })
            .collect();
        ways.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ways)
    }

    async fn ensure_vxlan(&self, name: &str, port: u16) -> Result<u32, LinkError> {
        host::ensure_vxlan(&self.home, name, port).await
    }

    async fn ensure_host_link(&self, link: &HostLink) -> Result<u32, LinkError> {
        host::ensure_host_link(&self.home, link).await
    }

    async fn ensure_endpoint_link(&self, link: &EndpointLink) -> Result<u32, LinkError> {
        endpoint::ensure(&self.home, link).await
    }

    async fn remove(&self, name: &str) -> Result<(), LinkError> {
        let rtnl = Rtnl::open(&self.home)?;
        match rtnl.device(name).await? {
            Some(device) => rtnl.delete(&device).await,
            None => Ok(()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, u32)>, LinkError> {
        let devices = Rtnl::open(&self.home)?.devices().await?;
        let named = devices.into_iter().filter(|d| d.name.starts_with(prefix));
        let mut named: Vec<(String, u32)> = named.map(|d| (d.name, d.index)).collect();
        named.sort();
        Ok(named)
    }

    fn listens(&self, netns: &Path, ports: &[(u8, u16)]) -> Result<bool, LinkError> {
        listen::listens(netns, ports)
    }
}

/// Indexes of the interfaces with these names.
async fn indexes(rtnl: &Rtnl, names: &[&str]) -> Result<Vec<u32>, LinkError> {
    let devices = rtnl.devices().await?;
    let named = devices.into_iter().filter(|d| names.contains(&d.name.as_str()));
    Ok(named.map(|d| d.index).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    #[test]
    fn the_underlay_and_the_hosts_addresses_are_found() {
        if !is_root("making interfaces") {
            return;
        }
        let host = TestNetns::new();
        host.command("ip link add eth7 address 02:00:00:00:00:07 mtu 1400 type veth peer name x");
        host.command("ip addr add 192.0.2.10/24 dev eth7");
        host.command("ip addr add 192.0.2.99/24 dev x");
        host.command("ip addr add 127.0.0.1/8 dev lo");
        host.command("ip addr add fd00::7/64 dev eth7 nodad");
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let facts = links.underlay("eth7").await.expect("found");
            assert_eq!((facts.mac.to_string().as_str(), facts.mtu), ("02:00:00:00:00:07", 1400));
            for missing in ["eth8", "", "an-interface-name-too-long"] {
                let outcome = links.underlay(missing).await;
                assert!(matches!(outcome, Err(LinkError::NoInterface(_))), "{outcome:?}");
            }
            let loopback = links.underlay("lo").await;
            assert!(matches!(loopback, Err(LinkError::Kernel { .. })), "no Ethernet: {loopback:?}");
            let found = links.interface_with(ip("192.0.2.10").into()).await.expect("asked");
            assert_eq!(found.as_deref(), Some("eth7"));
            let ip6 = |text: &str| text.parse::<IpAddr>().expect("an address");
            let found = links.interface_with(ip6("fd00::7")).await.expect("asked");
            assert_eq!(found.as_deref(), Some("eth7"));
            assert_eq!(links.interface_with(ip6("fd00::8")).await.expect("asked"), None);
            assert_eq!(links.interface_with(ip("192.0.2.11").into()).await.expect("asked"), None);
            let all = links.addresses(&["x"]).await.expect("listed");
            assert_eq!(all, vec![ip("192.0.2.10")]);
            assert_eq!(links.addresses(&[]).await.expect("listed").len(), 2);
            host.command("ip link set eth7 up");
            host.command("ip link set lo up");
            host.command("ip addr add fd00::99/64 dev x nodad");
            host.command("ip addr add fd00::9 peer fd00::8/128 dev eth7 nodad");
            let of = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
            let all = links.addresses6(&["x"]).await.expect("listed");
            assert_eq!(all, [of("fd00::7"), of("fd00::9")], "neither ::1 nor link-local ones");
            assert_eq!(links.addresses6(&[]).await.expect("listed").len(), 3);
        });
    }

    #[test]
    fn ways_out_are_interfaces_that_are_up_and_in_nothing_else() {
        if !is_root("making interfaces") {
            return;
        }
        let host = TestNetns::new();
        host.command("ip link add eth7 type veth peer name x");
        host.command("ip link add eth8 type veth peer name y");
        host.command("ip link add br0 type bridge");
        host.command("ip link add eth9 type veth peer name z");
        host.command("ip link set eth9 master br0");
        host.command("ip addr add 192.0.2.10/24 dev eth7");
        host.command("ip addr add 192.0.2.11/24 dev eth7");
        host.command("ip addr add 198.51.100.1/24 dev eth8");
        host.command("ip addr add 203.0.113.1/24 dev x");
        for up in ["lo", "br0", "eth7", "eth9", "x", "y", "z"] {
            host.command(&format!("ip link set {up} up"));
        }
        host.block_on(async {
            let links = NetlinkLinks::new().expect("links");
            let ways = || async {
                let ways = links.ways_out(&["x"]).await.expect("listed");
                let shown = ways.into_iter().map(|way| match way.address {
                    Some(address) => format!("{} {address}", way.name),
                    None => way.name,
                });
                shown.collect::<Vec<_>>()
            };
            let expected = ["br0", "eth7 192.0.2.10", "y", "z"];
            assert_eq!(ways().await, expected, "eth8 is down, eth9 is the bridge's");
            host.command("ip addr add 192.0.2.77/32 dev eth9");
            assert!(ways().await.contains(&"eth9 192.0.2.77".to_owned()), "it has an address");
            host.command("ip addr del 192.0.2.77/32 dev eth9");
            host.command("ip link set eth8 up");
            host.command("ip route add default via 192.0.2.1 dev eth7 src 192.0.2.11");
            assert_eq!(ways().await[1..3], ["eth7 192.0.2.11", "eth8 198.51.100.1"]);
            host.command("ip addr del 192.0.2.11/24 dev eth7");
            assert_eq!(ways().await[1], "eth7 192.0.2.10");
        });
    }

    #[test]
    fn links_work_in_the_namespace_they_were_made_in() {
        if !is_root("making interfaces") {
            return;
        }
        let host = TestNetns::new();
        let links = host.run(|| NetlinkLinks::new().expect("links"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listed = runtime.block_on(links.list("")).expect("listed");
        assert_eq!(listed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["lo"]);
    }
}
