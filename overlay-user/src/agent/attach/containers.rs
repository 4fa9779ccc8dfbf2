//! The containers that are attached, and which of them a call is changing.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::AbortHandle;

use super::records::{RECORDS_FORMAT, Record, Records};
use crate::{
    agent::error::AgentError,
    api::{ApiError, ErrorCode},
    lock::lock,
    model::Id,
};

/// Where a container is in its life here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being wired; not on disk yet.
    Attaching,
    /// Wired.
    Attached,
    /// Being unwired.
    Detaching,
    /// Removed. A task that still holds it leaves it alone.
    Gone,
}

/// A container of this host.
pub struct Container {
    id: Id,
    record: Mutex<Record>,
    phase: Mutex<Phase>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Its endpoints were in a live state: from then on their absence means something.
    pub seen: AtomicBool,
    /// It was drained to the end.
    pub drained: AtomicBool,
    /// Held while it is wired, drained or unwired.
    pub busy: tokio::sync::Mutex<()>,
}

impl Container {
    fn new(record: Record, phase: Phase) -> Self {
        Self {
            id: record.container.clone(),
            record: Mutex::new(record),
            phase: Mutex::new(phase),
            tasks: Mutex::default(),
            seen: AtomicBool::new(phase == Phase::Attached),
            drained: AtomicBool::new(false),
            busy: tokio::sync::Mutex::default(),
        }
    }

    /// Its identifier.
    pub const fn id(&self) -> &Id {
        &self.id
    }

    /// A copy of its record.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Changes its record.
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        change(&mut lock(&self.record));
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// Moves it on in its life.
    pub fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// Whether its interfaces are in place and no detach has begun.
    pub fn is_attached(&self) -> bool {
        self.phase() == Phase::Attached
    }

    /// Whether its endpoints were in a live state.
    pub fn was_seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// Keeps a task that works for it, to be ended with it.
    pub fn keep(&self, task: AbortHandle) {
        lock(&self.tasks).push(task);
    }

    /// Ends the tasks that work for it.
    pub fn end_tasks(&self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end_tasks();
    }
}

/// The containers of this host by id, and their file.
pub struct Containers {
    path: PathBuf,
    boot: String,
    by_id: Mutex<BTreeMap<Id, Arc<Container>>>,
    /// Held while the file is written, so that an older list never follows a newer one.
    writing: Mutex<()>,
}

impl Containers {
    /// None yet; [`Containers::load`] reads the file.
    pub fn new(path: PathBuf, boot: String) -> Self {
        Self { path, boot, by_id: Mutex::default(), writing: Mutex::default() }
    }

    /// Takes over the records of an earlier daemon. Returns those of an earlier boot: nothing of
    /// these containers can exist any more.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] when the file is not ours.
    pub fn load(&self) -> Result<Vec<Record>, AgentError> {
        let records = Records::load(&self.path)?;
        if records.boot != self.boot {
            return Ok(records.containers);
        }
        let mut by_id = lock(&self.by_id);
        for record in records.containers {
            let container = Arc::new(Container::new(record, Phase::Attached));
            by_id.insert(container.id.clone(), container);
        }
        Ok(Vec::new())
    }

    /// Writes down those that are attached.
    ///
    /// # Errors
    /// [`AgentError::Io`] names the file.
    pub fn save(&self) -> Result<(), AgentError> {
        let _writing = lock(&self.writing);
        let containers =
            self.all().iter().filter(|c| c.is_attached()).map(|c| c.record()).collect();
        let records = Records { format: RECORDS_FORMAT, boot: self.boot.clone(), containers };
        records.save(&self.path)
    }

    /// All of them, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.by_id).values().cloned().collect()
    }

    /// Whether there is one with this id.
    pub fn has(&self, id: &Id) -> bool {
        lock(&self.by_id).contains_key(id)
    }

    /// Adds one that is about to be wired.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when its namespace is attached already. Whether its name is free
    /// is the manager's to say: names are unique per network.
    pub fn add(&self, record: Record) -> Result<Arc<Container>, ApiError> {
        let mut by_id = lock(&self.by_id);
        for other in by_id.values() {
            let other = lock(&other.record);
            if other.namespace == record.namespace {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!(
                        "the namespace {} is attached as container {:?}",
                        record.netns.display(),
                        other.name
                    ),
                )
                .hint(format!("detach it first: overlay endpoint detach {}", other.name)));
            }
        }
        let container = Arc::new(Container::new(record, Phase::Attaching));
        by_id.insert(container.id.clone(), container.clone());
        Ok(container)
    }

    /// Forgets one.
    pub fn remove(&self, container: &Container) {
        container.enter(Phase::Gone);
        container.end_tasks();
        lock(&self.by_id).remove(&container.id);
    }

    /// Ends all tasks that work for containers; the containers stay.
    pub fn end_tasks(&self) {
        for container in self.all() {
            container.end_tasks();
        }
    }

    /// The container with this id, name or unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], or [`ErrorCode::Conflict`] when several have the name.
    pub fn find(&self, reference: &str) -> Result<Arc<Container>, ApiError> {
        if let Some(container) = lock(&self.by_id).get(&Id::from_text(reference)) {
            return Ok(container.clone());
        }
        let all = self.all();
        let of_name: Vec<_> = all.iter().filter(|c| lock(&c.record).name == reference).collect();
        let begins =
            |c: &&Arc<Container>| reference.len() >= 4 && c.id.as_str().starts_with(reference);
        let matches =
            if of_name.is_empty() { all.iter().filter(begins).collect() } else { of_name };
        match matches[..] {
            [container] => Ok(container.clone()),
            [] => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("no container {reference:?} is attached on this host"),
            )
            .hint("`overlay endpoint ls` lists the containers of this host")),
            _ => {
                let ids: Vec<_> = matches.iter().map(|c| c.id.short()).collect();
                let message = format!("{} containers of this host are {reference:?}", ids.len());
                Err(ApiError::new(ErrorCode::Conflict, message)
                    .hint(format!("name one by its id: {}", ids.join(", "))))
            }
        }
    }
}
