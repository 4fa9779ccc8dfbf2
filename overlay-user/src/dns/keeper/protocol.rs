//! Messages between daemon and keeper, over a `SOCK_SEQPACKET` unix socket.
//!
//! A message is one packet: the version, then JSON. Sockets travel as `SCM_RIGHTS` (unix(7)). A
//! connection carries any number of requests, each followed by its reply.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::NamespaceId;

/// Version of the protocol, the first byte of a packet.
pub const VERSION: u8 = 1;

/// Longest packet, in bytes.
pub const MAX_PACKET: usize = 4096;

/// Most sockets in a message: UDP and TCP, and space for two more.
pub const MAX_SOCKETS: usize = 4;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 128;

/// A request of the daemon. Names are containers' ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Keep the attached sockets. They replace those that are kept under the name.
    Store { name: String, namespace: NamespaceId },
    /// Return copies of the sockets that are kept under the name, if they are in this namespace.
    Take { name: String, namespace: NamespaceId },
    /// List the names after this one, in order, as many as fit in a packet.
    List { after: String },
    /// Close the sockets that are kept under the name.
    Drop { name: String },
    /// Close all sockets and end.
    Quit {},
}

/// A reply of the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The request is done. Also the reply to a drop of an unknown name.
    Done {},
    /// The sockets are attached.
    Sockets {},
    /// No sockets are kept under that name in that namespace.
    Unknown {},
    /// Names in order; empty after the last one.
    Names { names: Vec<String> },
    /// The request was rejected and changed nothing.
    Refused { reason: String },
}

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The packet was truncated.
    #[error("a message of more than {MAX_PACKET} bytes")]
    TooLong,
    /// Attached sockets were lost.
    #[error("more than {MAX_SOCKETS} descriptors, or more than this process may have open")]
    Descriptors,
    /// The other side uses another version.
    #[error("version {0} of the protocol; this is version {VERSION}")]
    Version(u8),
    /// The packet is not a valid message.
    #[error("not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Sends one message with its sockets.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    sockets: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), ProtocolError> {
    let mut packet = vec![VERSION];
    serde_json::to_writer(&mut packet, message)?;
    if packet.len() > MAX_PACKET {
        return Err(ProtocolError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The buffer has some extra space, for alignment.
    let fit = sockets.len() <= MAX_SOCKETS;
    if !fit || !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(ProtocolError::Descriptors);
    }
    let flags = flags | SendFlags::NOSIGNAL;
    // With a timeout set, the kernel does not restart the call after a signal (signal(7)).
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(&packet)], &mut control, flags))
        .map_err(io::Error::from)?;
    Ok(())
}

/// Reads one message. If the message is rejected, its sockets are closed.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> Result<(T, Vec<OwnedFd>), ProtocolError> {
    let mut packet = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let mut read = || recvmsg(&socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags);
    let received = retry_on_intr(&mut read).map_err(io::Error::from)?;
    // The sockets are taken out even if the message has other errors, so that they are closed.
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || sockets.len() > MAX_SOCKETS {
        return Err(ProtocolError::Descriptors);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ProtocolError::TooLong);
    }
    match packet.get(..received.bytes) {
        Some([VERSION, json @ ..]) => Ok((serde_json::from_slice(json)?, sockets)),
        Some([version, ..]) => Err(ProtocolError::Version(*version)),
        // An empty packet looks the same (recv(2)), but the protocol has none.
        _ => Err(ProtocolError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair")
    }

    #[test]
    fn a_message_arrives_with_its_sockets() {
        let (here, there) = pair();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let message = Request::Store { name: "c1".to_owned(), namespace: NamespaceId(4, 17) };
        send(&here, &message, &[udp.as_fd()], SendFlags::empty()).expect("sent");
        let (read, mut sockets) = receive::<Request>(&there, RecvFlags::empty()).expect("received");
        assert_eq!(read, message);
        let copy = std::net::UdpSocket::from(sockets.pop().expect("one socket"));
        assert!(sockets.is_empty());
        assert_ne!(copy.as_raw_fd(), udp.as_raw_fd());
        let address = udp.local_addr().expect("bound");
        assert_eq!(copy.local_addr().expect("bound"), address, "another handle of the same socket");
        let flags = rustix::io::fcntl_getfd(&copy).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child inherits it");
    }

    #[test]
    fn more_sockets_than_a_message_may_carry_are_refused_on_both_ends() {
        let (here, there) = pair();
        let (watched, far) = pair();
        let many = [watched.as_fd(); MAX_SOCKETS + 1];
        let refused = send(&here, &Reply::Done {}, &many, SendFlags::empty());
        assert!(matches!(refused, Err(ProtocolError::Descriptors)), "{refused:?}");
        // A peer that breaks the protocol.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS + 20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let many = [watched.as_fd(); MAX_SOCKETS + 20];
        let packet = [&[VERSION][..], b"{\"done\":{}}"].concat();
        for count in [MAX_SOCKETS + 1, MAX_SOCKETS + 20] {
            control.clear();
            assert!(control.push(SendAncillaryMessage::ScmRights(&many[..count])));
            let packet = [IoSlice::new(&packet)];
            sendmsg(&here, &packet, &mut control, SendFlags::empty()).expect("sent");
            let refused = receive::<Reply>(&there, RecvFlags::empty());
            assert!(matches!(refused, Err(ProtocolError::Descriptors)), "{refused:?}");
        }
        drop(watched);
        let end = receive::<Reply>(&far, RecvFlags::empty());
        assert!(matches!(end, Err(ProtocolError::Closed)), "no copy stayed open: {end:?}");
    }

    #[test]
    fn the_longest_name_fits_a_packet() {
        let (here, there) = pair();
        // A control character takes six bytes in JSON.
        let name = "\u{1}".repeat(MAX_NAME);
        let namespace = NamespaceId(u64::MAX, u64::MAX);
        for message in [Request::Store { name: name.clone(), namespace }, Request::Drop { name }] {
            send(&here, &message, &[], SendFlags::empty()).expect("sent");
            let (read, _) = receive::<Request>(&there, RecvFlags::empty()).expect("received");
            assert_eq!(read, message);
        }
    }
}
