//! SCTP (RFC 9260): handmade packets, for kernels without it, and associations, for kernels with
//! it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::{
    libc,
    sys::socket::{Backlog, SockaddrIn, bind, connect, listen},
};
use serde::{Deserialize, Serialize};

use super::{Listen, Report, answer, serve};

/// Offset of the checksum in the common header (RFC 9260, section 3.1).
const CHECKSUM: usize = 8;

/// Parameters of `sctp-send`.
#[derive(Clone, Debug, Args)]
pub struct SendArgs {
    /// Address to send to.
    #[arg(long)]
    to: Ipv4Addr,
    /// Ports from and to.
    #[arg(long, num_args = 2, default_values_t = [5000, 5001])]
    ports: Vec<u16>,
}

/// Parameters of `sctp-recv`.
#[derive(Clone, Debug, Args)]
pub struct ReceiveArgs {
    /// Milliseconds without a packet that make a failure.
    #[arg(long, default_value_t = 15_000)]
    timeout_ms: u64,
}

/// A packet that was sent or received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SctpPacket {
    /// Who sent it; nothing in a sender's report.
    pub from: Option<IpAddr>,
    /// From the common header on, in hexadecimal.
    pub bytes: String,
}

impl Report for SctpPacket {
    fn good(&self) -> bool {
        true
    }
}

/// The exchange over an association.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Associated {
    /// Bytes that were sent.
    pub sent: usize,
    /// Bytes that came back as they were sent.
    pub answered: usize,
}

impl Report for Associated {
    fn good(&self) -> bool {
        self.answered == self.sent
    }
}

/// CRC32c, reflected, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The checksum of a packet as in its header: computed with zeros in its place, least significant
/// byte first.
fn checksum(packet: &[u8]) -> [u8; 4] {
    let mut zeroed = packet.to_vec();
    zeroed[CHECKSUM..CHECKSUM + 4].fill(0);
    crc32c(&zeroed).to_le_bytes()
}

/// An INIT (RFC 9260, section 3.3.2) with a parameter of a type that receivers skip.
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    let unknown = [&[0x80, 0xff, 0, 36][..], &(0..32).collect::<Vec<u8>>()].concat();
    packet.extend([1, 0, 0, 20 + unknown.len() as u8]);
    packet.extend(0x1234_5678_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 10, 0, 10]);
    packet.extend(1_u32.to_be_bytes());
    packet.extend(unknown);
    let sum = checksum(&packet);
    packet[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
    packet
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A socket that nix has no protocol for.
fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a call without memory.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A raw socket (raw(7)) in the type that has its calls: UDP's are the same.
fn raw() -> anyhow::Result<UdpSocket> {
    Ok(UdpSocket::from(socket(libc::SOCK_RAW).context("a raw socket (needs root)")?))
}

/// Sends an INIT with a right checksum.
pub fn send(args: &SendArgs) -> anyhow::Result<SctpPacket> {
    let [from, to] = args.ports[..] else { bail!("two ports") };
    let packet = init(from, to);
    raw()?.send_to(&packet, (args.to, 0)).context("send a packet")?;
    Ok(SctpPacket { from: None, bytes: hex(&packet) })
}

/// Receives an INIT and checks its checksum. Answers of the host's own SCTP are ignored.
pub fn receive(args: &ReceiveArgs) -> anyhow::Result<SctpPacket> {
    let socket = raw()?;
    println!("listening: SCTP packets");
    let deadline = Instant::now() + Duration::from_millis(args.timeout_ms);
    let mut buffer = [0; 2048];
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        if !serve::wait_readable(&socket, left)? {
            continue;
        }
        let (count, from) = socket.recv_from(&mut buffer)?;
        let header = usize::from(buffer[0] & 15) * 4;
        let Some(packet) = buffer[..count].get(header..).filter(|p| p.len() > CHECKSUM + 4) else {
            continue;
        };
        if packet[12] != 1 {
            continue;
        }
        let (said, sum) = (&packet[CHECKSUM..CHECKSUM + 4], checksum(packet));
        anyhow::ensure!(said == sum, "its checksum is {said:02x?}, not {sum:02x?}");
        return Ok(SctpPacket { from: Some(from.ip()), bytes: hex(packet) });
    }
    bail!("no SCTP packet came")
}

fn association() -> anyhow::Result<OwnedFd> {
    socket(libc::SOCK_STREAM).context("an SCTP socket (does this kernel have SCTP?)")
}

/// Says back what it hears over every association, until SIGTERM.
pub fn echo(args: Listen) -> anyhow::Result<ExitCode> {
    serve::stop_on_signals()?;
    let SocketAddr::V4(address) = SocketAddr::from(args) else { bail!("an IPv4 address") };
    let socket = association()?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(address)).context("bind")?;
    listen(&socket, Backlog::new(8)?).context("listen")?;
    // The calls of one-to-one sockets are TCP's (RFC 6458, section 4).
    let listener = TcpListener::from(socket);
    println!("listening: {address}/sctp");
    while !serve::stopping() {
        if serve::wait_readable(&listener, Duration::from_millis(100))? {
            let (stream, _) = listener.accept()?;
            std::thread::spawn(move || repeat(stream));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn repeat(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Sends messages from small to larger than any packet, and receives their echoes.
pub fn ask(target: &str) -> anyhow::Result<Associated> {
    let address = answer::look_up(target).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let SocketAddr::V4(address) = address else { bail!("an IPv4 address") };
    let socket = association()?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(address)).context("associate")?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10) * crate::wait::patience()))?;
    let mut report = Associated { sent: 0, answered: 0 };
    for length in [1, 100, 1_400, 1_500, 9_000, 40_000] {
        let said: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        stream.write_all(&said)?;
        report.sent += said.len();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).with_context(|| format!("{length} bytes back"))?;
        report.answered += if heard == said { said.len() } else { 0 };
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_9260() {
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let packet = init(5000, 5001);
        assert_eq!(packet[CHECKSUM..CHECKSUM + 4], checksum(&packet));
        assert_eq!(packet.len() - 12, usize::from(packet[15]), "the chunk is as long as it says");
    }
}
