//! Events for whoever watches. The agent alone reads the ring; each watcher has a queue of its own,
//! and one that does not keep up loses events, with a count. The programs tell of events only
//! while somebody watches.

mod filter;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use overlay_common::{
    Be32,
    event::{EVENT_KINDS, Watch},
    maps::Link,
};
use tokio::sync::mpsc::{self, error::TrySendError};

use self::{filter::Filter, record::Record};
use super::{
    Agent, AgentError, lock, show::address_ids::Live, show::names::Names,
    show::tables::monotonic_ns,
};
use crate::{
    api::{EventMessage, EventRequest},
    datapath::Datapath,
    link::Links,
};

/// Events that wait for one watcher.
pub(super) const QUEUE: usize = 1_024;
/// How long the reader waits for events before it looks whether anybody still watches.
const WAIT: Duration = Duration::from_millis(100);
/// For how long the programs tell of events unless they are asked again.
const LEASE: Duration = Duration::from_secs(5);
/// How often they are asked again.
const RENEW: Duration = Duration::from_secs(1);
/// How old the names shown beside events may be.
const NAMES_FOR: Duration = Duration::from_secs(1);

/// Who has a slot: network and address.
type Owners = BTreeMap<u32, (u32, Be32)>;

/// Everybody who watches.
#[derive(Default)]
pub struct Hub {
    inner: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    all: Vec<Watcher>,
    owners: Arc<Owners>,
    /// Whether the reader's thread runs.
    reading: bool,
    /// No more watchers: the daemon ends.
    closed: bool,
    /// What the programs were last told.
    told: Watch,
    /// Losses that were reported, by kind.
    lost: [u64; EVENT_KINDS],
}

struct Watcher {
    filter: Filter,
    queue: mpsc::Sender<EventMessage>,
    lost: u64,
    /// When it came, in ns of CLOCK_MONOTONIC: the ring may hold what is older.
    since: u64,
}

impl Watcher {
    /// Puts an event into the queue, or counts it as lost.
    fn tell(&mut self, message: EventMessage) {
        self.tell_losses();
        if self.lost > 0 {
            // What was lost must be told before what comes after it.
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
    /// What the programs must tell of for everybody to hear what was asked for, and of which
    /// endpoints.
    fn wanted(&self) -> (Watch, BTreeSet<u32>) {
        filter::union(self.all.iter().map(|watcher| &watcher.filter), &self.owners)
    }
}

impl Hub {
    /// Tells every watcher that it is over.
    pub fn close(&self) {
        let mut watchers = lock(&self.inner);
        watchers.closed = true;
        watchers.all.clear();
    }
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Begins to tell of events: the receiver gets them until it is dropped, beginning with
    /// [`EventMessage::Watching`].
    ///
    /// # Errors
    /// [`AgentError::Api`] when what is asked for does not exist, [`AgentError::Datapath`] when
    /// the programs cannot be told.
    pub fn watch_events(
        self: &Arc<Self>,
        request: &EventRequest,
    ) -> Result<mpsc::Receiver<EventMessage>, AgentError> {
        let filter = Filter::new(request, &self.state(), self.node())?;
        let (queue, events) = mpsc::channel(QUEUE);
        let mut watchers = lock(&self.events.inner);
        if watchers.closed {
            return Ok(events);
        }
        // What happened or was lost before is not the new one's.
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
            let agent = Arc::downgrade(self);
            std::thread::spawn(move || read(&agent));
        }
        Ok(events)
    }

    /// Ends all watching.
    pub fn end_events(&self) {
        self.events.close();
    }

    /// Notes who has which slot.
    pub(super) fn show_slots<'a>(&self, links: impl Iterator<Item = &'a Link>) {
        let owners = links.map(|link| (link.slot, (link.vni, link.ip)));
        let owners: Owners = owners.filter(|(slot, _)| *slot != 0).collect();
        let mut watchers = lock(&self.events.inner);
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
        let (mut watch, slots) = watchers.wanted();
        if watch.flags != 0 {
            watch.until = monotonic_ns() + LEASE.as_nanos() as u64;
        }
        self.datapath.set_watch(&watch, &slots)?;
        watchers.told = watch;
        Ok(())
    }

    /// Forgets watchers that are gone, asks for what the others want, and tells them what was
    /// lost. False when nobody is left.
    fn attend(&self, renewed: &mut Instant) -> Result<bool, AgentError> {
        let mut watchers = lock(&self.events.inner);
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

    /// Counts what did not fit the ring since the last time for each watcher that may have wanted it.
    fn share_losses(&self, watchers: &mut Watchers) -> Result<(), AgentError> {
        let lost = self.datapath.lost_events()?;
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

    /// Reads what is there and hands it to whoever wants it.
    fn pass_on(&self, names: &mut Option<(Instant, Names)>) -> Result<(), AgentError> {
        let mut records = Vec::new();
        self.datapath.read_events(WAIT, &mut |bytes| records.extend(Record::parse(bytes)))?;
        if records.is_empty() {
            return Ok(());
        }
        if names.as_ref().is_none_or(|(made, _)| made.elapsed() > NAMES_FOR) {
            *names = Some((Instant::now(), self.names()));
        }
        let Some((_, names)) = names else { return Ok(()) };
        let numbers = Live(names, &self.datapath);
        records.iter_mut().for_each(|record| record.resolve(&numbers));
        let port = self.config.data_path_port;
        let mut watchers = lock(&self.events.inner);
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

/// The reader's thread: runs while somebody watches.
fn read<D: Datapath, L: Links>(agent: &Weak<Agent<D, L>>) {
    let mut renewed = Instant::now();
    let mut names = None;
    while let Some(agent) = agent.upgrade() {
        match agent.attend(&mut renewed).and_then(|more| {
            if more { agent.pass_on(&mut names).map(|()| true) } else { Ok(false) }
        }) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!("reading events: {error}");
                // Their streams end, and they may ask again.
                let mut watchers = lock(&agent.events.inner);
                watchers.all.clear();
                watchers.reading = false;
                return;
            }
        }
    }
}
