//! `udp-segment`: many datagrams in one call (UDP_SEGMENT, Linux 4.18), which the kernel carries as
//! one aggregate as far as it can.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use serde::{Deserialize, Serialize};

use super::{Answer, Report, answer};

/// Parameters of `udp-segment`.
#[derive(Clone, Debug, Args)]
pub struct SegmentArgs {
    /// HOST:PORT of a `udp-echo`.
    target: String,
    /// Bytes of each datagram.
    #[arg(long, default_value_t = 1000)]
    size: u16,
    /// How many.
    #[arg(long, default_value_t = 32)]
    count: usize,
    /// Milliseconds to wait for all the answers.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// Datagrams of one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segmented {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams that the server echoed.
    pub answered: usize,
}

impl Report for Segmented {
    fn good(&self) -> bool {
        self.answered == self.sent
    }
}

/// Sends all datagrams in one call and collects the answers.
pub fn send(args: &SegmentArgs) -> anyhow::Result<Segmented> {
    let address = answer::look_up(&args.target).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    setsockopt(&socket, UdpGsoSegment, &i32::from(args.size)).context("set UDP_SEGMENT")?;
    let mut missing: BTreeSet<String> =
        (0..args.count).map(|i| format!("{i:0width$}", width = usize::from(args.size))).collect();
    let all: String = missing.iter().map(String::as_str).collect();
    socket.send(all.as_bytes()).with_context(|| format!("{address}: {} bytes", all.len()))?;
    let deadline = Instant::now() + Duration::from_millis(args.timeout_ms);
    let mut buffer = vec![0; 65536];
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        let Ok(count) = socket.recv(&mut buffer) else { continue };
        let answer: Answer = serde_json::from_slice(&buffer[..count])?;
        missing.remove(&answer.said);
    }
    Ok(Segmented { sent: args.count, answered: args.count - missing.len() })
}
