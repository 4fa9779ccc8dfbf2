//! Answers neighbour solicitations (RFC 4861) on the node of the sender, like ARP. No message of
//! neighbour discovery leaves the host, and no forged one reaches another container.

use aya_ebpf::{
    bindings::__sk_buff,
    cty::c_void,
    helpers::{bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use overlay_common::{
    Be16, Ip6, Mac, Reason, checksum,
    maps::{ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint, Link},
    wire::{
        Advertisement, ETHERTYPE_IPV6, Ethernet, LinkLayerOption, ND_ADVERTISEMENT,
        ND_OPTION_SOURCE, ND_OPTION_TARGET, ND_OVERRIDE, ND_ROUTER, ND_SOLICITED, Neighbour,
        PROTO_ICMPV6,
    },
};

use crate::{
    forward::deliver::back_out,
    maps::{
        LINKS6,
        endpoint::find6,
        lookup,
        work::{Ipv6Work, work},
    },
    outcome::{self, Outcome},
    packet::{
        frame::{ETH_LEN, ifindex, load_into, store},
        ipv6::IPV6_LEN,
    },
};

/// Length of an advertisement's frame.
const LENGTH: u32 = (ETH_LEN + size_of::<Advertisement>()) as u32;
/// Bytes from the IPv6 header to the first option.
const OPTION: usize = IPV6_LEN + size_of::<Neighbour>();
/// Payload of an advertisement: its ICMPv6 message with one option.
const PAYLOAD: u16 = (size_of::<Neighbour>() + size_of::<LinkLayerOption>()) as u16;
/// The hop limit that proves that a message comes from a neighbour (RFC 4861, section 3.1).
const HOP_LIMIT: u8 = 255;
/// MAC of [`Ip6::ALL_NODES`] (RFC 2464, section 7).
const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

/// Answers a solicitation from the container behind `work.ipv6.link` for an address of an endpoint,
/// a VIP or the gateway of its network. Its source address is checked already: the container's own,
/// its link-local one, or none (duplicate address detection, RFC 4862, section 5.4).
#[inline(always)]
pub fn answer(ctx: &TcContext) -> Outcome {
    outcome::unpack(answer_packed(ctx.skb.skb))?;
    Ok(back_out(ctx, Reason::NdAnswered))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(rewrite(&TcContext::new(skb)).map(|()| 0))
}

/// Turns the solicitation into an advertisement in the work area, because the stack has no room for
/// both.
#[inline(always)]
fn rewrite(ctx: &TcContext) -> Result<(), Reason> {
    let work = &mut work()?.ipv6;
    let Link { vni, mac, .. } = work.link;
    read(ctx, &mut work.advertisement)?;
    check(&work.advertisement, mac)?;
    let target = work.advertisement.neighbour.target;
    // A container that probes for its own address must get no answer.
    if target == lookup(&LINKS6, &ifindex(ctx)).ok_or(Reason::UnsupportedProtocol)?.ip
        || target == Ip6::link_local(mac)
    {
        return Err(Reason::NdUnknown);
    }
    let kind = find6(work, vni, target);
    if !matches!(kind, Some(ENDPOINT_LOCAL | ENDPOINT_REMOTE | ENDPOINT_GATEWAY | ENDPOINT_SERVICE))
    {
        return Err(Reason::NdUnknown);
    }
    let Ipv6Work { advertisement, endpoint, .. } = work;
    let is_probe = advertise(advertisement, endpoint);
    if ctx.len() != LENGTH {
        // SAFETY: the context is the program's own.
        if unsafe { bpf_skb_change_tail(ctx.skb.skb, LENGTH, 0) } != 0 {
            return Err(Reason::RewriteRefused);
        }
    }
    store(ctx, ETH_LEN, advertisement)?;
    let to = if is_probe { ALL_NODES_MAC } else { mac };
    let ethertype = Be16::new(ETHERTYPE_IPV6);
    store(ctx, 0, &Ethernet { dst: to, src: endpoint.mac, ethertype })
}

/// Copies the solicitation up to its first option. Without an option, its kind is 0.
#[inline(always)]
fn read(ctx: &TcContext, message: &mut Advertisement) -> Result<(), Reason> {
    let skb: *const c_void = ctx.skb.skb.cast();
    let start = (&raw mut *message).cast::<c_void>();
    // SAFETY: the message has this many bytes before its option.
    let read = unsafe { bpf_skb_load_bytes(skb, ETH_LEN as u32, start, OPTION as u32) };
    let payload = message.ipv6.payload_length.get();
    if read != 0 || usize::from(payload) < size_of::<Neighbour>() {
        return Err(Reason::Truncated);
    }
    message.option = LinkLayerOption { length: 1, ..LinkLayerOption::default() };
    if payload >= PAYLOAD {
        load_into(ctx, ETH_LEN + OPTION, &mut message.option)?;
    }
    Ok(())
}

/// Checks a solicitation (RFC 4861, section 7.1.1), except for its checksum: a wrong one harms only
/// the container that gets the answer. `mac` is the container's MAC, the only one that it may
/// announce.
#[inline(always)]
fn check(message: &Advertisement, mac: Mac) -> Result<(), Reason> {
    let Advertisement { ipv6, neighbour, option } = message;
    if ipv6.hop_limit != HOP_LIMIT
        || neighbour.code != 0
        || neighbour.target.is_group()
        || option.length == 0
    {
        return Err(Reason::Malformed);
    }
    let tells = option.kind == ND_OPTION_SOURCE;
    let is_probe = ipv6.src == Ip6::UNSPECIFIED;
    if is_probe && (tells || !ipv6.dst.is_solicited_node()) {
        return Err(Reason::Malformed);
    }
    if tells && option.mac != mac {
        return Err(Reason::SpoofedSource);
    }
    Ok(())
}

/// Turns a solicitation into the answer of `endpoint`. Returns whether it was a probe without a
/// source address: then the answer goes to all nodes (RFC 4861, section 7.2.4).
#[inline(always)]
fn advertise(message: &mut Advertisement, endpoint: &Endpoint) -> bool {
    let Advertisement { ipv6, neighbour, option } = message;
    let is_probe = ipv6.src == Ip6::UNSPECIFIED;
    ipv6.version_class_flow = [0x60, 0, 0, 0];
    ipv6.payload_length = Be16::new(PAYLOAD);
    ipv6.next_header = PROTO_ICMPV6;
    ipv6.hop_limit = HOP_LIMIT;
    ipv6.dst = if is_probe { Ip6::ALL_NODES } else { ipv6.src };
    ipv6.src = neighbour.target;
    let router = if endpoint.kind == ENDPOINT_GATEWAY { ND_ROUTER } else { 0 };
    let solicited = if is_probe { 0 } else { ND_SOLICITED };
    neighbour.kind = ND_ADVERTISEMENT;
    neighbour.code = 0;
    neighbour.checksum = Be16::ZERO;
    neighbour.flags = router | solicited | ND_OVERRIDE;
    neighbour.reserved = [0; 3];
    *option = LinkLayerOption { kind: ND_OPTION_TARGET, length: 1, mac: endpoint.mac };
    message.neighbour.checksum = Be16::from_raw(icmpv6_checksum(message));
    is_probe
}

/// The checksum of the message, which also covers the pseudo-header (RFC 4443, section 2.3; RFC
/// 8200, section 8.1).
#[inline(always)]
fn icmpv6_checksum(message: &Advertisement) -> u16 {
    let Advertisement { ipv6, neighbour, option } = message;
    let [a, b, c, d, e, f] = option.mac.bytes();
    let sum = ipv6.src.sum()
        + ipv6.dst.sum()
        + neighbour.target.sum()
        + word(0, PROTO_ICMPV6)
        + u64::from(Be16::new(PAYLOAD).raw())
        + word(neighbour.kind, neighbour.code)
        + word(neighbour.flags, 0)
        + word(option.kind, option.length)
        + word(a, b)
        + word(c, d)
        + word(e, f);
    !checksum::fold(sum)
}

#[inline(always)]
fn word(a: u8, b: u8) -> u64 {
    u64::from(u16::from_ne_bytes([a, b]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::wire::{Ipv6, ND_SOLICITATION};

    const MAC: Mac = Mac::new([2, 0x42, 10, 0, 1, 2]);

    fn ip6(text: &str) -> Ip6 {
        text.parse::<core::net::Ipv6Addr>().expect("an address").into()
    }

    fn solicitation() -> Advertisement {
        Advertisement {
            ipv6: Ipv6 {
                version_class_flow: [0x60, 0, 0, 0],
                payload_length: Be16::new(32),
                next_header: PROTO_ICMPV6,
                hop_limit: 255,
                src: ip6("fd00::2"),
                dst: ip6("ff02::1:ff00:3"),
            },
            neighbour: Neighbour {
                kind: ND_SOLICITATION,
                target: ip6("fd00::3"),
                ..Neighbour::default()
            },
            option: LinkLayerOption { kind: ND_OPTION_SOURCE, length: 1, mac: MAC },
        }
    }

    fn changed(change: impl FnOnce(&mut Advertisement)) -> Result<(), Reason> {
        let mut frame = solicitation();
        change(&mut frame);
        check(&frame, MAC)
    }

    #[test]
    fn a_solicitation_is_held_to_rfc_4861() {
        assert_eq!(changed(|_| ()), Ok(()));
        let malformed = Err(Reason::Malformed);
        assert_eq!(changed(|f| f.ipv6.hop_limit = 254), malformed);
        assert_eq!(changed(|f| f.neighbour.code = 1), malformed);
        assert_eq!(changed(|f| f.neighbour.target = ip6("ff02::1")), malformed);
        assert_eq!(changed(|f| f.option.length = 0), malformed);
    }

    #[test]
    fn a_solicitation_tells_the_containers_own_mac_or_none() {
        let other = Mac::new([2; 6]);
        assert_eq!(changed(|f| f.option.mac = other), Err(Reason::SpoofedSource));
        let nonce = LinkLayerOption { kind: 14, length: 1, mac: other };
        assert_eq!(changed(|f| f.option = nonce), Ok(()));
    }

    #[test]
    fn a_probe_for_duplicates_goes_to_the_solicited_node_and_tells_no_mac() {
        let probe = |change: fn(&mut Advertisement)| {
            changed(|frame| {
                frame.ipv6.src = Ip6::UNSPECIFIED;
                frame.option.kind = 0;
                change(frame);
            })
        };
        assert_eq!(probe(|_| ()), Ok(()));
        assert_eq!(probe(|f| f.option.kind = ND_OPTION_SOURCE), Err(Reason::Malformed));
        assert_eq!(probe(|f| f.ipv6.dst = f.neighbour.target), Err(Reason::Malformed));
    }

    #[test]
    fn an_advertisement_has_the_router_and_solicited_flags() {
        let gateway = Endpoint { kind: ENDPOINT_GATEWAY, mac: MAC, ..Endpoint::default() };
        let mut told = solicitation();
        assert!(!advertise(&mut told, &gateway));
        assert_eq!(told.neighbour.flags, 0xe0);
        assert_eq!((told.ipv6.src, told.ipv6.dst), (ip6("fd00::3"), ip6("fd00::2")));
        let host = Endpoint { kind: ENDPOINT_LOCAL, ..gateway };
        let mut told = solicitation();
        told.ipv6.src = Ip6::UNSPECIFIED;
        assert!(advertise(&mut told, &host), "a probe");
        assert_eq!(told.neighbour.flags, 0x20);
        assert_eq!(told.ipv6.dst, ip6("ff02::1"));
    }
}
