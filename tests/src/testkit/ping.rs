//! `ping`: ICMP echo from a raw socket.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
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
    pub target: Ipv4Addr,
    /// Requests sent.
    pub sent: u16,
    /// Answers with the same payload.
    pub answered: u16,
    /// Routers that said that the time to live of a request ended there.
    pub exceeded_at: Vec<Ipv4Addr>,
}

/// What came back for a request.
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
    let address = answer::look_up(&format!("{}:0", args.target))
        .map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let IpAddr::V4(target) = address.ip() else { bail!("{address} is not IPv4") };
    let raw =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
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
        let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload);
        let request = [header.to_bytes().as_slice(), &payload].concat();
        socket.send_to(&request, (target, 0)).with_context(|| target.to_string())?;
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

fn await_reply(
    socket: &UdpSocket,
    target: Ipv4Addr,
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
        let Ok((count, _)) = socket.recv_from(&mut buffer) else { continue };
        // A raw ICMP socket receives with the IPv4 header, and everybody's answers.
        let Ok(ip) = Ipv4HeaderSlice::from_slice(&buffer[..count]) else { continue };
        let Ok(icmp) = Icmpv4Slice::from_slice(&buffer[ip.slice().len()..count]) else { continue };
        if ip.source_addr() == target
            && icmp.icmp_type() == Icmpv4Type::EchoReply(echo)
            && icmp.payload() == payload
        {
            return Ok(Reply::Answer);
        }
        if matches!(icmp.icmp_type(), Icmpv4Type::TimeExceeded(_))
            && quotes(icmp.payload(), target, echo)
        {
            return Ok(Reply::ExceededAt(ip.source_addr()));
        }
    }
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
