//! The embedded store: one redb file beside the manager.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `revision` | numbers |
//! | `objects` | `KIND/ID` | the object as JSON |
//! | `secrets` | `ca`, `token/ID` | secrets, never sent to agents |

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition, TableError,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::broadcast;

use super::{Commit, SecretChange, Store, StoreError, memory::WATCH_CAPACITY};
use crate::model::{Change, ClusterState, Id, Kind, Object};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &str, &str> = TableDefinition::new("objects");
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");

const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// Version of the tables' layout and of the JSON in them.
const FORMAT: u32 = 1;

/// A [`Store`] in one file. Only one process at a time can have it open.
#[derive(Debug)]
pub struct RedbStore {
    path: String,
    database: Database,
    /// Locked while a commit is written and announced, so that watchers see the commits in order.
    commits: Mutex<broadcast::Sender<Commit>>,
}

impl RedbStore {
    /// Creates the file with an empty state at revision 0. Only its owner can read it.
    ///
    /// # Errors
    /// [`StoreError::Backend`] if the file exists or cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        // redb would open an existing file here, and would let every user read a new one.
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| {
            StoreError::Backend(if e.kind() == io::ErrorKind::AlreadyExists {
                format!(
                    "the state file {name} exists already: this host has a cluster; run `overlay \
                     leave --force` first, or move the file away"
                )
            } else {
                format!("cannot create the state file {name}: {e}")
            })
        })?;
        let made = Database::builder()
            .create(path)
            .map_err(|e| opening(&name, e))
            .and_then(|database| initialize(&name, &database).map(|()| database));
        match made {
            Ok(database) => Ok(Self::with(name, database)),
            Err(e) => {
                // Removes the incomplete file. The first error is the one to report.
                let _ = std::fs::remove_file(path);
                Err(e)
            }
        }
    }

    /// Opens the file and checks all of it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Format`] or [`StoreError::Locked`], each with a
    /// remedy. [`StoreError::Backend`] if the file is missing or cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let empty = path
            .metadata()
            .map_err(|e| StoreError::Backend(format!("cannot open the state file {name}: {e}")))?
            .len()
            == 0;
        if empty {
            return Err(corrupt(&name, "it is empty"));
        }
        // The integrity check reports damage that redb would otherwise trust and then panic on. If
        // redb still panics, the file is damaged too.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Database::builder().set_check_integrity_on_open(true).open(path)
        }));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(e)) => return Err(opening(&name, e)),
            Err(_) => return Err(corrupt(&name, "its pages contradict each other")),
        };
        let store = Self::with(name, database);
        store.check_format()?;
        store.load()?;
        Ok(store)
    }

    fn with(path: String, database: Database) -> Self {
        Self { path, database, commits: Mutex::new(broadcast::channel(WATCH_CAPACITY).0) }
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let read = self.database.begin_read().map_err(backend)?;
        let meta = read.open_table(META).map_err(|e| self.table(e))?;
        let Some(found) = meta.get(FORMAT_KEY).map_err(|e| storage(&self.path, e))? else {
            return Err(corrupt(&self.path, "it does not say its format"));
        };
        match u32::try_from(found.value()) {
            Ok(FORMAT) => Ok(()),
            Ok(found) if found < FORMAT => {
                Err(corrupt(&self.path, &format!("there never was a format {found}")))
            }
            found => Err(StoreError::Format {
                path: self.path.clone(),
                found: found.unwrap_or(u32::MAX),
                supported: FORMAT,
            }),
        }
    }

    fn table(&self, error: TableError) -> StoreError {
        match error {
            TableError::Storage(e) => storage(&self.path, e),
            // A redb file of another program.
            other => corrupt(&self.path, &other.to_string()),
        }
    }

    fn revision(
        &self,
        meta: &impl redb::ReadableTable<&'static str, u64>,
    ) -> Result<u64, StoreError> {
        match meta.get(REVISION_KEY).map_err(|e| storage(&self.path, e))? {
            Some(revision) => Ok(revision.value()),
            None => Err(corrupt(&self.path, "it does not say its revision")),
        }
    }

    fn object(&self, key: &str, json: &str) -> Result<Object, StoreError> {
        let damaged = |e: &dyn std::fmt::Display| corrupt(&self.path, &format!("{key}: {e}"));
        let (kind, id) = key.split_once('/').ok_or_else(|| damaged(&"not a key of ours"))?;
        let Some(kind) = Kind::ALL.into_iter().find(|k| k.as_str() == kind) else {
            return Err(damaged(&"not a kind of ours"));
        };
        let object = match kind {
            Kind::Cluster => parse(json).map(Object::Cluster),
            Kind::Network => parse(json).map(Object::Network),
            Kind::Node => parse(json).map(Object::Node),
            Kind::Service => parse(json).map(Object::Service),
            Kind::Endpoint => parse(json).map(Object::Endpoint),
        }
        .map_err(|e| damaged(&e))?;
        if object.id().as_str() == id {
            Ok(object)
        } else {
            Err(damaged(&format!("the object says its id is {}", object.id())))
        }
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<ClusterState, StoreError> {
        let read = self.database.begin_read().map_err(backend)?;
        let meta = read.open_table(META).map_err(|e| self.table(e))?;
        let objects = read.open_table(OBJECTS).map_err(|e| self.table(e))?;
        let mut state = ClusterState { revision: self.revision(&meta)?, ..Default::default() };
        for row in objects.iter().map_err(|e| storage(&self.path, e))? {
            let (key, json) = row.map_err(|e| storage(&self.path, e))?;
            state.apply(Change::Put(self.object(key.value(), json.value())?));
        }
        Ok(state)
    }

    fn commit(
        &self,
        expected: u64,
        changes: Vec<Change>,
        secrets: Vec<SecretChange>,
    ) -> Result<u64, StoreError> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let write = self.database.begin_write().map_err(backend)?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.table(e))?;
            let found = self.revision(&meta)?;
            if found != expected {
                return Err(StoreError::Conflict { expected, found });
            }
            meta.insert(REVISION_KEY, expected + 1).map_err(|e| storage(&self.path, e))?;
            let mut objects = write.open_table(OBJECTS).map_err(|e| self.table(e))?;
            for change in &changes {
                match change {
                    Change::Put(object) => objects
                        .insert(key(object.kind(), object.id()).as_str(), json(object)?.as_str())
                        .map(drop),
                    Change::Delete { kind, id } => {
                        objects.remove(key(*kind, id).as_str()).map(drop)
                    }
                }
                .map_err(|e| storage(&self.path, e))?;
            }
            let mut table = write.open_table(SECRETS).map_err(|e| self.table(e))?;
            for secret in &secrets {
                match secret {
                    SecretChange::Put(key, value) => {
                        table.insert(key.as_str(), value.as_slice()).map(drop)
                    }
                    SecretChange::Delete(key) => table.remove(key.as_str()).map(drop),
                }
                .map_err(|e| storage(&self.path, e))?;
            }
        }
        write.commit().map_err(backend)?;
        let revision = expected + 1;
        // Sending fails if there is no watcher, which is no error.
        let _ = commits.send(Commit { revision, changes: Arc::new(changes) });
        Ok(revision)
    }

    fn secret(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.database.begin_read().map_err(backend)?;
        let table = read.open_table(SECRETS).map_err(|e| self.table(e))?;
        let found = table.get(key).map_err(|e| storage(&self.path, e))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let read = self.database.begin_read().map_err(backend)?;
        let table = read.open_table(SECRETS).map_err(|e| self.table(e))?;
        let mut found = Vec::new();
        for row in table.range(prefix..).map_err(|e| storage(&self.path, e))? {
            let (key, value) = row.map_err(|e| storage(&self.path, e))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(found)
    }

    fn watch(&self) -> broadcast::Receiver<Commit> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).subscribe()
    }
}

/// Writes the tables of an empty store.
fn initialize(path: &str, database: &Database) -> Result<(), StoreError> {
    let tables = |e: TableError| match e {
        TableError::Storage(e) => storage(path, e),
        other => corrupt(path, &other.to_string()),
    };
    let write = database.begin_write().map_err(backend)?;
    {
        let mut meta = write.open_table(META).map_err(tables)?;
        meta.insert(FORMAT_KEY, u64::from(FORMAT)).map_err(|e| storage(path, e))?;
        meta.insert(REVISION_KEY, 0).map_err(|e| storage(path, e))?;
        write.open_table(OBJECTS).map_err(tables)?;
        write.open_table(SECRETS).map_err(tables)?;
    }
    write.commit().map_err(backend)
}

fn key(kind: Kind, id: &Id) -> String {
    format!("{}/{id}", kind.as_str())
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(json)
}

/// Encodes the object without its kind, which is part of the key.
fn json(object: &Object) -> Result<String, StoreError> {
    fn text(object: &impl Serialize) -> Result<String, serde_json::Error> {
        serde_json::to_string(object)
    }
    match object {
        Object::Cluster(o) => text(o),
        Object::Network(o) => text(o),
        Object::Node(o) => text(o),
        Object::Service(o) => text(o),
        Object::Endpoint(o) => text(o),
    }
    .map_err(backend)
}

fn backend(error: impl std::fmt::Display) -> StoreError {
    StoreError::Backend(error.to_string())
}

fn corrupt(path: &str, reason: &str) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), reason: reason.to_owned() }
}

fn storage(path: &str, error: StorageError) -> StoreError {
    match error {
        StorageError::Corrupted(reason) => corrupt(path, &reason),
        // redb returns these errors for a file of another program or a truncated file.
        StorageError::Io(e)
            if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            corrupt(path, &e.to_string())
        }
        other => backend(format!("{path}: {other}")),
    }
}

fn opening(path: &str, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked(path.to_owned()),
        DatabaseError::Storage(e) => storage(path, e),
        DatabaseError::UpgradeRequired(version) => {
            corrupt(path, &format!("it has version {version} of redb's file format"))
        }
        other => backend(format!("{path}: {other}")),
    }
}
