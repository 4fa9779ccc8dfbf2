//! The tunnel: outer headers (RFC 7348), the ECN field (RFC 6040), and the kernel encap and decap
//! fallback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{BRIDGE_VNI, Reason, UNDERLAY_VNI};

use super::{
    bytes::{ETHERNET, Ethernet, IPV4, TCP, TUNNEL, TUNNEL6, UDP, bytes, half, put, updated},
    host::NextHop,
    icmp::header,
    packet::Ip,
    walk::{End, Outcome, Walk},
};

/// The destination of a packet in the tunnel.
#[derive(Clone, Copy)]
pub struct Way {
    /// The network.
    pub vni: u32,
    /// The node.
    pub node: Ipv4Addr,
    /// The Ethernet header inside.
    pub inner: Ethernet,
}

/// The ECN field after decapsulation (RFC 6040, section 4.2, figure 4); `None` for a drop.
fn combined(inner: u8, outer: u8) -> Option<u8> {
    // Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.
    match (inner, outer) {
        (0, 3) => None,
        (1 | 2, 3) => Some(3),
        (2, 1) => Some(1),
        (inner, _) => Some(inner),
    }
}

impl Walk<'_> {
    /// Length of the outer headers.
    pub fn tunnel_length(&self) -> usize {
        if self.tables.ipv6 { TUNNEL6 } else { TUNNEL }
    }

    /// The VNI of a tunnel packet.
    pub fn vni(&self) -> Result<u32, Reason> {
        let header: [u8; 8] =
            bytes(&self.frame, self.tunnel_length() - 8).ok_or(Reason::Truncated)?;
        // The I flag; everything else but the 24 bits is ignored (RFC 7348, section 5).
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        if header[0] & 0x08 == 0 || vni == UNDERLAY_VNI || vni == BRIDGE_VNI {
            return Err(Reason::InvalidVni);
        }
        Ok(vni)
    }

    /// The address of a node on the underlay, if it is known.
    fn vtep(&self, node: Ipv4Addr) -> Option<IpAddr> {
        if !self.tables.ipv6 {
            return Some(node.into());
        }
        let vtep = self.tables.agent.vteps6.get(&node.into())?;
        Some(Ipv6Addr::from(*vtep).into())
    }

    /// Into the tunnel to a node.
    pub fn tunnel(&mut self, way: Way) -> Outcome {
        let total = self.longest() + self.tunnel_length();
        let vtep = self.vtep(way.node).ok_or(Reason::NoRoute)?;
        let hop = match self.host.next_hop(&self.tables.config, vtep, total) {
            Err(Reason::TooBig) => return self.kernel_encap(way.inner, Reason::TooBig),
            hop => hop?,
        };
        if self.segment != 0 {
            return self.kernel_encap(way.inner, Reason::TunnelRefused);
        }
        self.push(way, &hop);
        Ok(End::Sent(Reason::Encapsulated))
    }

    /// "What is too big and has no DF is given to the kernel's vxlan device, which fragments
    /// outside". The kernel also takes packets that the programs cannot push headers onto:
    /// "aggregates other than TCP's and UDP's". The aggregates of BPF_PROG_TEST_RUN are such
    /// packets, whatever they contain.
    fn kernel_encap(&mut self, inner: Ethernet, refused: Reason) -> Outcome {
        let has_df = half(&self.frame, ETHERNET + 6).is_some_and(|field| field & 0x4000 != 0);
        let is_whole = match inner.kind {
            // "The kernel makes no fragments of tunnel packets over IPv6."
            _ if self.tables.ipv6 => true,
            IPV4 => has_df,
            // Routers do not fragment IPv6 packets, but every link carries 1280 bytes (RFC 8200,
            // section 5).
            _ => self.longest() > 1280,
        };
        let stays_whole = is_whole && refused == Reason::TooBig;
        if stays_whole || self.tables.config.vxlan_ifindex == 0 {
            return Err(refused);
        }
        put(&mut self.frame, 0, &inner.bytes());
        Ok(End::Sent(Reason::KernelEncap))
    }

    /// Puts the outer headers in front (RFC 7348, section 5). The source port and the flow label
    /// stay zero here: the kernel's hash decides them. There is no UDP checksum (RFC 6935).
    pub fn push(&mut self, way: Way, hop: &NextHop) {
        let [first, second] = [self.frame[ETHERNET], self.frame[ETHERNET + 1]];
        // IPv4 has the ECN field at the end of its second byte, IPv6 in the middle of it.
        let ecn = if first >> 4 == 6 { second >> 4 & 3 } else { second & 3 };
        put(&mut self.frame, 0, &way.inner.bytes());
        let config = self.tables.config;
        let own: IpAddr = if self.tables.ipv6 {
            Ipv6Addr::from(config.vtep6).into()
        } else {
            Ipv4Addr::from(config.vtep).into()
        };
        let vtep = self.vtep(way.node).expect("it has a next hop");
        let length = self.frame.len() + 16;
        let (src, dst) = hop.macs;
        let mut frame = Ethernet::of_ip(src, dst, self.tables.ipv6).bytes().to_vec();
        frame.extend(header([own, vtep], UDP, (ecn, length)));
        frame.extend([0, 0]);
        frame.extend(config.vxlan_port.get().to_be_bytes());
        frame.extend((length as u16).to_be_bytes());
        frame.extend([0, 0, 0x08, 0, 0, 0]);
        frame.extend((way.vni << 8).to_be_bytes());
        frame.append(&mut self.frame);
        self.frame = frame;
    }

    /// "What routers of the underlay marked reaches the receiver" (RFC 6040, figure 4).
    pub fn combine(&mut self, outer: u8, ip: &Ip) -> Result<(), Reason> {
        let ecn = combined(ip.ecn, outer).ok_or(Reason::EcnUnexpected)?;
        let [first, second] = [self.frame[ip.at], self.frame[ip.at + 1]];
        if ip.is_ipv6() {
            // Bits 10 and 11 of the header (RFC 8200, section 3; RFC 3168, section 5).
            self.frame[ip.at + 1] = second & 0xcf | ecn << 4;
        } else if ecn != ip.ecn {
            let sum = half(&self.frame, ip.at + 10).ok_or(Reason::Truncated)?;
            let new = [first, second & 0xfc | ecn];
            put(&mut self.frame, ip.at + 10, &updated(sum, &[first, second], &new).to_be_bytes());
            put(&mut self.frame, ip.at, &new);
        }
        Ok(())
    }

    /// Removes the outer headers. Those of aggregates are left to the kernel's device, as above,
    /// and "TCP between containers does not take this way, and UDP not where the kernel knows the
    /// flag". `leaves` says that the packet goes out of the host.
    pub fn pop(&mut self, ip: &Ip, leaves: bool) -> Result<(), Reason> {
        if self.segment == 0 {
            self.frame.drain(..self.tunnel_length());
            return Ok(());
        }
        let (flags, outer, inner) =
            (self.tables.config.decap_flags, self.tables.ipv6, ip.is_ipv6());
        let protocol = ip.protocol;
        let is_popped = protocol == TCP || (protocol == UDP && flags != 0);
        // The kernel learns the inner family if the mark of the aggregate cannot stay.
        let keeps_mark = flags == 0 && (leaves || (!inner && protocol != TCP));
        if outer == inner || !is_popped || keeps_mark {
            return Err(Reason::TunnelRefused);
        }
        // The aggregates of BPF_PROG_TEST_RUN have no protocol, whatever they contain. The kernel
        // rejects them if the packet already has the inner family, since that family's header has
        // another length.
        if inner {
            self.frame.extend([0; 20]);
        } else {
            self.frame.drain(ETHERNET..ETHERNET + 20);
        }
        Err(Reason::RewriteRefused)
    }

    /// A packet that stays in the tunnel, for the kernel's device. Its reserved bits are cleared,
    /// because the device would reject them.
    pub fn kernel_decap(&mut self) -> Outcome {
        let vni = self.vni()?;
        let header = [&[0x08, 0, 0, 0][..], &(vni << 8).to_be_bytes()].concat();
        let at = self.tunnel_length() - 8;
        put(&mut self.frame, at, &header);
        Ok(End::Left(Reason::KernelDecap))
    }

    /// The Ethernet header inside.
    pub fn inner(&self) -> Result<Ethernet, Reason> {
        Ethernet::at(&self.frame, self.tunnel_length())
    }
}
