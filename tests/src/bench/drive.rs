//! The sending side: one kind of traffic for a while, and its results.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{pin, serve, stats::percentile};

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Traffic {
    /// Streams of TCP in writes of `size`.
    Stream,
    /// Datagrams of `size`.
    Datagrams,
    /// One byte there and back over TCP.
    TcpEcho,
    /// One byte there and back over UDP.
    UdpEcho,
    /// A connection for every byte there and back.
    Connect,
}

/// What to send, where to, for how long.
#[derive(Clone, Debug, Args)]
pub struct DriveArgs {
    /// The kind of traffic.
    traffic: Traffic,
    /// Address of the server.
    server: Ipv4Addr,
    /// How much higher the server's ports are from here.
    #[arg(long, default_value_t = 0)]
    shift: u16,
    /// Bytes per write or datagram.
    #[arg(long, default_value_t = 1)]
    size: usize,
    /// How many streams at once.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// For how long.
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
}

/// The result of the traffic.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Driven {
    /// Bytes, datagrams or exchanges that arrived.
    pub arrived: u64,
    /// The duration of the run.
    pub seconds: f64,
    /// Work of all CPUs in this time, in seconds.
    pub cpu_seconds: f64,
    /// Nanoseconds of an exchange.
    pub mean: f64,
    /// Half of the exchanges took at most this, in nanoseconds.
    pub p50: u64,
    /// 99 of 100 took at most this.
    pub p99: u64,
}

/// Exchanges without an answer for this long are repeated.
const LOST: Duration = Duration::from_millis(200);

/// Runs it and prints a [`Driven`].
///
/// # Errors
/// If the server cannot be reached or breaks off.
pub fn main(args: &DriveArgs) -> anyhow::Result<ExitCode> {
    pin::to_cpu(pin::CLIENT_CPU, pin::Side::Client)?;
    let driven = match args.traffic {
        Traffic::Stream => streams(args),
        Traffic::Datagrams => datagrams(args),
        Traffic::TcpEcho => tcp_echo(args),
        Traffic::UdpEcho => udp_echo(args),
        Traffic::Connect => connections(args),
    };
    println!("{}", serde_json::to_string(&driven?)?);
    Ok(ExitCode::SUCCESS)
}

impl DriveArgs {
    fn duration(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }

    fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let address = (IpAddr::V4(self.server), port + self.shift).into();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }
}

fn streams(args: &DriveArgs) -> anyhow::Result<Driven> {
    let streams: Vec<TcpStream> =
        (0..args.streams).map(|_| args.connect(serve::SINK)).collect::<anyhow::Result<_>>()?;
    let (start, busy) = (Instant::now(), pin::busy_seconds()?);
    let arrived: anyhow::Result<Vec<u64>> = std::thread::scope(|scope| {
        let senders: Vec<_> = streams
            .into_iter()
            .map(|stream| scope.spawn(|| send_until(stream, args.size, start + args.duration())))
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?)
            .collect()
    });
    Ok(Driven {
        arrived: arrived?.iter().sum(),
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: pin::busy_seconds()? - busy,
        ..Driven::default()
    })
}

/// Sends until `end`, then requests the number of bytes or datagrams that have arrived.
fn send_until(mut stream: TcpStream, size: usize, end: Instant) -> anyhow::Result<u64> {
    let data = vec![0x5a; size];
    while Instant::now() < end {
        stream.write_all(&data)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("the server's count")?;
    Ok(u64::from_be_bytes(total))
}

fn datagrams(args: &DriveArgs) -> anyhow::Result<Driven> {
    let mut control = args.connect(serve::COUNT)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((args.server, serve::COUNT + args.shift))?;
    let data = vec![0x5a; args.size];
    let send_for = |duration: Duration| {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            for _ in 0..32 {
                // A full queue is part of the measurement.
                let _ = socket.send(&data);
            }
        }
    };
    send_for(Duration::from_millis(100));
    let (busy, before) = (pin::busy_seconds()?, count(&mut control)?);
    send_for(args.duration());
    let (after, busy) = (count(&mut control)?, pin::busy_seconds()? - busy);
    ensure!(after.0 > before.0, "no datagram arrived");
    Ok(Driven {
        arrived: after.0 - before.0,
        seconds: after.1.saturating_sub(before.1) as f64 / 1e9,
        cpu_seconds: busy,
        ..Driven::default()
    })
}

/// The server's count of datagrams and its clock in nanoseconds.
fn count(control: &mut TcpStream) -> anyhow::Result<(u64, u64)> {
    control.write_all(&[1])?;
    let (mut count, mut clock) = ([0; 8], [0; 8]);
    control.read_exact(&mut count).context("the server's count")?;
    control.read_exact(&mut clock).context("the server's clock")?;
    Ok((u64::from_be_bytes(count), u64::from_be_bytes(clock)))
}

fn tcp_echo(args: &DriveArgs) -> anyhow::Result<Driven> {
    let mut stream = args.connect(serve::ECHO)?;
    exchanges(args.duration(), || {
        stream.write_all(&[1])?;
        Ok(stream.read_exact(&mut [0])?)
    })
}

fn udp_echo(args: &DriveArgs) -> anyhow::Result<Driven> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((args.server, serve::ECHO + args.shift))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut number = 0u32;
    exchanges(args.duration(), || {
        number = number.wrapping_add(1);
        loop {
            socket.send(&number.to_be_bytes())?;
            let mut answer = [0; 4];
            // A lost exchange counts with the time until the loss was noticed.
            if socket.recv(&mut answer).is_ok() && u32::from_be_bytes(answer) == number {
                return Ok(());
            }
        }
    })
}

fn connections(args: &DriveArgs) -> anyhow::Result<Driven> {
    exchanges(args.duration(), || {
        let mut stream = args.connect(serve::ONCE)?;
        stream.write_all(&[1])?;
        let mut answer = Vec::with_capacity(2);
        // The server closes first, so that ports in TIME_WAIT stay with it.
        stream.read_to_end(&mut answer)?;
        ensure!(answer.len() == 1, "{} bytes came back, not 1", answer.len());
        Ok(())
    })
}

fn exchanges(
    duration: Duration,
    mut exchange: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Driven> {
    for _ in 0..100 {
        exchange()?;
    }
    let mut took = Vec::with_capacity(1 << 18);
    let (start, busy) = (Instant::now(), pin::busy_seconds()?);
    let mut last = start;
    while last - start < duration {
        exchange()?;
        let now = Instant::now();
        took.push(u64::try_from((now - last).as_nanos())?);
        last = now;
    }
    Ok(Driven {
        arrived: took.len() as u64,
        seconds: (last - start).as_secs_f64(),
        cpu_seconds: pin::busy_seconds()? - busy,
        mean: took.iter().sum::<u64>() as f64 / took.len() as f64,
        p50: percentile(&mut took, 50).context("no exchange")?,
        p99: percentile(&mut took, 99).context("no exchange")?,
    })
}
