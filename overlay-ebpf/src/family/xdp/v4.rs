//! IPv4 in XDP.

use aya_ebpf::programs::XdpContext;
use overlay_common::{
    Be16, Mac, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD, checksum, hash,
    maps::{CachedNextHop, Config, Published},
    wire::{Ethernet, Ipv4, PROTO_SCTP, Udp},
};

use super::{XdpFamily, port_difference, rewrite_transport};
use crate::{
    family::V4,
    forward::route::{NextHop, next_hop},
    maps::work::{Area, area},
    packet::{
        ecn,
        frame::ETH_LEN,
        ipv4::{IPV4_LEN, check_ipv4},
        xdp_flow::flow,
        xdp_frame::{length, write},
    },
    service::{dsr, published},
    tunnel::vxlan,
};

impl XdpFamily for V4 {
    const OWN_FUNCTIONS: bool = false;
    type Head = (Ipv4, Udp);

    #[inline(always)]
    fn frontend_port(
        ctx: &XdpContext,
        config: &Config,
        (ip, udp): (Ipv4, Udp),
    ) -> Result<Option<(Ipv4, Published, Area)>, Reason> {
        if ip.protocol == PROTO_SCTP {
            return Ok(None);
        }
        let Some(published) = published::find_on_host(&ip, udp.dest) else { return Ok(None) };
        let length = length(ctx);
        check_ipv4(&ip, length - ETH_LEN as u32, false)?;
        // TC handles aggregates (generic XDP) and packets that do not fit the tunnel.
        if length + VXLAN_OVERHEAD > config.underlay_mtu + ETH_LEN as u32 {
            return Ok(None);
        }
        let mut work = area()?;
        flow(ctx, &ip, ETH_LEN, UNDERLAY_VNI, &mut work.flow)?;
        Ok(Some((ip, published, work)))
    }

    /// The backend's node sets the gateway's MAC, and checks the source address.
    #[inline(always)]
    fn inner_source(_ip: &Ipv4, _work: Area) -> Result<Mac, Reason> {
        Ok(Mac::default())
    }

    #[inline(always)]
    fn resolve() -> Result<(), Reason> {
        Ok(())
    }

    #[inline(always)]
    fn rewrite(ctx: &XdpContext, ip: &Ipv4, offset: usize, work: Area) -> Result<(), Reason> {
        let (key, entry) = (&work.flow.key, &work.entry);
        let addresses = checksum::diff32(key.saddr.raw(), entry.saddr.raw())
            + checksum::diff32(key.daddr.raw(), entry.daddr.raw());
        rewrite_transport(ctx, offset + IPV4_LEN, &work, addresses + port_difference(&work))?;
        let mut header = *ip;
        header.checksum = Be16::from_raw(checksum::apply(ip.checksum.raw(), addresses));
        header.src = entry.saddr.octets();
        header.dst = entry.daddr.octets();
        write(ctx, offset, header)
    }

    #[inline(always)]
    fn total_length(ip: &Ipv4, _work: Area) -> u32 {
        ip.total_length.get().into()
    }

    #[inline(always)]
    fn next_hop(
        ctx: &XdpContext,
        config: &Config,
        total: u32,
        work: Area,
    ) -> Result<NextHop, Reason> {
        next_hop(ctx.ctx.cast(), config, (work.entry.saddr, work.entry.daddr), total)
    }

    #[inline(always)]
    fn write_headers(
        ctx: &XdpContext,
        config: &Config,
        hop: &CachedNextHop,
        ip: &Ipv4,
        (source, length): (Mac, u32),
        work: Area,
    ) -> Result<(), Reason> {
        let backend = &work.backend;
        let inner = Ethernet { dst: backend.mac, src: source, ..hop.ethernet };
        let inner = dsr::header(&work, inner);
        let key = &work.flow.key;
        let flow_hash = hash::of_flow(key.saddr, key.daddr, [key.sport, key.dport]);
        let tunnel = (backend.vni, flow_hash, ecn::outer(ip.tos));
        write(ctx, 0, vxlan::headers(config, hop.ethernet, backend.node, tunnel, (inner, length)))
    }
}
