//! What the attachments need of route netlink: the XDP mode in force, and for kernels before 6.6
//! the filters of the clsact qdisc. Acts in the namespace of the calling thread.

use futures_util::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    Handle,
    packet_route::{
        link::{LinkAttribute, LinkXdp},
        tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
    },
};

/// A filter of the clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// Name of the program, of BPF filters.
    pub(super) program: Option<String>,
}

/// Ids of the XDP programs of an interface: native, generic.
pub(super) fn xdp_programs(ifindex: u32) -> Result<(Option<u32>, Option<u32>), String> {
    ask(async move |handle: Handle| {
        let mut links = handle.link().get().match_index(ifindex).execute();
        let link = links.try_next().await?;
        let mut programs = (None, None);
        for attribute in link.into_iter().flat_map(|l| l.attributes) {
            let LinkAttribute::Xdp(xdp) = attribute else { continue };
            for item in xdp {
                match item {
                    LinkXdp::DrvProgId(id) => programs.0 = Some(id),
                    LinkXdp::SkbProgId(id) => programs.1 = Some(id),
                    _ => {}
                }
            }
        }
        Ok(programs)
    })
}

/// Filters at an interface's clsact qdisc: of ingress, and of egress. None when it has no qdisc.
pub(super) fn filters(ifindex: u32) -> Result<(Vec<Filter>, Vec<Filter>), String> {
    let index = ifindex.cast_signed();
    ask(async move |handle: Handle| {
        let mut filters = handle.traffic_filter(index);
        let ingress: Vec<TcMessage> = filters.get().ingress().execute().try_collect().await?;
        let egress: Vec<TcMessage> = filters.get().egress().execute().try_collect().await?;
        let parse = |all: Vec<TcMessage>| all.into_iter().filter_map(parse_filter).collect();
        Ok((parse(ingress), parse(egress)))
    })
}

fn parse_filter(message: TcMessage) -> Option<Filter> {
    let handle = u32::from(message.header.handle);
    // Each priority is listed once for itself, with handle 0, before its filters.
    if handle == 0 {
        return None;
    }
    let priority = (message.header.info >> 16) as u16;
    let options = message.attributes.into_iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let program = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
        _ => None,
    });
    Some(Filter { priority, handle, program })
}

/// Removes the clsact qdisc of an interface; a missing one is no error.
pub(super) fn remove_clsact(ifindex: u32) -> Result<(), String> {
    ask(async move |handle: Handle| {
        let mut request = handle.qdisc().del(ifindex.cast_signed());
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.message_mut().header.handle = TcHandle { major: u16::MAX, minor: 0 };
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(e))
                if e.code.is_some_and(|c| [-libc::ENOENT, -libc::EINVAL].contains(&c.get())) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    })
}

/// Runs `work` with a connection, on a thread and a runtime of its own: the callers are ordinary
/// functions that may or may not run on a runtime's thread.
fn ask<T, F>(work: impl FnOnce(Handle) -> F + Send) -> Result<T, String>
where
    T: Send,
    F: Future<Output = Result<T, rtnetlink::Error>>,
{
    let on_thread = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| e.to_string())?.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            work(handle).await.map_err(|e| match e {
                rtnetlink::Error::NetlinkError(e) => e.to_io().to_string(),
                e => e.to_string(),
            })
        })
    };
    std::thread::scope(|scope| match scope.spawn(on_thread).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
