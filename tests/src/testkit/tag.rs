//! `tag-send` and `tag-recv`: frames with a VLAN tag through packet sockets, for kernels that have
//! no VLAN interfaces as well (packet(7)).

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use etherparse::PacketBuilder;
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use overlay_common::Mac;
use serde::{Deserialize, Serialize};

use super::Report;

/// The payload of the frames.
const SAID: &[u8] = b"a frame with a tag";
/// `ETH_P_ALL` of linux/if_ether.h, in network order.
const EVERYTHING: u16 = 0x0003_u16.to_be();
/// `TP_STATUS_VLAN_VALID` of linux/if_packet.h.
const VLAN_VALID: u32 = 1 << 4;

/// Parameters of `tag-send`.
#[derive(Clone, Debug, Args)]
pub struct SendArgs {
    /// Interface to send from.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// VLAN.
    #[arg(long)]
    vlan: u16,
    /// Address to send from. The MACs are those of the addresses.
    #[arg(long)]
    from: Ipv4Addr,
    /// Address to send to.
    #[arg(long)]
    to: Ipv4Addr,
}

/// Parameters of `tag-recv`.
#[derive(Clone, Debug, Args)]
pub struct ReceiveArgs {
    /// VLAN to listen to.
    #[arg(long)]
    vlan: u16,
    /// Milliseconds without a frame that make a failure.
    #[arg(long, default_value_t = 15_000)]
    timeout_ms: u64,
}

/// Frames sent or received.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tagged {
    /// How many.
    pub frames: u32,
}

impl Report for Tagged {
    fn good(&self) -> bool {
        self.frames > 0
    }
}

fn packet_socket() -> anyhow::Result<OwnedFd> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("a packet socket (needs root)")
}

/// The address of an interface for a packet socket.
fn link_address(interface: &str) -> anyhow::Result<libc::sockaddr_ll> {
    let index = nix::net::if_::if_nametoindex(interface).context(interface.to_owned())?;
    // SAFETY: a structure of integers, for which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = EVERYTHING;
    address.sll_ifindex = i32::try_from(index)?;
    Ok(address)
}

fn checked(status: isize, what: &str) -> anyhow::Result<usize> {
    usize::try_from(status).map_err(|_| io::Error::last_os_error()).context(what.to_owned())
}

/// Sends a tagged UDP datagram.
pub fn send(args: &SendArgs) -> anyhow::Result<Tagged> {
    let mac = |ip: Ipv4Addr| Mac::of_ip(ip.into()).bytes();
    let vlan = args.vlan.try_into().context("a VLAN below 4096")?;
    let packet = PacketBuilder::ethernet2(mac(args.from), mac(args.to))
        .single_vlan(vlan)
        .ipv4(args.from.octets(), args.to.octets(), 64)
        .udp(9, 9);
    let mut frame = Vec::new();
    packet.write(&mut frame, SAID)?;
    let (socket, address) = (packet_socket()?, link_address(&args.interface)?);
    // SAFETY: the frame and the address live through the call and have the stated lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    checked(sent as isize, "send a frame")?;
    Ok(Tagged { frames: 1 })
}

/// Receives one such frame on any interface.
pub fn receive(args: &ReceiveArgs) -> anyhow::Result<Tagged> {
    let socket = packet_socket()?;
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(set as isize, "ask for tags")?;
    let any = libc::sockaddr_ll { sll_ifindex: 0, ..link_address("lo")? };
    // SAFETY: the address lives through the call and has the stated length.
    let bound = unsafe {
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const any).cast(), length)
    };
    checked(bound as isize, "listen to all interfaces")?;
    println!("listening: frames of VLAN {}", args.vlan);
    let deadline = Instant::now() + Duration::from_millis(args.timeout_ms);
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        if super::serve::wait_readable(&socket, left)? && receive_one(&socket)? == Some(args.vlan) {
            return Ok(Tagged { frames: 1 });
        }
    }
    Ok(Tagged { frames: 0 })
}

/// The VLAN of the next frame, if it is a tagged frame of the test.
fn receive_one(socket: &OwnedFd) -> anyhow::Result<Option<u16>> {
    let mut frame = [0_u8; 2048];
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: a structure of integers and pointers, for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: everything that the message points to lives through the call and has the stated
    // length.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let count = checked(count as isize, "receive a frame")?.min(frame.len());
    if !frame[..count].ends_with(SAID) {
        return Ok(None);
    }
    // SAFETY: the kernel has filled in the control messages, which these macros walk through.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let is_auxdata = (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA;
            if is_auxdata {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                let data = data.read_unaligned();
                let is_tagged = data.tp_status & VLAN_VALID != 0;
                return Ok(is_tagged.then_some(data.tp_vlan_tci & 0xfff));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(None)
}
