//! Packets of clients outside to a published port of the host.

use aya_ebpf::programs::TcContext;
use overlay_common::{Be16, Be32, Reason, maps::Published, wire::Ethernet};

use crate::{
    family::Family,
    forward::deliver::{back_out, deliver_backend_as},
    maps::work::Area,
    outcome::Outcome,
    service::{route, stats},
    tunnel::encap,
    walk::reject,
};

/// Sends the packet of the flow in the work area to the backend of a published port.
#[inline(always)]
pub fn to_published<F: Family>(
    ctx: &TcContext,
    ip: &F::Header,
    published: &Published,
    mut work: Area,
) -> Outcome {
    let (number, target) = (published.service, published.target);
    if let Err(reason) = route::route(&mut work, number, target, (ctx.len(), 0)) {
        return reject::answer::<F>(ctx, work, reason);
    }
    let gateway = F::gateway_mac(ip, work)?;
    F::keep(work);
    stats::request(&work, ctx.len());
    let frontend = F::frontend(work);
    F::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    let backend = &work.backend;
    if backend.node == Be32::ZERO {
        return deliver_backend_as(F::ETHERTYPE, ctx, backend, gateway);
    }
    let ethertype = Be16::new(F::ETHERTYPE);
    let inner = Ethernet { dst: backend.mac, src: gateway, ethertype };
    let inner = F::dsr_header(work, &frontend, inner);
    match encap::encapsulate(ctx, backend.vni, backend.node, &inner) {
        Err(Reason::TooBig) => {
            let mtu = encap::inner_mtu(ctx, backend.node)?;
            F::too_big_from_frontend(ctx, &frontend, mtu, work)?;
            Ok(back_out(ctx, Reason::TooBigAnswered))
        }
        sent => sent,
    }
}
