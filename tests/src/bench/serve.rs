//! The receiving side: one process with a server for every kind of traffic.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::Context as _;

use super::pin;

/// Receives all bytes, and answers the end with their number.
pub const SINK: u16 = 7001;
/// Sends every byte back.
pub const ECHO: u16 = 7002;
/// Answers one byte and closes.
pub const ONCE: u16 = 7003;
/// UDP: counts datagrams. TCP: returns the count and the server's clock.
pub const COUNT: u16 = 7004;

/// Serves until it is killed.
///
/// # Errors
/// If a port is taken, or without root.
pub fn main(cpu: usize) -> anyhow::Result<ExitCode> {
    pin::to_cpu(cpu, pin::Side::Server)?;
    let counted = Arc::new(AtomicU64::new(0));
    let counter = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, COUNT)).context("the counting port")?;
    let echo = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO)).context("the echoing port")?;
    let count = Arc::clone(&counted);
    thread::spawn(move || count_datagrams(&counter, &count));
    thread::spawn(move || echo_datagrams(&echo));
    let start = Instant::now();
    let tell = move |mut stream: TcpStream| -> io::Result<()> {
        stream.set_nodelay(true)?;
        while stream.read(&mut [0])? == 1 {
            let mut answer = [0; 16];
            answer[..8].copy_from_slice(&counted.load(Ordering::Relaxed).to_be_bytes());
            let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            answer[8..].copy_from_slice(&now.to_be_bytes());
            stream.write_all(&answer)?;
        }
        Ok(())
    };
    let servers = [listen(SINK, sink)?, listen(ECHO, repeat)?, listen(COUNT, tell)?];
    let once = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ONCE)).context("the port of one byte")?;
    println!("listening: {} servers", servers.len() + 1);
    // It runs in this thread: the start of a thread per connection would be measured too.
    for stream in once.incoming() {
        let _ = stream.and_then(answer_once);
    }
    Ok(ExitCode::SUCCESS)
}

fn listen(
    port: u16,
    handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<()>> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("TCP port {port}"))?;
    Ok(thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            // A client that breaks off says so itself.
            thread::spawn(move || handle(stream));
        }
    }))
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            count => total += count as u64,
        }
    }
}

fn repeat(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn answer_once(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

fn count_datagrams(socket: &UdpSocket, counted: &AtomicU64) {
    let mut buffer = [0; 2048];
    loop {
        if socket.recv_from(&mut buffer).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error for an earlier answer is no reason to end.
        if let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    }
}
