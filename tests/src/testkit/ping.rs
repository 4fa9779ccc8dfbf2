//! `ping`: ICMP echo from a raw socket.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use serde::{Deserialize, Serialize};

use super::{Report, answer};

/// Parameters of `ping`.
#[derive(Clone, Debug, Args)]
pub struct PingArgs {
    /// Whom: a name or an address.
    target: String,
    /// How often.
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Bytes of payload.
    #[arg(long, default_value_t = 56)]
    size: usize,
    /// Milliseconds without an answer that make a loss.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// How many routers a request may pass.
    #[arg(long)]
    ttl: Option<u32>,
}

/// Echoes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pinged {
    /// Whom.
    pub target: IpAddr,
    /// Requests sent.
    pub sent: u16,
    /// Answers with the same payload.
    pub answered: u16,
    /// Routers that reported that a request's time to live ended there.
    pub exceeded_at: Vec<Ipv4Addr>,
}

/// The answer to a request.
enum Reply {
    Answer,
    ExceededAt(Ipv4Addr),
    Nothing,
}

impl Report for Pinged {
    fn good(&self) -> bool {
        self.answered == self.sent
    }
}

/// Sends echo requests one after the other.
pub fn ping(args: &PingArgs) -> anyhow::Result<Pinged> {
    let address = match args.target.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        // A name, or a link-local address with its scope: [fe80::1%2].
        Err(_) => answer::look_up(&format!("{}:0", args.target))
            .map_err(|failure| anyhow::anyhow!("{failure}"))?,
    };
    let target = address.ip();
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .context("a raw socket (needs root)")?;
    // The standard library's datagram socket: sendto and recvfrom are the same on a raw one.
    let socket = UdpSocket::from(raw);
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    if let Some(ttl) = args.ttl {
        socket.set_ttl(ttl).context("set the TTL")?;
    }
    let mut pinged = Pinged { target, sent: 0, answered: 0, exceeded_at: Vec::new() };
    for seq in 0..args.count {
        let payload: Vec<u8> = (0..args.size).map(|i| (i + usize::from(seq)) as u8).collect();
        let echo = IcmpEchoHeader { id, seq };
        let request = request(target, echo, &payload);
        socket.send_to(&request, address).with_context(|| target.to_string())?;
        pinged.sent += 1;
        let deadline = Instant::now() + Duration::from_millis(args.timeout_ms);
        match await_reply(&socket, target, echo, &payload, deadline)? {
            Reply::Answer => pinged.answered += 1,
            Reply::ExceededAt(router) => pinged.exceeded_at.push(router),
            Reply::Nothing => {}
        }
    }
    Ok(pinged)
}

fn request(target: IpAddr, echo: IcmpEchoHeader, payload: &[u8]) -> Vec<u8> {
    if target.is_ipv6() {
        // The kernel fills in the checksum of ICMPv6 (RFC 3542, section 3.1).
        return [&[128, 0, 0, 0][..], &echo.to_bytes(), payload].concat();
    }
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
    [header.to_bytes().as_slice(), payload].concat()
}

/// Whether `message` from `from` is the reply. A raw ICMP socket receives the IPv4 header, and a
/// raw ICMPv6 socket receives no IPv6 header. Both receive the answers to all processes.
fn is_reply(
    from: IpAddr,
    message: &[u8],
    (target, echo, payload): (IpAddr, IcmpEchoHeader, &[u8]),
) -> bool {
    if from != target {
        return false;
    }
    if target.is_ipv6() {
        return message == [&[129, 0][..], &message[2..4], &echo.to_bytes(), payload].concat();
    }
    let Ok(ip) = Ipv4HeaderSlice::from_slice(message) else { return false };
    let Ok(icmp) = Icmpv4Slice::from_slice(&message[ip.slice().len()..]) else { return false };
    icmp.icmp_type() == Icmpv4Type::EchoReply(echo) && icmp.payload() == payload
}

fn await_reply(
    socket: &UdpSocket,
    target: IpAddr,
    echo: IcmpEchoHeader,
    payload: &[u8],
    deadline: Instant,
) -> anyhow::Result<Reply> {
    let mut buffer = vec![0; 65536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Reply::Nothing);
        }
        socket.set_read_timeout(Some(left))?;
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let message = &buffer[..count];
        if count >= 8 && is_reply(from.ip(), message, (target, echo, payload)) {
            return Ok(Reply::Answer);
        }
        if let IpAddr::V4(asked) = target
            && let Some(router) = exceeded(message, asked, echo)
        {
            return Ok(Reply::ExceededAt(router));
        }
    }
}

/// The router that reports that a request's time to live has ended there.
fn exceeded(message: &[u8], target: Ipv4Addr, echo: IcmpEchoHeader) -> Option<Ipv4Addr> {
    let ip = Ipv4HeaderSlice::from_slice(message).ok()?;
    let icmp = Icmpv4Slice::from_slice(&message[ip.slice().len()..]).ok()?;
    let is_meant = matches!(icmp.icmp_type(), Icmpv4Type::TimeExceeded(_))
        && quotes(icmp.payload(), target, echo);
    is_meant.then(|| ip.source_addr())
}

/// Whether an ICMP error quotes a request.
fn quotes(payload: &[u8], target: Ipv4Addr, echo: IcmpEchoHeader) -> bool {
    let Ok(ip) = Ipv4HeaderSlice::from_slice(payload) else { return false };
    let quoted = payload.get(ip.slice().len()..).unwrap_or_default();
    let request = [&[8, 0][..], &echo.to_bytes()].concat();
    // Between the two is the checksum.
    ip.destination_addr() == target
        && quoted.get(..2) == Some(&request[..2])
        && quoted.get(4..8) == Some(&request[2..])
}
