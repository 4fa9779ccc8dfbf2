//! Answers ARP on the node of the sender: no request leaves the host.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Reason,
    maps::{EndpointKey, Link},
    wire::{ARP_REPLY, ARP_REQUEST, Arp, ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet},
};

use crate::{
    forward::deliver::back_out,
    maps::{ENDPOINTS, lookup},
    outcome::Outcome,
    packet::frame::{ETH_LEN, load, store},
};

/// Answers a request from the container behind `link` for any known address of its network: of
/// another endpoint, the gateway or a VIP.
#[inline(always)]
pub fn answer(ctx: &TcContext, link: &Link) -> Outcome {
    let request: Arp = load(ctx, ETH_LEN)?;
    let sender = Be32::from_octets(request.sender_ip);
    let target = Be32::from_octets(request.target_ip);
    check(&request, link)?;
    // A container that probes for its own address (RFC 5227) must get no answer.
    if target == link.ip {
        return Err(Reason::ArpUnknown);
    }
    let endpoint =
        lookup(&ENDPOINTS, &EndpointKey { vni: link.vni, ip: target }).ok_or(Reason::ArpUnknown)?;
    let reply = Arp {
        operation: Be16::new(ARP_REPLY),
        sender_mac: endpoint.mac,
        sender_ip: target.octets(),
        target_mac: link.mac,
        target_ip: sender.octets(),
        ..request
    };
    store(ctx, ETH_LEN, &reply)?;
    let ethernet =
        Ethernet { dst: link.mac, src: endpoint.mac, ethertype: Be16::new(ETHERTYPE_ARP) };
    store(ctx, 0, &ethernet)?;
    Ok(back_out(ctx, Reason::ArpAnswered))
}

/// Checks that the request is well-formed and names its real sender (0.0.0.0 in a probe).
#[inline(always)]
fn check(request: &Arp, link: &Link) -> Result<(), Reason> {
    if request.hardware.get() != 1
        || request.protocol.get() != ETHERTYPE_IPV4
        || request.hardware_len != 6
        || request.protocol_len != 4
    {
        return Err(Reason::Malformed);
    }
    if request.operation.get() != ARP_REQUEST {
        return Err(Reason::ArpUnknown);
    }
    let sender = Be32::from_octets(request.sender_ip);
    if request.sender_mac != link.mac || (sender != link.ip && sender != Be32::ZERO) {
        return Err(Reason::SpoofedSource);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::Mac;

    const LINK: Link = Link {
        vni: 4097,
        ip: Be32::from_octets([10, 0, 1, 2]),
        mac: Mac::new([2, 0x42, 10, 0, 1, 2]),
        flags: 0,
        counter: 0,
    };

    fn request() -> Arp {
        Arp {
            hardware: Be16::new(1),
            protocol: Be16::new(ETHERTYPE_IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: Be16::new(ARP_REQUEST),
            sender_mac: LINK.mac,
            sender_ip: [10, 0, 1, 2],
            target_mac: Mac::default(),
            target_ip: [10, 0, 1, 3],
        }
    }

    #[test]
    fn only_the_links_own_addresses_may_ask() {
        assert_eq!(check(&request(), &LINK), Ok(()));
        assert_eq!(check(&Arp { sender_ip: [0; 4], ..request() }, &LINK), Ok(()), "a probe");
        let other_ip = Arp { sender_ip: [10, 0, 1, 9], ..request() };
        assert_eq!(check(&other_ip, &LINK), Err(Reason::SpoofedSource));
        let other_mac = Arp { sender_mac: Mac::new([2; 6]), ..request() };
        assert_eq!(check(&other_mac, &LINK), Err(Reason::SpoofedSource));
    }

    #[test]
    fn only_requests_for_ipv4_over_ethernet_are_answered() {
        let reply = Arp { operation: Be16::new(ARP_REPLY), ..request() };
        assert_eq!(check(&reply, &LINK), Err(Reason::ArpUnknown));
        for bad in [
            Arp { hardware: Be16::new(6), ..request() },
            Arp { protocol: Be16::new(0x86dd), ..request() },
            Arp { hardware_len: 8, ..request() },
            Arp { protocol_len: 16, ..request() },
        ] {
            assert_eq!(check(&bad, &LINK), Err(Reason::Malformed));
        }
    }
}
