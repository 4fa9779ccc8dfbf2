//! The common part of `overlay monitor` and `overlay capture`: the request, its end, and the line
//! for an event.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, args};
use crate::{
    agent::Events,
    api::{Event, EventKind, EventMessage, EventRequest},
    packet::Headers,
};

/// Which packets.
#[derive(Clone, Debug, Args)]
pub(super) struct PacketArgs {
    /// Only of this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only of this endpoint of the host
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Only this protocol: tcp, udp, sctp, icmp or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = args::protocol)]
    protocol: Option<u8>,
    /// Only to or from this TCP or UDP port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Only to or from this address
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// End after this time, such as 10s
    #[arg(long, value_name = "TIME", value_parser = args::positive_duration)]
    pub(super) duration: Option<Duration>,
}

impl PacketArgs {
    /// The request to the daemon.
    pub(super) fn request(&self) -> EventRequest {
        EventRequest {
            network: self.network.clone(),
            endpoint: self.endpoint.clone(),
            protocol: self.protocol,
            port: self.port,
            host: self.host,
            ..EventRequest::default()
        }
    }
}

/// How many there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// Events.
    pub(super) events: u64,
    /// Events that were lost.
    pub(super) lost: u64,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the next event.
    More,
    /// The end: the reader of the output has closed it.
    Enough,
}

/// Hands over events until there are enough, time is up, or SIGINT or SIGTERM comes.
pub(super) async fn follow(
    context: &Context,
    request: &EventRequest,
    limits: &PacketArgs,
    mut each: impl FnMut(&EventMessage) -> anyhow::Result<Next>,
) -> anyhow::Result<Told> {
    // Asked for first: a signal from now on ends it cleanly.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut events = context.client().events(request).await?;
    let over = async {
        match limits.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut told = Told::default();
    loop {
        let message = tokio::select! {
            message = next(&mut events) => message?,
            _ = terminate.recv() => return Ok(told),
            _ = interrupt.recv() => return Ok(told),
            () = &mut over => return Ok(told),
        };
        let Some(message) = message else {
            eprintln!("overlay: the daemon has ended");
            return Ok(told);
        };
        match &message {
            EventMessage::Watching => {}
            EventMessage::Lost(count) => told.lost += count,
            EventMessage::Event(_) => told.events += 1,
        }
        if each(&message)? == Next::Enough || limits.count.is_some_and(|n| told.events >= n) {
            return Ok(told);
        }
    }
}

async fn next(events: &mut Events) -> anyhow::Result<Option<EventMessage>> {
    Ok(events.next().await?)
}

/// Prints a line or several. A reader that has seen enough, such as `head`, ends it.
pub(super) fn print_line(text: &str) -> anyhow::Result<Next> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Next::More),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(Next::Enough),
        Err(e) => Err(e.into()),
    }
}

/// An event in a line: time, event and reason, endpoint, and the packet.
pub(super) fn line(event: &Event) -> String {
    let time = event.time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.6f");
    if let Some(flow) = &event.flow {
        let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".to_owned());
        return format!(
            "{time} flow {} {} {} > {}, service {} to {} {} > {}",
            event.reason,
            flow.protocol,
            flow.source,
            flow.destination,
            named(&flow.service),
            named(&flow.backend),
            flow.new_source,
            flow.new_destination,
        );
    }
    let kind = if event.dropped { "drop" } else { "pass" };
    format!(
        "{time} {kind} {} {}{}, {} bytes",
        event.reason,
        whose(event),
        packet(event),
        event.length
    )
}

fn whose(event: &Event) -> String {
    let traffic = event.traffic.as_deref().unwrap_or_default();
    let who = event.endpoint.as_ref().or(event.ip.as_ref());
    let mut text = match (traffic, who) {
        ("sent", Some(who)) => format!("sent by {who}"),
        ("sent", None) => "sent".to_owned(),
        (_, Some(who)) => format!("for {who}"),
        (_, None) => "received".to_owned(),
    };
    if let Some(network) = &event.network {
        text.push_str(&format!(" on {network}"));
    }
    if let Some(interface) = &event.interface {
        text.push_str(&format!(" by {interface}"));
    }
    text + ": "
}

fn packet(event: &Event) -> String {
    let read = || Headers::read(&bytes(event), None);
    match event.headers.clone().or_else(read) {
        Some(headers) => headers.to_string(),
        None => "less than an Ethernet header".to_owned(),
    }
}

/// The bytes of an event's packet.
pub(super) fn bytes(event: &Event) -> Vec<u8> {
    let digits = event.packet.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
    digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

/// Tells on stderr how many there were.
pub(super) fn summary(what: EventKind, told: Told) {
    let Told { events, lost } = told;
    let plural = if events == 1 { "" } else { "s" };
    if what == EventKind::Capture {
        eprintln!("{events} packet{plural} captured, {lost} lost");
    } else {
        eprintln!("{events} event{plural}, {lost} lost");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::NewFlow;

    /// A UDP datagram of an endpoint.
    pub(in crate::cli) fn event() -> Event {
        Event {
            time: "2025-03-01T12:00:00.25Z".parse().expect("a time"),
            kind: EventKind::Drop,
            reason: "spoofed_source".to_owned(),
            dropped: true,
            traffic: Some("sent".to_owned()),
            vni: 4097,
            network: Some("mynet".to_owned()),
            endpoint: Some("web.1".to_owned()),
            ip: Some("10.0.1.2".to_owned()),
            interface: Some("ov123".to_owned()),
            length: 98,
            packet: "020000000001020000000002080045000028000000004011\
                     00000a0001090a0001039c4000350008000000"
                .to_owned(),
            headers: None,
            flow: None,
        }
    }

    /// Without the time, which is shown in the machine's own zone.
    fn told(event: &Event) -> String {
        line(event).split_once(' ').expect("a time and the rest").1.to_owned()
    }

    #[test]
    fn an_event_is_told_in_a_line() {
        assert_eq!(
            told(&event()),
            "drop spoofed_source sent by web.1 on mynet by ov123: \
             udp 10.0.1.9:40000 > 10.0.1.3:53, 98 bytes"
        );
        let nobodys = Event {
            reason: "not_peer".to_owned(),
            traffic: Some("received".to_owned()),
            network: None,
            endpoint: None,
            ip: None,
            interface: None,
            packet: "0200".to_owned(),
            ..event()
        };
        assert_eq!(
            told(&nobodys),
            "drop not_peer received: less than an Ethernet header, 98 bytes"
        );
        let captured = Event {
            reason: "decapsulated".to_owned(),
            dropped: false,
            traffic: Some("received".to_owned()),
            interface: None,
            ..event()
        };
        assert!(told(&captured).starts_with("pass decapsulated for web.1 on mynet: udp"));
    }

    #[test]
    fn a_new_flow_is_told_with_both_its_tuples() {
        let address = |text: &str| text.parse().expect("an address");
        let flow = NewFlow {
            protocol: "tcp".to_owned(),
            source: address("10.0.1.2:40000"),
            destination: address("10.0.1.9:80"),
            new_source: address("10.0.1.2:40000"),
            new_destination: address("10.0.1.3:80"),
            service: Some("web".to_owned()),
            backend: Some("web.1".to_owned()),
            backend_network: None,
        };
        let event = Event {
            kind: EventKind::Flow,
            reason: "flow_created".to_owned(),
            flow: Some(flow),
            ..event()
        };
        assert_eq!(
            told(&event),
            "flow flow_created tcp 10.0.1.2:40000 > 10.0.1.9:80, service web to web.1 \
             10.0.1.2:40000 > 10.0.1.3:80"
        );
    }

    #[test]
    fn packets_are_hexadecimal() {
        let event = Event { packet: "00ff7a".to_owned(), ..event() };
        assert_eq!(bytes(&event), [0x00, 0xff, 0x7a]);
    }
}
