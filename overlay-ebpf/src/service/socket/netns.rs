//! Sockets of containers: a TCP connection to a VIP gets its backend at connect time, and its
//! packets need no translation. `from_container` balances the others: UDP, SCTP, and TCP without
//! cgroup v2. Their conntrack entries may change the backend, which a socket cannot.

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

/// The address to connect to in place of a VIP. `None` if the address is no VIP, and if the packet
/// path must balance or reject the connection.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, call: &Call) -> Option<Be32> {
    if call.proto != PROTO_TCP {
        return None;
    }
    let netns = NETNS.get_ptr(&call.netns)?;
    socket::forget(call.socket);
    // SAFETY: the pointer comes from a successful look-up, and a value never changes: the agent
    // replaces it.
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
    // IPv6 flows name their ends by IPv4 addresses.
    let side = network.vni | VNI_FLAG_IPV6;
    let flow = flow(ctx, call, (side, network.ip, addr6_id::ipv4_of(vip.mac)));
    let (number, backend) = pick(&flow, vip.service)?;
    let to = *addr6_id::address(side, backend.ip)?;
    begin(call, frontend, (vip.service, number), &backend)?;
    report(ctx, &flow, (vip.service, number), &backend);
    Some(to)
}

/// The network of the namespace on which `ip` is a VIP, and the VIP.
#[inline(always)]
fn vip6(netns: &Netns, ip: Ip6) -> Option<(&NetnsNetwork, Endpoint)> {
    let vip = |network: &NetnsNetwork| {
        let endpoint = lookup(&ENDPOINTS6, &Endpoint6Key { vni: network.vni, ip })?;
        (endpoint.kind == ENDPOINT_SERVICE).then_some(endpoint)
    };
    let networks = netns.networks.iter().take_while(|network| network.vni != 0);
    networks.filter_map(|network| Some((network, vip(network)?))).next()
}

/// The flow of a connection from the second to the third value on the network in the first one.
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

/// The backend for a new flow to a service.
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

/// Reports a connection. Its port is 0 if it has none yet.
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

/// The namespace's network with this address in its subnet.
#[inline(always)]
fn network(netns: &Netns, addr: Be32) -> Option<&NetnsNetwork> {
    netns.networks.iter().find(|network| network.contains(addr))
}

/// The connection's source port for hashes of flows. An unbound socket gets its port later; its
/// cookie, which counts sockets, spreads as well.
#[inline(always)]
fn source_port(ctx: &SockAddrContext, call: &Call) -> Be16 {
    let bound = bound_port(ctx);
    Be16::new(if bound == 0 { call.socket as u16 } else { bound })
}

/// The port that the socket is bound to; 0 for an unbound socket.
#[inline(always)]
fn bound_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid for the whole run of the program, and so is its socket.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { (*sk).src_port as u16 }
    }
}

/// Counts the connection and records it for the life of the socket. `None` if it cannot be
/// recorded.
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

/// Counts the end of a connection to the backend.
#[inline(always)]
pub fn ended(number: u32) {
    let backend = lookup(&BACKENDS, &number);
    if backend.is_some_and(|backend| backend.flags & BACKEND_COUNTED != 0) {
        scheduler::ended(number);
    }
}

/// Counts a flow to the backend through the VIP.
#[inline(always)]
fn count_flow(service: u32, backend: u32, is_ipv6: bool) {
    let ipv6 = u8::from(is_ipv6);
    let key = BackendStatsKey { service, backend, port: Be16::ZERO, proto: PROTO_TCP, ipv6 };
    if BACKEND_STATS.get_ptr(&key).is_none() {
        // Never replaces the counts of a program that interrupts this one.
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

/// Adds one. Packet programs count in the same place. A count of one that interrupts this program
/// between the read and the write is lost; that is rare and changes no pick.
#[inline(always)]
fn increase(number: *mut u64) {
    // SAFETY: the caller's pointer is into a map's value, which stays there and is aligned.
    unsafe { number.write_volatile(number.read_volatile().wrapping_add(1)) };
}
