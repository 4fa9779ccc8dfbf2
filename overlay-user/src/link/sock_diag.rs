//! Which TCP sockets a network namespace has (sock_diag(7)): each with its cookie, the number by
//! which programs know it.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::{LinkError, netns::kernel};

/// `SOCK_DIAG_BY_FAMILY`, linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_req_v2`, linux/inet_diag.h.
const REQUEST: usize = 56;
/// Where `struct inet_diag_msg` has `id.idiag_cookie`: after four bytes, two ports, two addresses
/// of 16 bytes and an interface.
const COOKIE: usize = 44;
/// States that a connection goes through: all but CLOSE (7) and LISTEN (10), as bits.
const STATES: u32 = 0xfff & !(1 << 7) & !(1 << 10);

/// Cookies of the TCP sockets in the namespace of the calling thread that are connected, are being
/// connected, or are being closed.
///
/// # Errors
/// [`LinkError::Kernel`] when the kernel cannot tell (it was built without `CONFIG_INET_DIAG`).
pub fn tcp_cookies() -> Result<BTreeSet<u64>, LinkError> {
    let failed = |e: nix::Error| kernel("list the TCP sockets".to_owned(), e.desc());
    let mut cookies = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
        .map_err(failed)?;
        send(socket.as_raw_fd(), &request(family as u8), MsgFlags::empty()).map_err(failed)?;
        while receive(&socket, &mut cookies).map_err(failed)? {}
    }
    Ok(cookies)
}

/// A dump of all sockets of a family.
fn request(family: u8) -> [u8; HEADER + REQUEST] {
    let mut request = [0; HEADER + REQUEST];
    request[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&STATES.to_ne_bytes());
    request
}

/// Takes in one datagram. False when it was the last one.
fn receive(socket: &OwnedFd, cookies: &mut BTreeSet<u64>) -> nix::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    parse(&buffer[..length], cookies)
}

/// Messages of a dump, one behind the other. False after the last one of all.
fn parse(mut messages: &[u8], cookies: &mut BTreeSet<u64>) -> nix::Result<bool> {
    while let Some((length, kind)) = head(messages) {
        let body = &messages[HEADER..length];
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let error = word(body, 0).unwrap_or_default() as i32;
                return Err(nix::Error::from_raw(-error));
            }
            _ if kind == BY_FAMILY => {
                if let (Some(low), Some(high)) = (word(body, COOKIE), word(body, COOKIE + 4)) {
                    cookies.insert(u64::from(high) << 32 | u64::from(low));
                }
            }
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// Length and type of the first message.
fn head(messages: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(word(messages, 0)?).ok()?;
    let kind = u16::from_ne_bytes(messages.get(4..6)?.try_into().ok()?);
    (HEADER..=messages.len()).contains(&length).then_some((length, kind))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    /// The socket's cookie as it says itself.
    fn cookie(stream: &TcpStream) -> u64 {
        let mut cookie = 0_u64;
        let mut size = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the option is a u64, and the kernel writes at most `size` bytes to `cookie`.
        let status = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut size,
            )
        };
        assert_eq!(status, 0);
        cookie
    }

    #[test]
    fn connected_sockets_are_listed_by_their_cookies_until_they_are_closed() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("skipped: {address} is not to be had here");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("here");
            let (server, _) = listener.accept().expect("accepted");
            let cookies = [cookie(&client), cookie(&server)];
            let listed = tcp_cookies().expect("listed");
            assert!(cookies.iter().all(|cookie| listed.contains(cookie)), "{address}");
            let listening = cookie(&TcpStream::from(OwnedFd::from(listener)));
            assert!(!listed.contains(&listening), "it is connected to nobody");
            // The side that closes first waits; the other one is gone with the last
            // acknowledgement.
            drop(client);
            drop(server);
            let is_listed = || tcp_cookies().expect("listed").contains(&cookies[1]);
            for _ in 0..1000 {
                if !is_listed() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            assert!(!is_listed(), "{address}");
        }
    }

    #[test]
    fn sockets_of_other_namespaces_are_not_listed() {
        if !is_root("making network namespaces") {
            return;
        }
        assert!(TestNetns::new().run(|| tcp_cookies().expect("listed")).is_empty());
    }

    #[test]
    fn a_listing_that_is_cut_off_or_refused_is_no_panic() {
        let mut cookies = BTreeSet::new();
        let mut message = [0_u8; HEADER + 8];
        message[..4].copy_from_slice(&200_u32.to_ne_bytes());
        assert_eq!(parse(&message, &mut cookies), Ok(true), "longer than it is");
        message[..4].copy_from_slice(&((HEADER + 8) as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        assert_eq!(parse(&message, &mut cookies), Ok(true), "too short for a cookie");
        message[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        message[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(parse(&message, &mut cookies), Err(nix::Error::ENOENT));
        assert!(cookies.is_empty());
    }
}
