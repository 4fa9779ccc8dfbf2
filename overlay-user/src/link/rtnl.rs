//! A route-netlink connection into one namespace, and the few questions and changes we need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::{Ipv4Net, Ipv6Net};
use overlay_common::Mac;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{
            InfoData, InfoKind, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
            LinkLayerType, LinkMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};

use super::{
    LinkError,
    netns::{Namespace, kernel},
};

/// Longest name of an interface (IFNAMSIZ less the final zero byte).
const MAX_NAME: usize = 15;

/// An interface as the kernel describes it.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Option<InfoKind>,
    /// Index of the other end of a veth pair, in that end's namespace.
    pub(super) peer: Option<u32>,
    pub(super) mtu: u32,
    pub(super) mac: Option<Mac>,
    pub(super) ethernet: bool,
    pub(super) up: bool,
    /// Whether it is in no bridge, bond or the like, which would take its packets. A VRF takes
    /// none: they come in by the interface itself.
    pub(super) is_free: bool,
    /// For a vxlan device: its port, and whether it is in collect-metadata mode.
    pub(super) vxlan: Option<(u16, bool)>,
}

impl Device {
    /// Whether it is one end of a veth pair.
    pub(super) fn is_veth(&self) -> bool {
        self.kind == Some(InfoKind::Veth)
    }

    /// Whether `self` and `other` are the two ends of one veth pair.
    pub(super) fn is_pair_of(&self, other: &Self) -> bool {
        let ends = self.is_veth() && other.is_veth();
        ends && self.peer == Some(other.index) && other.peer == Some(self.index)
    }

    fn of(message: LinkMessage) -> Self {
        let header = message.header;
        let mut device = Self {
            index: header.index,
            name: String::new(),
            kind: None,
            peer: None,
            mtu: 0,
            mac: None,
            ethernet: header.link_layer_type == LinkLayerType::Ether,
            up: header.flags.contains(LinkFlags::Up),
            is_free: true,
            vxlan: None,
        };
        let (mut is_port, mut is_in_vrf) = (false, false);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name = name,
                LinkAttribute::Mtu(mtu) => device.mtu = mtu,
                LinkAttribute::Link(index) => device.peer = Some(index),
                LinkAttribute::Address(bytes) => {
                    device.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac::new);
                }
                LinkAttribute::Controller(index) => is_port = index != 0,
                LinkAttribute::LinkInfo(infos) => {
                    is_in_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
                    device.describe(infos);
                }
                _ => {}
            }
        }
        device.is_free = !is_port || is_in_vrf;
        device
    }

    fn describe(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind),
                LinkInfo::Data(InfoData::Vxlan(options)) => {
                    let mut described = (0, false);
                    for option in options {
                        match option {
                            InfoVxlan::Port(port) => described.0 = port,
                            InfoVxlan::CollectMetadata(on) => described.1 = on,
                            _ => {}
                        }
                    }
                    self.vxlan = Some(described);
                }
                _ => {}
            }
        }
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// A default route.
#[derive(Debug)]
pub(super) struct DefaultRoute {
    pub(super) device: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    /// The address it prefers as a source.
    pub(super) source: Option<Ipv4Addr>,
    message: RouteMessage,
}

/// An open connection. It ends with the value, and with it its hold on the namespace.
pub(super) struct Rtnl {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rtnl {
    /// Opens a connection inside `namespace`, served by the calling task's runtime.
    pub(super) fn open(namespace: &Namespace) -> Result<Self, LinkError> {
        let failed = |e: &dyn std::fmt::Display| {
            kernel(format!("open a netlink socket in {}", namespace.name()), e)
        };
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| failed(&e))?;
        let opened = namespace.run(|| {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        })?;
        let (connection, handle, _) = opened.map_err(|e| failed(&e))?;
        Ok(Self { handle, task: runtime.spawn(connection) })
    }

    /// The interface of that name.
    pub(super) async fn device(&self, name: &str) -> Result<Option<Device>, LinkError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Ok(None);
        }
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(Device::of)),
            Err(e) if errno(&e) == Some(nix::libc::ENODEV) => Ok(None),
            Err(e) => Err(failed(format!("look up the interface {name}"), &e)),
        }
    }

    /// The interface of that name, which was just made.
    pub(super) async fn made(&self, name: &str) -> Result<Device, LinkError> {
        let missing = || kernel(format!("find the interface {name} just made"), "it is gone");
        self.device(name).await?.ok_or_else(missing)
    }

    /// All interfaces.
    pub(super) async fn devices(&self) -> Result<Vec<Device>, LinkError> {
        let all = self.handle.link().get().execute();
        all.map_ok(Device::of)
            .try_collect()
            .await
            .map_err(|e| failed("list the interfaces".to_owned(), &e))
    }

    /// Makes an interface. The error is the kernel's, for the caller to tell apart.
    pub(super) async fn add(&self, message: LinkMessage) -> Result<(), rtnetlink::Error> {
        self.handle.link().add(message).execute().await
    }

    /// Removes an interface by index; one that is gone is no error.
    pub(super) async fn delete(&self, device: &Device) -> Result<(), LinkError> {
        match self.handle.link().del(device.index).execute().await {
            Err(e) if errno(&e) != Some(nix::libc::ENODEV) => {
                Err(failed(format!("remove the interface {}", device.name), &e))
            }
            _ => Ok(()),
        }
    }

    /// Removes the objects that a failed call made. The error to report is that of the call. The
    /// next call finds any leftovers and repairs or removes them.
    pub(super) async fn abandon(&self, name: &str) {
        let outcome = match self.device(name).await {
            Ok(Some(device)) => self.delete(&device).await,
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = outcome {
            tracing::warn!("the interface {name} is left behind: {e}");
        }
    }

    /// Sets MTU and MAC (where given) to the wanted values.
    pub(super) async fn repair(
        &self,
        device: &Device,
        mtu: u32,
        mac: Option<Mac>,
    ) -> Result<(), LinkError> {
        let mut change = LinkUnspec::new_with_index(device.index);
        if device.mtu != mtu {
            change = change.mtu(mtu);
        }
        if let Some(mac) = mac.filter(|mac| device.mac != Some(*mac)) {
            change = change.address(mac.bytes().to_vec());
        }
        let action = || format!("set MTU {mtu} and the MAC address of {}", device.name);
        let request = self.handle.link().change(change.build());
        request.execute().await.map_err(|e| failed(action(), &e))
    }

    /// Brings an interface up. The error is the kernel's, for the caller to tell apart.
    pub(super) async fn up(&self, device: &Device) -> Result<(), rtnetlink::Error> {
        if device.up {
            return Ok(());
        }
        let change = LinkUnspec::new_with_index(device.index).up().build();
        self.handle.link().change(change).execute().await
    }

    /// Every IPv4 address with the index of its interface.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, LinkError> {
        let all = self.ipv4_addresses().await?;
        Ok(all.iter().filter_map(|m| Some((m.header.index, address_of(m)?))).collect())
    }

    /// Every IPv6 address with the index of its interface.
    pub(super) async fn addresses6(&self) -> Result<Vec<(u32, Ipv6Addr)>, LinkError> {
        let all = self.handle.address().get().execute();
        let all: Vec<AddressMessage> =
            all.try_collect().await.map_err(|e| failed("list the addresses".to_owned(), &e))?;
        let ipv6 = |m: &AddressMessage| match own_address(m)? {
            IpAddr::V6(ip) => Some((m.header.index, ip)),
            IpAddr::V4(_) => None,
        };
        Ok(all.iter().filter_map(ipv6).collect())
    }

    /// Index of the device that has an address of either family.
    pub(super) async fn device_with(&self, address: IpAddr) -> Result<Option<u32>, LinkError> {
        let mut all = self.handle.address().get().execute();
        let failed = |e: &rtnetlink::Error| failed("list the addresses".to_owned(), e);
        while let Some(message) = all.try_next().await.map_err(|e| failed(&e))? {
            let is_it = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(own) => *own == address,
                // For IPv6 the kernel reports no other.
                AddressAttribute::Address(own) => address.is_ipv6() && *own == address,
                _ => false,
            };
            if message.attributes.iter().any(is_it) {
                return Ok(Some(message.header.index));
            }
        }
        Ok(None)
    }

    async fn ipv4_addresses(&self) -> Result<Vec<AddressMessage>, LinkError> {
        let all = self.handle.address().get().execute();
        all.try_filter(|message| std::future::ready(address_of(message).is_some()))
            .try_collect()
            .await
            .map_err(|e| failed("list the addresses".to_owned(), &e))
    }

    /// Adds an address unless it is there.
    pub(super) async fn ensure_address(
        &self,
        device: &Device,
        address: Ipv4Net,
    ) -> Result<(), LinkError> {
        let ip = IpAddr::V4(address.addr());
        let request = self.handle.address().add(device.index, ip, address.prefix_len());
        match request.execute().await {
            Err(e) if errno(&e) != Some(nix::libc::EEXIST) => {
                Err(failed(format!("give {} the address {address}", device.name), &e))
            }
            _ => Ok(()),
        }
    }

    /// Adds an IPv6 address unless it is there. It is used at once: the manager gives it once only,
    /// so there is no looking for duplicates.
    pub(super) async fn ensure_address6(
        &self,
        device: &Device,
        address: Ipv6Net,
    ) -> Result<(), LinkError> {
        let ip = IpAddr::V6(address.addr());
        let mut request = self.handle.address().add(device.index, ip, address.prefix_len());
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        match request.execute().await {
            Err(e) if errno(&e) != Some(nix::libc::EEXIST) => {
                Err(failed(format!("give {} the address {address}", device.name), &e))
            }
            _ => Ok(()),
        }
    }

    /// Removes every IPv4 address of an interface but one.
    pub(super) async fn remove_other_addresses(
        &self,
        device: &Device,
        keep: Ipv4Net,
    ) -> Result<(), LinkError> {
        for message in self.ipv4_addresses().await? {
            let address = address_of(&message);
            if message.header.index != device.index || address == Some(keep) {
                continue;
            }
            let action = || format!("remove an old address of {}", device.name);
            let request = self.handle.address().del(message);
            request.execute().await.map_err(|e| failed(action(), &e))?;
        }
        Ok(())
    }

    /// The default routes of the main table, of one family.
    pub(super) async fn default_routes(
        &self,
        family: Family,
    ) -> Result<Vec<DefaultRoute>, LinkError> {
        let filter = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let all = self.handle.route().get(filter).execute();
        let defaults = all.try_filter_map(|message| std::future::ready(Ok(default_route(message))));
        defaults.try_collect().await.map_err(|e| failed("list the routes".to_owned(), &e))
    }

    /// Adds the default route through `gateway`.
    pub(super) async fn add_default_route(
        &self,
        device: &Device,
        gateway: IpAddr,
    ) -> Result<(), LinkError> {
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
                .output_interface(device.index)
                .gateway(gateway)
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
                .output_interface(device.index)
                .gateway(gateway)
                .build(),
        };
        let action = || format!("add the default route via {gateway} on {}", device.name);
        let request = self.handle.route().add(route);
        request.execute().await.map_err(|e| failed(action(), &e))
    }

    /// Removes a default route found before.
    pub(super) async fn delete_route(&self, route: DefaultRoute) -> Result<(), LinkError> {
        let request = self.handle.route().del(route.message);
        request.execute().await.map_err(|e| failed("remove a default route".to_owned(), &e))
    }
}

/// The address in the message.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    // On point-to-point links `Address` is the other side and `Local` ours; otherwise IPv6 has no
    // `Local`.
    let find =
        |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    let local = find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    let address = find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None });
    local.or(address)
}

/// The IPv4 address and prefix length in the message.
fn address_of(message: &AddressMessage) -> Option<Ipv4Net> {
    match own_address(message)? {
        IpAddr::V4(ip) => Ipv4Net::new(ip, message.header.prefix_len).ok(),
        IpAddr::V6(_) => None,
    }
}

fn default_route(message: RouteMessage) -> Option<DefaultRoute> {
    let header = &message.header;
    let unicast = header.kind == RouteType::Unicast && header.destination_prefix_length == 0;
    if !unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut route = DefaultRoute { device: None, gateway: None, source: None, message };
    for attribute in &route.message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some((*ip).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => route.gateway = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some(*ip),
            _ => {}
        }
    }
    Some(route)
}

/// The error number in a netlink error.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// A [`LinkError::Kernel`] with the kernel's own words.
pub(super) fn failed(action: String, error: &rtnetlink::Error) -> LinkError {
    match errno(error) {
        Some(number) => kernel(action, std::io::Error::from_raw_os_error(number)),
        None => kernel(action, error),
    }
}
