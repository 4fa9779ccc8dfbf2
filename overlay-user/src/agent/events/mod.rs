//! Events for the callers that watch. The agent alone reads the ring. Each watcher has a queue of
//! its own; a watcher that does not keep up loses events, with a count. The programs tell of events
//! only while there is a watcher.

mod filter;
mod record;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use overlay_common::{
    event::{EVENT_KINDS, Watch},
    maps::Link,
};
use tokio::sync::mpsc::{self, error::TrySendError};

use self::{
    filter::Filter,
    record::{Owners, Record},
};
use super::{
    clock::monotonic_ns,
    context::Context,
    error::AgentError,
    show::{address_ids::Live, names::Names},
};
use crate::{
    api::{EventMessage, EventRequest},
    datapath::Datapath,
    link::Links,
    lock::lock,
    model::ClusterState,
};

/// Events that wait for one watcher.
pub const QUEUE: usize = 1_024;
/// How long the reader waits for events before it looks whether there is still a watcher.
const WAIT: Duration = Duration::from_millis(100);
/// For how long the programs tell of events unless they are asked again.
const LEASE: Duration = Duration::from_secs(5);
/// How often they are asked again.
const RENEW: Duration = Duration::from_secs(1);
/// How old the names shown beside events may be.
const NAMES_FOR: Duration = Duration::from_secs(1);

/// Reads the events of the programs for all watchers.
pub struct Hub<D, L> {
    context: Arc<Context<D, L>>,
    watchers: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    all: Vec<Watcher>,
    owners: Arc<Owners>,
    /// Whether the reader's thread runs.
    reading: bool,
    /// No more watchers: the daemon ends.
    closed: bool,
    /// The settings that the programs last got.
    told: Watch,
    /// Losses that were reported, by kind.
    lost: [u64; EVENT_KINDS],
}

struct Watcher {
    filter: Filter,
    queue: mpsc::Sender<EventMessage>,
    lost: u64,
    /// When the watcher came, in ns of CLOCK_MONOTONIC: the ring may hold older records.
    since: u64,
}

impl Watcher {
    /// Puts an event into the queue, or counts it as lost.
    fn tell(&mut self, message: EventMessage) {
        self.tell_losses();
        if self.lost > 0 {
            // Lost events must be reported before later events.
            self.lost += 1;
        } else if let Err(TrySendError::Full(_)) = self.queue.try_send(message) {
            self.lost += 1;
        }
    }

    fn tell_losses(&mut self) {
        if self.lost > 0 && self.queue.try_send(EventMessage::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
    }
}

impl Watchers {
    /// The events that all watchers together want, and their endpoints.
    fn wanted(&self) -> (Watch, BTreeSet<u32>) {
        filter::union(self.all.iter().map(|watcher| &watcher.filter), &self.owners)
    }
}

impl<D: Datapath, L: Links> Hub<D, L> {
    /// Without watchers.
    pub fn new(context: Arc<Context<D, L>>) -> Self {
        Self { context, watchers: Mutex::default() }
    }

    /// Tells every watcher that it is over.
    pub fn close(&self) {
        let mut watchers = lock(&self.watchers);
        watchers.closed = true;
        watchers.all.clear();
    }

    /// Begins to report events. The receiver gets them until it is dropped, beginning with
    /// [`EventMessage::Watching`]. `names` are the names that accompany the numbers; without them
    /// the reader ends.
    ///
    /// # Errors
    /// [`AgentError::Api`] when a requested object does not exist, [`AgentError::Datapath`] when
    /// the programs' settings cannot be written.
    pub fn watch(
        self: &Arc<Self>,
        request: &EventRequest,
        state: &ClusterState,
        names: impl Fn() -> Option<Names> + Send + 'static,
    ) -> Result<mpsc::Receiver<EventMessage>, AgentError> {
        let filter = Filter::new(request, state, self.context.node())?;
        let (queue, events) = mpsc::channel(QUEUE);
        let mut watchers = lock(&self.watchers);
        if watchers.closed {
            return Ok(events);
        }
        // The new watcher is told neither of earlier events nor of earlier losses.
        self.share_losses(&mut watchers)?;
        let since = monotonic_ns();
        watchers.all.push(Watcher { filter, queue: queue.clone(), lost: 0, since });
        if let Err(error) = self.tell_programs(&mut watchers) {
            watchers.all.pop();
            return Err(error);
        }
        // A new queue has room.
        let _ = queue.try_send(EventMessage::Watching);
        if !watchers.reading {
            watchers.reading = true;
            let hub = Arc::downgrade(self);
            std::thread::spawn(move || read(&hub, &names));
        }
        Ok(events)
    }

    /// Notes which endpoint has which counter index.
    pub fn show_counters<'a>(&self, links: impl Iterator<Item = &'a Link>) {
        let owners = links.map(|link| (link.counter, (link.vni, link.ip)));
        let owners: Owners = owners.filter(|(counter, _)| *counter != 0).collect();
        let mut watchers = lock(&self.watchers);
        if *watchers.owners == owners {
            return;
        }
        watchers.owners = Arc::new(owners);
        if watchers.reading
            && let Err(error) = self.tell_programs(&mut watchers)
        {
            tracing::warn!("events of new endpoints: {error}");
        }
    }

    fn tell_programs(&self, watchers: &mut Watchers) -> Result<(), AgentError> {
        let (mut watch, counters) = watchers.wanted();
        if watch.flags != 0 {
            watch.until = monotonic_ns() + LEASE.as_nanos() as u64;
        }
        self.context.datapath.set_watch(&watch, &counters)?;
        watchers.told = watch;
        Ok(())
    }

    /// Removes closed watchers, enables the events that the others want, and reports lost events
    /// to them. False when no watcher is left.
    fn attend(&self, renewed: &mut Instant) -> Result<bool, AgentError> {
        let mut watchers = lock(&self.watchers);
        let before = watchers.all.len();
        watchers.all.retain(|watcher| !watcher.queue.is_closed());
        if watchers.all.len() != before || renewed.elapsed() >= RENEW || watchers.all.is_empty() {
            *renewed = Instant::now();
            if watchers.all.is_empty() {
                watchers.reading = false;
            }
            self.tell_programs(&mut watchers)?;
        }
        self.share_losses(&mut watchers)?;
        watchers.all.iter_mut().for_each(Watcher::tell_losses);
        Ok(watchers.reading)
    }

    /// Counts the events that did not fit the ring since the last time, for each watcher that may
    /// have wanted them.
    fn share_losses(&self, watchers: &mut Watchers) -> Result<(), AgentError> {
        let lost = self.context.datapath.lost_events()?;
        let reported = std::mem::replace(&mut watchers.lost, lost);
        for watcher in &mut watchers.all {
            for kind in 0..EVENT_KINDS {
                if watcher.filter.wants_kind(kind) {
                    watcher.lost += lost[kind].wrapping_sub(reported[kind]);
                }
            }
        }
        Ok(())
    }

    /// Reads the available records and sends them to the watchers that want them.
    fn pass_on(&self, names: &mut Cached<'_>) -> Result<(), AgentError> {
        let mut records = Vec::new();
        self.context
            .datapath
            .read_events(WAIT, &mut |bytes| records.extend(Record::parse(bytes)))?;
        if records.is_empty() {
            return Ok(());
        }
        let Some(names) = names.current() else { return Ok(()) };
        let numbers = Live(names, &self.context.datapath);
        records.iter_mut().for_each(|record| record.resolve(&numbers));
        let port = self.context.config.data_path_port;
        let mut watchers = lock(&self.watchers);
        let (owners, told) = (watchers.owners.clone(), watchers.told);
        for mut record in records {
            record.locate(&owners, port);
            for watcher in &mut watchers.all {
                if record.time() >= watcher.since && watcher.filter.lets_through(&record, &told) {
                    let event = record.event(names, watcher.filter.snaplen());
                    watcher.tell(EventMessage::Event(Box::new(event)));
                }
            }
        }
        Ok(())
    }
}

/// The names beside the numbers, made anew when they are old.
struct Cached<'a> {
    make: &'a dyn Fn() -> Option<Names>,
    names: Option<(Instant, Names)>,
}

impl Cached<'_> {
    fn current(&mut self) -> Option<&Names> {
        if self.names.as_ref().is_none_or(|(made, _)| made.elapsed() > NAMES_FOR) {
            self.names = Some((Instant::now(), (self.make)()?));
        }
        self.names.as_ref().map(|(_, names)| names)
    }
}

/// The reader's thread: runs while there is a watcher.
fn read<D: Datapath, L: Links>(hub: &Weak<Hub<D, L>>, names: &dyn Fn() -> Option<Names>) {
    let mut renewed = Instant::now();
    let mut names = Cached { make: names, names: None };
    while let Some(hub) = hub.upgrade() {
        let read = hub
            .attend(&mut renewed)
            .and_then(|more| if more { hub.pass_on(&mut names).map(|()| true) } else { Ok(false) });
        match read {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!("reading events: {error}");
                // Their streams end, and the callers may ask again.
                let mut watchers = lock(&hub.watchers);
                watchers.all.clear();
                watchers.reading = false;
                return;
            }
        }
    }
}
