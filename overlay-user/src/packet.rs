//! Readable form of a packet's headers. A truncated packet is read as far as it goes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use overlay_common::wire::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP,
};
use serde::{Deserialize, Serialize};

/// Ethertype of IPv6 (RFC 2464, section 3).
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Next header of ICMPv6 (RFC 4443, section 1).
const PROTO_ICMPV6: u8 = 58;

/// The headers of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    /// Source MAC address.
    pub source_mac: String,
    /// Destination MAC address.
    pub destination_mac: String,
    /// Protocol of the frame's payload.
    pub ethertype: u16,
    /// Source address; for ARP the sender's address.
    pub source: Option<IpAddr>,
    /// Destination address; for ARP the target address.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source port of TCP or UDP.
    pub source_port: Option<u16>,
    /// Destination port of TCP or UDP.
    pub destination_port: Option<u16>,
    /// TCP flags: S, A, F, R, P, U.
    pub tcp_flags: Option<String>,
    /// Type and code of ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// ARP operation: 1 for a request, 2 for a reply.
    pub arp: Option<u16>,
    /// VNI of VXLAN.
    pub vni: Option<u32>,
    /// Headers of the tunnel's payload.
    pub inner: Option<Box<Headers>>,
}

fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

fn half(packet: &[u8], at: usize) -> Option<u16> {
    bytes(packet, at).map(u16::from_be_bytes)
}

fn mac(bytes: [u8; 6]) -> String {
    overlay_common::Mac::new(bytes).to_string()
}

impl Headers {
    /// Reads the headers of an Ethernet frame. UDP to `vxlan_port` is a tunnel.
    pub fn read(packet: &[u8], vxlan_port: Option<u16>) -> Option<Self> {
        let mut headers = Self {
            destination_mac: mac(bytes(packet, 0)?),
            source_mac: mac(bytes(packet, 6)?),
            ethertype: half(packet, 12)?,
            ..Self::default()
        };
        // A missing header ends the parsing. The headers before it stay.
        let _ = match headers.ethertype {
            ETHERTYPE_ARP => headers.read_arp(packet),
            ETHERTYPE_IPV4 => headers.read_ipv4(packet, vxlan_port),
            ETHERTYPE_IPV6 => headers.read_ipv6(packet, vxlan_port),
            _ => None,
        };
        Some(headers)
    }

    fn read_arp(&mut self, packet: &[u8]) -> Option<()> {
        self.arp = Some(half(packet, 20)?);
        self.source = Some(Ipv4Addr::from(bytes::<4>(packet, 28)?).into());
        self.destination = Some(Ipv4Addr::from(bytes::<4>(packet, 38)?).into());
        Some(())
    }

    fn read_ipv4(&mut self, packet: &[u8], vxlan_port: Option<u16>) -> Option<()> {
        self.source = Some(Ipv4Addr::from(bytes::<4>(packet, 26)?).into());
        self.destination = Some(Ipv4Addr::from(bytes::<4>(packet, 30)?).into());
        let [protocol] = bytes(packet, 23)?;
        self.protocol = Some(protocol);
        let [first] = bytes(packet, 14)?;
        // Only the first fragment has ports.
        if half(packet, 20)? & 0x1fff != 0 {
            return None;
        }
        self.read_transport(packet, 14 + usize::from(first & 0xf) * 4, vxlan_port)
    }

    fn read_ipv6(&mut self, packet: &[u8], vxlan_port: Option<u16>) -> Option<()> {
        self.source = Some(Ipv6Addr::from(bytes::<16>(packet, 22)?).into());
        self.destination = Some(Ipv6Addr::from(bytes::<16>(packet, 38)?).into());
        let [protocol] = bytes(packet, 20)?;
        self.protocol = Some(protocol);
        self.read_transport(packet, 54, vxlan_port)
    }

    fn read_transport(&mut self, packet: &[u8], at: usize, vxlan_port: Option<u16>) -> Option<()> {
        match self.protocol? {
            PROTO_ICMP | PROTO_ICMPV6 => {
                let [kind, code] = bytes(packet, at)?;
                self.icmp = Some((kind, code));
            }
            PROTO_TCP => {
                self.read_ports(packet, at)?;
                let [flags] = bytes(packet, at + 13)?;
                // RFC 9293, section 3.1.
                let names = ['F', 'S', 'R', 'P', 'A', 'U'];
                let set = names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
                self.tcp_flags = Some(set.map(|(_, name)| *name).collect());
            }
            PROTO_SCTP => self.read_ports(packet, at)?,
            PROTO_UDP => {
                self.read_ports(packet, at)?;
                if vxlan_port.is_some() && self.destination_port == vxlan_port {
                    let [_, _, _, _, a, b, c, _] = bytes(packet, at + 8)?;
                    self.vni = Some(u32::from_be_bytes([0, a, b, c]));
                    self.inner = Self::read(packet.get(at + 16..)?, None).map(Box::new);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn read_ports(&mut self, packet: &[u8], at: usize) -> Option<()> {
        self.source_port = Some(half(packet, at)?);
        self.destination_port = Some(half(packet, at + 2)?);
        Some(())
    }

    /// Returns the headers inside the tunnel if there is one, else the outer headers.
    pub fn innermost(&self) -> &Self {
        self.inner.as_deref().unwrap_or(self)
    }
}

/// Returns the name of an IP protocol, or its number if no name is listed here.
pub fn protocol_name(number: u8) -> String {
    match number {
        PROTO_ICMP => "icmp".to_owned(),
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        PROTO_SCTP => "sctp".to_owned(),
        PROTO_ICMPV6 => "icmp6".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn place(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(source), Some(destination)) = (self.source, self.destination) else {
            let Self { source_mac, destination_mac, ethertype, .. } = self;
            return write!(f, "{source_mac} > {destination_mac} ethertype 0x{ethertype:04x}");
        };
        match self.arp {
            Some(1) => return write!(f, "arp {source} asks for {destination}"),
            Some(2) => return write!(f, "arp {source} answers {destination}"),
            Some(other) => return write!(f, "arp operation {other} of {source} to {destination}"),
            None => {}
        }
        let protocol = self.protocol.map_or_else(|| "ip".to_owned(), protocol_name);
        let from = place(source, self.source_port);
        write!(f, "{protocol} {from} > {}", place(destination, self.destination_port))?;
        match (self.protocol, self.icmp) {
            (_, None) => {}
            (Some(PROTO_ICMP), Some((8, 0))) | (_, Some((128, 0))) => write!(f, " echo request")?,
            (Some(PROTO_ICMP), Some((0, 0))) | (_, Some((129, 0))) => write!(f, " echo reply")?,
            (_, Some((kind, code))) => write!(f, " type {kind} code {code}")?,
        }
        if let Some(flags) = self.tcp_flags.as_ref().filter(|flags| !flags.is_empty()) {
            write!(f, " [{flags}]")?;
        }
        if let Some(vni) = self.vni {
            write!(f, " vxlan {vni}")?;
        }
        match &self.inner {
            Some(inner) => write!(f, " | {inner}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds Ethernet and IPv4 headers with this payload.
    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
        packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend([10, 0, 1, 2, 10, 0, 1, 3]);
        packet.extend(payload);
        packet
    }

    fn shown(packet: &[u8]) -> String {
        Headers::read(packet, Some(4789)).expect("an Ethernet header").to_string()
    }

    #[test]
    fn every_kind_of_packet_is_told_in_a_line() {
        let syn = [0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12];
        assert_eq!(shown(&ipv4(6, &syn)), "tcp 10.0.1.2:40000 > 10.0.1.3:80 [SA]");
        assert_eq!(shown(&ipv4(17, &[0x9c, 0x40, 0, 53])), "udp 10.0.1.2:40000 > 10.0.1.3:53");
        assert_eq!(shown(&ipv4(1, &[8, 0])), "icmp 10.0.1.2 > 10.0.1.3 echo request");
        assert_eq!(shown(&ipv4(1, &[3, 4])), "icmp 10.0.1.2 > 10.0.1.3 type 3 code 4");
        assert_eq!(shown(&ipv4(132, &[0, 7, 0, 8])), "sctp 10.0.1.2:7 > 10.0.1.3:8");
        assert_eq!(shown(&ipv4(47, &[])), "protocol 47 10.0.1.2 > 10.0.1.3");
        let mut arp = vec![0xff; 6];
        arp.extend([2, 0, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([2, 0, 0, 0, 0, 2, 10, 0, 1, 2, 0, 0, 0, 0, 0, 0, 10, 0, 1, 9]);
        assert_eq!(shown(&arp), "arp 10.0.1.2 asks for 10.0.1.9");
        let mut ipv6 = vec![0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        ipv6.extend([0x60, 0, 0, 0, 0, 8, 58, 255]);
        ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        ipv6.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        ipv6.extend([133, 0]);
        assert_eq!(shown(&ipv6), "icmp6 fe80::1 > ff02::2 type 133 code 0");
        let stp = [&[1_u8; 12][..], &[0x88, 0xcc]].concat();
        assert_eq!(shown(&stp), "01:01:01:01:01:01 > 01:01:01:01:01:01 ethertype 0x88cc");
    }

    #[test]
    fn a_tunnel_packet_shows_what_it_carries() {
        let inner = ipv4(1, &[8, 0]);
        let outer = [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x10, 1, 0];
        let packet = ipv4(17, &[&outer[..], &inner].concat());
        let headers = Headers::read(&packet, Some(4789)).expect("read");
        assert_eq!(headers.vni, Some(4097));
        assert_eq!(headers.innermost().icmp, Some((8, 0)));
        assert_eq!(
            headers.to_string(),
            "udp 10.0.1.2:49152 > 10.0.1.3:4789 vxlan 4097 | icmp 10.0.1.2 > 10.0.1.3 echo request"
        );
        assert!(Headers::read(&packet, Some(4790)).expect("read").inner.is_none());
    }

    #[test]
    fn a_packet_that_ends_anywhere_is_shown_up_to_there() {
        let syn = [0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12];
        let packet = ipv4(6, &syn);
        for length in 0..packet.len() {
            let headers = Headers::read(&packet[..length], Some(4789));
            assert_eq!(headers.is_some(), length >= 14, "{length} bytes");
        }
        assert_eq!(shown(&packet[..34]), "tcp 10.0.1.2 > 10.0.1.3");
        let mut later = packet;
        later[21] = 7;
        assert_eq!(shown(&later), "tcp 10.0.1.2 > 10.0.1.3", "a later fragment has no ports");
    }
}
