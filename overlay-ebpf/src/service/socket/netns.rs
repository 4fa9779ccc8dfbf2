//! Sockets of containers: a TCP connection to a VIP is given its backend when it is made, and no packet of
//! it is translated. What is not connected so, where cgroup v2 is missing for instance, meets the VIP in
//! `from_container`, as UDP and SCTP do: an entry of conntrack may change its backend, a socket cannot.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    programs::SockAddrContext,
};
use overlay_common::{
    Be16, Be32, Ip6, Reason,
    maps::{
        Affinity, AffinityKey, BACKEND_COUNTED, Backend, BackendStats, BackendStatsKey,
        CONNTRACK_FORWARD, Conntrack, ConntrackKey, ENDPOINT_SERVICE, Endpoint, Endpoint6Key,
        EndpointKey, Netns, NetnsNetwork, Service, SockFlow, VIA_VIP, VNI_FLAG_IPV6,
    },
    wire::PROTO_TCP,
};

use crate::{
    maps::{
        BACKEND_STATS, BACKENDS, COUNTER, ENDPOINTS, ENDPOINTS6, NETNS, SOCK_FLOWS, addr6_id,
        lookup, work::Pick,
    },
    observe::event,
    service::scheduler,
    service::socket::{self, Call},
};

static ZERO: BackendStats =
    BackendStats { flows: 0, in_packets: 0, in_bytes: 0, out_packets: 0, out_bytes: 0 };

/// The address that a socket of a container is to be connected to in place of a VIP. `None` where it asks for something
/// else, and where the packets have to be balanced, or refused.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, call: &Call) -> Option<Be32> {
    if call.proto != PROTO_TCP {
        return None;
    }
    let netns = NETNS.get_ptr(&call.netns)?;
    socket::forget(call.socket);
    // SAFETY: the pointer comes from a successful look-up, and a value is never changed: the agent puts
    // another one in its place.
    let network = *network(unsafe { &*netns }, call.addr)?;
    let key = EndpointKey { vni: network.vni, ip: call.addr };
    let endpoint = lookup(&ENDPOINTS, &key).filter(|e| e.kind == ENDPOINT_SERVICE)?;
    let flow = flow(ctx, call, (network.vni, network.ip, call.addr));
    let (number, backend) = pick(&flow, endpoint.service)?;
    begin(call, Ip6::mapped(call.addr), (endpoint.service, number), &backend)?;
    report(ctx, &flow, (endpoint.service, number), &backend);
    Some(backend.ip)
}

/// As [`connect`], for an IPv6 address.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext, call: &Call, frontend: Ip6) -> Option<Ip6> {
    if call.proto != PROTO_TCP {
        return None;
    }
    let netns = NETNS.get_ptr(&call.netns)?;
    socket::forget(call.socket);
    // SAFETY: as above.
    let (network, vip) = vip6(unsafe { &*netns }, frontend)?;
    // Flows of IPv6 have their ends' IPv4 addresses as names.
    let side = network.vni | VNI_FLAG_IPV6;
    let flow = flow(ctx, call, (side, network.ip, addr6_id::ipv4_of(vip.mac)));
    let (number, backend) = pick(&flow, vip.service)?;
    let to = *addr6_id::address(side, backend.ip)?;
    begin(call, frontend, (vip.service, number), &backend)?;
    report(ctx, &flow, (vip.service, number), &backend);
    Some(to)
}

/// The VIP with an IPv6 address on a network of the namespace, with the network.
#[inline(always)]
fn vip6(netns: &Netns, ip: Ip6) -> Option<(&NetnsNetwork, Endpoint)> {
    let vip = |network: &NetnsNetwork| {
        let endpoint = lookup(&ENDPOINTS6, &Endpoint6Key { vni: network.vni, ip })?;
        (endpoint.kind == ENDPOINT_SERVICE).then_some(endpoint)
    };
    let networks = netns.networks.iter().take_while(|network| network.vni != 0);
    networks.filter_map(|network| Some((network, vip(network)?))).next()
}

/// The flow of a connection from the second to the third on a network, or its IPv6 side.
#[inline(always)]
fn flow(ctx: &SockAddrContext, call: &Call, (vni, from, to): (u32, Be32, Be32)) -> ConntrackKey {
    ConntrackKey {
        saddr: from,
        daddr: to,
        sport: source_port(ctx, call),
        dport: call.port,
        vni,
        proto: PROTO_TCP,
        scope: [0; 3],
    }
}

/// The backend that a new flow to a service gets.
#[inline(always)]
fn pick(flow: &ConntrackKey, service: u32) -> Option<(u32, Backend)> {
    let mut pick = Pick {
        service: Service::default(),
        client: AffinityKey::default(),
        affinity: Affinity::default(),
        repicked: 0,
        via: 0,
    };
    let number = scheduler::pick(&mut pick, flow, service)?;
    let backend = lookup(&BACKENDS, &number);
    Some((number, backend.filter(|backend| backend.vni == flow.vni & !VNI_FLAG_IPV6)?))
}

/// Tells of a connection. Its port is 0 where it has none yet.
#[inline(always)]
fn report(ctx: &SockAddrContext, flow: &ConntrackKey, (service, number): (u32, u32), to: &Backend) {
    let sport = Be16::new(bound_port(ctx));
    let key = ConntrackKey { sport, ..*flow };
    let entry = Conntrack {
        saddr: key.saddr,
        daddr: to.ip,
        sport,
        dport: key.dport,
        vni: key.vni,
        service,
        backend: number,
        action: CONNTRACK_FORWARD,
        flags: VIA_VIP,
        ..Conntrack::default()
    };
    event::report_flow(&key, &entry, Reason::SocketBalanced);
}

/// The network of the namespace that an address is of.
#[inline(always)]
fn network(netns: &Netns, addr: Be32) -> Option<&NetnsNetwork> {
    netns.networks.iter().find(|network| network.contains(addr))
}

/// The port that the connection comes from, which a hash of flows takes in. A socket that is bound to none
/// gets one only afterwards; the cookie, which counts sockets, spreads as well.
#[inline(always)]
fn source_port(ctx: &SockAddrContext, call: &Call) -> Be16 {
    let bound = bound_port(ctx);
    Be16::new(if bound == 0 { call.socket as u16 } else { bound })
}

/// The port that the socket is bound to; 0 when to none.
#[inline(always)]
fn bound_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid for the whole run of the program, and so is its socket.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { (*sk).src_port as u16 }
    }
}

/// Counts the connection, and notes it for as long as the socket lives. `None` when it cannot be noted.
#[inline(always)]
fn begin(
    call: &Call,
    frontend: Ip6,
    (service, number): (u32, u32),
    backend: &Backend,
) -> Option<()> {
    let flow =
        SockFlow { vni: backend.vni, service, backend: number, ..call.flow(frontend, backend.ip) };
    SOCK_FLOWS.insert(&call.socket, &flow, u64::from(BPF_ANY)).ok()?;
    if backend.flags & BACKEND_COUNTED != 0 {
        scheduler::began(number);
    }
    count_flow(service, number, frontend.unmapped().is_none());
    count();
    Some(())
}

/// A connection of the backend has ended: its client has closed it.
#[inline(always)]
pub fn ended(number: u32) {
    let backend = lookup(&BACKENDS, &number);
    if backend.is_some_and(|backend| backend.flags & BACKEND_COUNTED != 0) {
        scheduler::ended(number);
    }
}

/// Counts a flow of the backend, through the VIP.
#[inline(always)]
fn count_flow(service: u32, backend: u32, is_ipv6: bool) {
    let ipv6 = u8::from(is_ipv6);
    let key = BackendStatsKey { service, backend, port: Be16::ZERO, proto: PROTO_TCP, ipv6 };
    if BACKEND_STATS.get_ptr(&key).is_none() {
        // Never over what a program that interrupts this one has counted.
        let _ = BACKEND_STATS.insert(&key, &ZERO, u64::from(BPF_NOEXIST));
    }
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(&key) {
        // SAFETY: the pointer comes from a successful look-up.
        increase(unsafe { &raw mut (*stats).flows });
    }
}

/// Counts a connection.
#[inline(always)]
fn count() {
    if let Some(counter) = COUNTER.get_ptr_mut(Reason::SocketBalanced as u32) {
        // SAFETY: as above.
        increase(unsafe { &raw mut (*counter).packets });
    }
}

/// Adds one. Programs of packets count in the same place: one that interrupts this one between the two
/// halves counts for nothing, which happens to one connection in a great many and changes no pick.
#[inline(always)]
fn increase(number: *mut u64) {
    // SAFETY: the caller's pointer is into a map's value, which stays there and is aligned.
    unsafe { number.write_volatile(number.read_volatile().wrapping_add(1)) };
}
