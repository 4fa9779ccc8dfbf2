//! Whether a process in a namespace serves a port, read from /proc/net.

use std::path::Path;

use overlay_common::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use super::{
    LinkError,
    netns::{in_netns, kernel},
};

/// State of a TCP socket that listens (`TCP_LISTEN`, include/net/tcp_states.h).
const LISTEN: u8 = 0x0a;

/// Whether a socket in the namespace serves any of `ports` (protocol number, port) on an address
/// that others can reach. A socket on a loopback address does not count.
pub(super) fn listens(netns: &Path, ports: &[(u8, u16)]) -> Result<bool, LinkError> {
    let tables = [
        (PROTO_TCP, "tcp"),
        (PROTO_TCP, "tcp6"),
        (PROTO_UDP, "udp"),
        (PROTO_UDP, "udp6"),
        (PROTO_SCTP, "sctp/eps"),
    ];
    in_netns(netns, || {
        for (protocol, name) in tables {
            if !ports.iter().any(|(wanted, _)| *wanted == protocol) {
                continue;
            }
            let path = format!("/proc/thread-self/net/{name}");
            let table = match std::fs::read_to_string(&path) {
                Ok(table) => table,
                // A kernel without IPv6 has no tcp6, and one without SCTP, or not yet with it, no
                // eps.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(kernel(format!("read {path}"), e)),
            };
            let serves = |socket: Socket| {
                ports.contains(&(protocol, socket.port))
                    && !socket.loopback
                    && (protocol == PROTO_UDP || socket.state == LISTEN)
            };
            let parse = if protocol == PROTO_SCTP { Socket::parse_sctp } else { Socket::parse };
            if table.lines().skip(1).filter_map(parse).any(serves) {
                return Ok(true);
            }
        }
        Ok(false)
    })?
}

/// The socket in a line of `/proc/net/{tcp,udp}[6]` or of /proc/net/sctp/eps.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    loopback: bool,
    port: u16,
    state: u8,
}

impl Socket {
    /// `sl local_address rem_address st ..`; addresses are hexadecimal words in host order.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let words = address
            .as_bytes()
            .chunks(8)
            .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
            .collect::<Option<Vec<u32>>>()?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let ip = match <[u8; 16]>::try_from(bytes.as_slice()) {
            Ok(v6) => std::net::Ipv6Addr::from(v6).to_canonical(),
            Err(_) => <[u8; 4]>::try_from(bytes.as_slice()).ok()?.into(),
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Self { loopback: ip.is_loopback(), port, state })
    }

    /// `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS..` (net/sctp/proc.c); the socket's state is
    /// one of TCP's.
    fn parse_sctp(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let addresses: Vec<std::net::IpAddr> =
            fields.get(8..)?.iter().filter_map(|address| address.parse().ok()).collect();
        Some(Self {
            loopback: !addresses.is_empty() && addresses.iter().all(|a| a.is_loopback()),
            port: fields.get(5)?.parse().ok()?,
            state: fields.get(3)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    #[test]
    fn lines_of_both_families_are_understood() {
        let v4 = "   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(Socket::parse(v4), Some(Socket { loopback: true, port: 3306, state: LISTEN }));
        let any6 = "  1: 00000000000000000000000000000000:1F90 \
                    00000000000000000000000000000000:0000 0A 00000000:00000000";
        assert_eq!(
            Socket::parse(any6),
            Some(Socket { loopback: false, port: 8080, state: LISTEN })
        );
        let mapped = "  2: 0000000000000000FFFF00000100007F:0035 \
                      00000000000000000000000000000000:0000 07 0";
        assert_eq!(Socket::parse(mapped), Some(Socket { loopback: true, port: 53, state: 7 }));
        assert_eq!(Socket::parse("  sl  local_address rem_address   st"), None);
        assert_eq!(Socket::parse(""), None);
    }

    #[test]
    fn endpoints_of_sctp_are_understood() {
        let any = "ffff9c51 ffff9c52 2   10  44   3868      0 21215 0.0.0.0";
        let found = Socket::parse_sctp(any).expect("a socket");
        assert_eq!(found, Socket { loopback: false, port: 3868, state: LISTEN });
        let local = "ffff9c51 ffff9c52 2   10  44   3868      0 21215 127.0.0.1 ::1";
        assert!(Socket::parse_sctp(local).is_some_and(|socket| socket.loopback));
        let heading = " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS";
        assert_eq!(Socket::parse_sctp(heading), None);
    }

    #[test]
    fn only_reachable_servers_inside_the_namespace_count() {
        if !is_root("opening sockets in a network namespace") {
            return;
        }
        let inside = TestNetns::new();
        inside.command("ip link set lo up");
        let path = inside.path();
        let any = Ipv4Addr::UNSPECIFIED;
        let (tcp, udp, local, busy) = inside.run(|| {
            let tcp = TcpListener::bind((any, 0)).expect("a listener");
            let udp = UdpSocket::bind(("::", 0)).expect("a socket");
            let local = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 11), 0)).expect("a socket");
            let address = (Ipv4Addr::LOCALHOST, tcp.local_addr().expect("bound").port());
            let busy = TcpStream::connect(address).expect("connected");
            (tcp, udp, local, busy)
        });
        let tcp_port = tcp.local_addr().expect("bound").port();
        let udp_port = udp.local_addr().expect("bound").port();
        let local_port = local.local_addr().expect("bound").port();
        let client_port = busy.local_addr().expect("bound").port();
        let listens = |ports: &[(u8, u16)]| listens(path, ports).expect("read");
        assert!(listens(&[(PROTO_UDP, 1), (PROTO_TCP, tcp_port)]));
        assert!(listens(&[(PROTO_UDP, udp_port)]));
        assert!(!listens(&[(PROTO_UDP, tcp_port)]) || tcp_port == udp_port, "protocols differ");
        assert!(!listens(&[(PROTO_UDP, local_port)]), "loopback is not reachable");
        assert!(!listens(&[(PROTO_TCP, client_port)]), "a client does not listen");
        assert!(!listens(&[]));
        let elsewhere = TestNetns::new();
        assert!(!super::listens(elsewhere.path(), &[(PROTO_TCP, tcp_port)]).expect("read"));
    }
}
