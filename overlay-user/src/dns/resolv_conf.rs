//! The host's name servers.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
};

use super::{ADDRESS, PORT};

/// The C library's resolver uses as many (MAXNS).
pub const MAX_NAMESERVERS: usize = 3;

/// Why `resolv.conf` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the host's name servers from {path}: {source}; name them with --dns, or other \
     people's names will not resolve in containers"
)]
pub struct ResolvConfError {
    path: PathBuf,
    source: std::io::Error,
}

/// Reads the name servers of a `resolv.conf`, at most [`MAX_NAMESERVERS`]. Returns none if it names
/// none.
///
/// 127.0.0.11 is left out, because servers like ours have that address. If the host's namespace is
/// itself a container of this cluster, the query would loop. Other loopback addresses are fine
/// (systemd-resolved's 127.0.0.53), because queries are forwarded from the host's namespace.
///
/// # Errors
/// [`ResolvConfError`] names the file.
pub fn read_resolv_conf(path: &Path) -> Result<Vec<SocketAddr>, ResolvConfError> {
    let text =
        std::fs::read(path).map_err(|source| ResolvConfError { path: path.to_owned(), source })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines().filter_map(nameserver).take(MAX_NAMESERVERS).collect()
}

fn nameserver(line: &str) -> Option<SocketAddr> {
    let mut words = line.split(['#', ';']).next()?.split_ascii_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    let text = words.next()?;
    let Some(server) = address(text) else {
        tracing::warn!("resolv.conf: {text:?} is not an address of a name server; ignored");
        return None;
    };
    is_usable(&server).then_some(server)
}

/// Parses an address, or an IPv6 address with a zone (`fe80::1%eth0`).
fn address(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = match zone.parse() {
        Ok(index) => index,
        Err(_) => nix::net::if_::if_nametoindex(zone).ok()?,
    };
    Some(SocketAddrV6::new(address, PORT, 0, index).into())
}

/// Returns true if a query to this server cannot come back to us.
pub(super) fn is_usable(server: &SocketAddr) -> bool {
    server.ip().to_canonical() != IpAddr::V4(ADDRESS) && server.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        parse(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_servers_are_read_in_their_order_and_the_rest_is_skipped() {
        let text = "# generated\n\nsearch example.org\nnameserver 10.0.0.1 # first\n\
                    ; nameserver 10.0.0.9\n  nameserver\t2001:db8::1\noptions edns0\n";
        assert_eq!(servers(text), ["10.0.0.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn only_three_name_servers_count() {
        let text = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n\
                    nameserver 10.0.0.4\n";
        assert_eq!(servers(text), ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let text = "nameserver\nnameserver x\nnameserver 10.0.0.1.2\nnameservers 10.0.0.1\n\
                    nameserver fe80::1%no-such-interface\nnameserver 10.0.0.5\n";
        assert_eq!(servers(text), ["10.0.0.5:53"]);
    }

    #[test]
    fn a_zone_is_kept_as_the_interfaces_index() {
        let parsed = parse("nameserver fe80::1%lo\n");
        assert!(matches!(parsed[..], [SocketAddr::V6(v6)] if v6.scope_id() == 1), "{parsed:?}");
    }

    #[test]
    fn our_own_address_is_never_an_upstream_but_other_loopback_addresses_may_be() {
        let text = "nameserver 127.0.0.11\nnameserver ::ffff:127.0.0.11\nnameserver 127.0.0.53\n";
        assert_eq!(servers(text), ["127.0.0.53:53"]);
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it_and_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = read_resolv_conf(&dir.path().join("resolv.conf")).expect_err("no file");
        let text = error.to_string();
        assert!(text.contains("resolv.conf") && text.contains("--dns"), "{text}");
    }
}
