//! `udp-echo` and `udp-ask`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use super::{Answer, Asked, Failure, FailureKind, Identity, Target, answer, serve};

/// Parameters of `udp-echo`.
#[derive(Clone, Debug, Args)]
pub struct EchoArgs {
    #[command(flatten)]
    identity: Identity,
    /// A multicast group to join.
    #[arg(long)]
    group: Option<Ipv4Addr>,
}

/// Parameters of `udp-ask`.
#[derive(Clone, Debug, Args)]
pub struct UdpArgs {
    #[command(flatten)]
    target: Target,
    /// What to say.
    #[arg(long, default_value = "are you there?")]
    say: String,
    /// Connect the socket first; otherwise sendto and recvfrom, and the answer must come from the
    /// address that was asked.
    #[arg(long)]
    connected: bool,
    /// Ask every time from the same socket.
    #[arg(long)]
    same_socket: bool,
    /// Port to ask from; any if not given.
    #[arg(long, default_value_t = 0)]
    from_port: u16,
}

/// Answers datagrams until SIGTERM.
pub fn serve(args: &EchoArgs) -> anyhow::Result<ExitCode> {
    serve::stop_on_signals()?;
    let identity = &args.identity;
    let host = identity.host()?;
    let address = SocketAddr::from(identity.listen);
    let socket = UdpSocket::bind(address).with_context(|| format!("UDP port {address}"))?;
    if let Some(group) = &args.group {
        socket
            .join_multicast_v4(group, &Ipv4Addr::UNSPECIFIED)
            .with_context(|| format!("joining {group}"))?;
    }
    println!("listening: {}/udp", socket.local_addr()?);
    let mut buffer = vec![0; 65536];
    while !serve::stopping() {
        if !serve::wait_readable(&socket, Duration::from_millis(100))? {
            continue;
        }
        // An ICMP error for an earlier answer is reported here: no reason to end.
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = Answer::new(&identity.name, &host, from);
        answer.said = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let _ = socket.send_to(&serde_json::to_vec(&answer)?, from);
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a `udp-echo`.
pub fn ask(args: &UdpArgs) -> anyhow::Result<Asked> {
    let mut kept = None;
    Ok(Asked::collect(args.target.count, || {
        let socket = match kept.take() {
            Some(socket) => socket,
            None => bind(args)?,
        };
        let answer = exchange(args, &socket);
        if args.same_socket {
            kept = Some(socket);
        }
        answer
    }))
}

fn bind(args: &UdpArgs) -> Result<UdpSocket, Failure> {
    let failed = |e: io::Error| Failure::new(FailureKind::Other, e);
    let address = answer::look_up(&args.target.target)?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, args.from_port)).map_err(failed)?;
    socket.set_read_timeout(Some(args.target.timeout())).map_err(failed)?;
    if args.connected {
        socket.connect(address).map_err(|e| Failure::connecting(&address, &e))?;
    }
    Ok(socket)
}

fn exchange(args: &UdpArgs, socket: &UdpSocket) -> Result<Answer, Failure> {
    let address = answer::look_up(&args.target.target)?;
    let failed = |e: io::Error| match e.kind() {
        // Port unreachable.
        io::ErrorKind::ConnectionRefused => Failure::connecting(&address, &e),
        _ => Failure::talking(&address, &e),
    };
    let mut buffer = vec![0; 65536];
    let (count, from) = if args.connected {
        socket.send(args.say.as_bytes()).map_err(failed)?;
        (socket.recv(&mut buffer).map_err(failed)?, socket.peer_addr().map_err(failed)?)
    } else {
        socket.send_to(args.say.as_bytes(), address).map_err(failed)?;
        socket.recv_from(&mut buffer).map_err(failed)?
    };
    let bad = |why: String| Failure::new(FailureKind::BadAnswer, format!("{address}: {why}"));
    if from != address {
        return Err(bad(format!("the answer came from {from}")));
    }
    let answer: Answer =
        serde_json::from_slice(&buffer[..count]).map_err(|e| bad(e.to_string()))?;
    if answer.said != args.say {
        return Err(bad(format!("heard {} bytes of {}", answer.said.len(), args.say.len())));
    }
    Ok(answer)
}
