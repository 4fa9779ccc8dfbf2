//! Compares the programs with the model, and verifies checksums from scratch.

use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    Be16, Reason,
    event::{
        EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, SNAP_MAX, WATCH_ALL, WATCH_CAPTURE, WATCH_DROPS,
        WATCH_FLOWS, Watch,
    },
    observe::Traffic,
};

use super::{Step, failure::hex};
use crate::{
    model::{Predicted, Program, Tables, Verdict, ones_complement},
    rig::{DROP, IFINDEX, PASS, REDIRECT, Ran, Record, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
};

/// Length of the outer headers of a tunnel packet.
const fn tunnel(ipv6: bool) -> usize {
    if ipv6 { 70 } else { 50 }
}

/// The time on the clock that the programs read.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a monotonic clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Verdict, counters and bytes.
pub fn packet(
    program: Program,
    predicted: &Predicted,
    (ran, ipv6): (&Ran, bool),
) -> Result<(), String> {
    let verdict = match (program, ran.verdict) {
        (Program::Xdp, XDP_PASS) => Some(Verdict::Pass),
        (Program::Xdp, XDP_DROP) => Some(Verdict::Drop),
        (Program::Xdp, XDP_TX | XDP_REDIRECT) => Some(Verdict::Sent),
        (Program::Xdp, _) => None,
        (_, PASS) => Some(Verdict::Pass),
        (_, DROP) => Some(Verdict::Drop),
        (_, REDIRECT) => Some(Verdict::Sent),
        _ => None,
    };
    if verdict != Some(predicted.verdict) || predicted.moved != ran.moved {
        return Err(format!(
            "verdict {} ({verdict:?}), counted {:?}\nmodel: {:?}, counted {:?}",
            ran.verdict, ran.moved, predicted.verdict, predicted.moved
        ));
    }
    if predicted.told != ran.told {
        return Err(format!("of endpoints: {:?}\nmodel: {:?}", ran.told, predicted.told));
    }
    let mut real = ran.packet.clone();
    if is_encapsulated(ran) {
        let at = tunnel(ipv6) - 16;
        let port = u16::from_be_bytes([real[at], real[at + 1]]);
        if port < 49_152 {
            return Err(format!("outer source port {port} is not in the dynamic range"));
        }
        // The port depends on the kernel's flow hash.
        real[at..at + 2].fill(0);
        if ipv6 {
            // The flow label depends on it too.
            real[15] &= 0xf0;
            real[16..18].fill(0);
        }
    }
    if predicted.verdict != Verdict::Drop && real != predicted.packet {
        return Err(format!("packet {}\nmodel:  {}", hex(&real), hex(&predicted.packet)));
    }
    Ok(())
}

/// Everything is told of.
pub const WATCH: Watch = Watch {
    until: u64::MAX,
    flags: WATCH_DROPS | WATCH_FLOWS | WATCH_CAPTURE | WATCH_ALL,
    snap: SNAP_MAX as u32,
    sample: 1,
    host: [0; 16],
    port: Be16::ZERO,
    protocol: 0,
    pad: 0,
};

/// The events when all are enabled: each drop and each new flow once, an endpoint's packets as it
/// sent them, and packets to an endpoint as they left the program.
pub fn events(
    step: &Step,
    predicted: &Predicted,
    tables: &Tables,
    told: &[Record],
) -> Result<(), String> {
    let count = |kind| told.iter().filter(|record| record.event.kind == kind).count();
    let flows = [Reason::FlowCreated, Reason::FlowRepicked];
    let flows = flows.iter().filter(|reason| predicted.moved.contains_key(reason)).count();
    // A packet copied to a group is not a drop, though the kernel frees the original.
    let copied = predicted.moved.contains_key(&Reason::Replicated);
    let drops = usize::from(predicted.verdict == Verdict::Drop && !copied);
    let mut captures = Vec::new();
    if step.program == Program::Container && tables.agent.links.contains_key(&IFINDEX) {
        captures.push(&step.packet);
    }
    // Copies are captured where they are sent.
    let is_told = |traffic, reason| traffic == Traffic::Received && reason != Reason::Replicated;
    let received = predicted.told.forwarded.keys().any(|(_, t, r)| is_told(*t, *r));
    let answers = [
        Reason::ArpAnswered,
        Reason::NdAnswered,
        Reason::EchoAnswered,
        Reason::TooBigAnswered,
        Reason::TtlExceededAnswered,
        Reason::NoBackendAnswered,
        Reason::BackendGoneAnswered,
    ];
    let answered = answers.iter().any(|reason| predicted.moved.contains_key(reason));
    if received || (answered && step.program == Program::Container) {
        captures.push(&predicted.packet);
    }
    let captured = told.iter().filter(|record| record.event.kind == EVENT_CAPTURE);
    let captured: Vec<_> = captured.map(|record| &record.payload).collect();
    // An endpoint without its own counter index has events all the same.
    let same = captured.starts_with(&captures);
    if (count(EVENT_DROP), count(EVENT_FLOW)) != (drops, flows) || !same {
        return Err(format!(
            "told {told:?}\nmodel: {drops} drops, {flows} flows, captured {captures:?}"
        ));
    }
    Ok(())
}

fn is_encapsulated(ran: &Ran) -> bool {
    let pushed = [Reason::Encapsulated, Reason::XdpEncapsulated];
    ran.counted.iter().any(|reason| pushed.contains(reason)) || is_told_elsewhere(ran)
}

/// Whether the packet is an answer to a backend elsewhere. Such an answer is in a tunnel packet,
/// and other answers are ICMP.
fn is_told_elsewhere(ran: &Ran) -> bool {
    let protocol = if ran.packet[12..14] == [0x86, 0xdd] { 20 } else { 23 };
    ran.counted.contains(&Reason::TooBigAnswered) && ran.packet.get(protocol) == Some(&17)
}

/// Packets that the programs make themselves, whatever packet they received.
const OWN: [Reason; 3] = [Reason::TooBigAnswered, Reason::TtlExceededAnswered, Reason::NdAnswered];

/// Verifies every checksum of a sent packet from scratch, if those of the received packet were
/// right, or if the program made the packet. Returns whether it verified them.
pub fn checksums(step: &Step, ran: &Ran, ipv6: bool) -> Result<bool, String> {
    let own = &ran.packet[if is_told_elsewhere(ran) { tunnel(ipv6) } else { 0 }..];
    if OWN.iter().any(|reason| ran.counted.contains(reason)) && !has_right_sums(own) {
        return Err(format!("checksums of {}", hex(&ran.packet)));
    }
    let is_reply = [
        Reason::Decapsulated,
        Reason::XdpDecapsulated,
        Reason::DeliveredHost,
        Reason::SentToClient,
        Reason::SentDsr,
    ]
    .iter()
    .any(|reason| ran.counted.contains(reason));
    let popped = step.program != Program::Container
        && (is_reply || ran.counted.contains(&Reason::XdpSentToClient));
    // A published port's packet for a backend here is delivered without a tunnel.
    let popped = popped && ran.packet.len() < step.packet.len();
    let inner = if popped { tunnel(ipv6) } else { 0 };
    if is_encapsulated(ran) {
        // The UDP checksum is zero (RFC 7348, section 5; RFC 6935).
        let udp = tunnel(ipv6) - 10;
        let is_sound = ipv6 || ones_complement(&ran.packet[14..34]) == 0;
        if !is_sound || ran.packet[udp..udp + 2] != [0, 0] {
            return Err(format!("outer checksums of {}", hex(&ran.packet)));
        }
        let came_in_tunnel = if is_told_elsewhere(ran) { tunnel(ipv6) } else { 0 };
        return verified(&step.packet[came_in_tunnel..], &ran.packet[tunnel(ipv6)..]);
    }
    verified(&step.packet[inner..], &ran.packet)
}

fn verified(before: &[u8], after: &[u8]) -> Result<bool, String> {
    match (is_sound(before), is_sound(after)) {
        (true, false) => Err(format!("checksums of {}, right before: {}", hex(after), hex(before))),
        (sound, _) => Ok(sound),
    }
}

/// Whether all checksums of a frame are right, including that of a header that an ICMP error
/// quotes.
fn is_sound(frame: &[u8]) -> bool {
    has_right_sums(frame) && is_quote_sound(frame)
}

/// Whether the checksums of the IPv4 header and of its payload are right.
fn has_right_sums(frame: &[u8]) -> bool {
    if frame[12..14] == [0x86, 0xdd] {
        return is_sound6(frame);
    }
    if frame[12..14] != [0x08, 0x00] {
        return true;
    }
    let header = usize::from(frame[14] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let Some(ip) = frame.get(14..14 + total) else { return false };
    let (Some(head), Some(body)) = (ip.get(..header), ip.get(header..)) else { return false };
    if ones_complement(head) != 0 {
        return false;
    }
    // Only the whole packet has the bytes that the transport checksum covers.
    if ip[6] & 0x3f != 0 || ip[7] != 0 {
        return true;
    }
    let pseudo = || {
        let length = (body.len() as u16).to_be_bytes();
        [&ip[12..20], &[0, ip[9]], &length, body].concat()
    };
    match ip[9] {
        1 => body.len() >= 8 && ones_complement(body) == 0,
        6 => body.len() >= 20 && ones_complement(&pseudo()) == 0,
        17 if body.len() < 8 => false,
        17 => body[6..8] == [0, 0] || ones_complement(&pseudo()) == 0,
        _ => true,
    }
}

/// Whether the IPv4 header quoted by an ICMP error has a right checksum. True for other frames.
fn is_quote_sound(frame: &[u8]) -> bool {
    let is_icmp = frame[12..14] == [0x08, 0x00] && frame.get(23) == Some(&1);
    let icmp = 14 + frame.get(14).map_or(0, |byte| usize::from(byte & 15) * 4);
    let is_error = frame.get(icmp).is_some_and(|kind| [3, 11, 12].contains(kind));
    let quote = frame.get(icmp + 8..).unwrap_or_default();
    let length = quote.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    let header = quote.get(..length).filter(|_| is_icmp && is_error);
    header.is_none_or(|header| ones_complement(header) == 0)
}

/// Like [`is_sound`], for IPv6: checks TCP, UDP and ICMPv6 directly behind the header.
fn is_sound6(frame: &[u8]) -> bool {
    let Some(ip) = frame.get(14..54) else { return false };
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let Some(body) = frame.get(54..54 + length) else { return false };
    let shortest = match ip[6] {
        6 => 20,
        17 => 8,
        58 => 4,
        _ => return true,
    };
    let length = (length as u32).to_be_bytes();
    let pseudo = [&ip[8..40], &length, &[0, 0, 0, ip[6]], body].concat();
    body.len() >= shortest && ones_complement(&pseudo) == 0
}
