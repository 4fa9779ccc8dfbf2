//! Tests that run over every store, and tests of failures that only a file can have.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use super::{MemoryStore, RedbStore, SecretChange, Store, StoreError};
use crate::model::{Change, Cluster, Id, Kind, Object};

fn cluster(id: &str, vni: u32) -> Change {
    Change::Put(Object::Cluster(Cluster {
        id: Id::from_text(id),
        created: "2026-01-02T03:04:05Z".parse().expect("a time"),
        default_pool: "10.0.0.0/8".parse().expect("a subnet"),
        pool_prefix: 24,
        data_path_port: 4789,
        next_vni: vni,
        next_number: 1,
        node_timeout_ms: 5000,
    }))
}

fn over_each_store(check: impl Fn(&dyn Store)) {
    check(&MemoryStore::new());
    let dir = tempfile::tempdir().expect("a temporary directory");
    check(&RedbStore::create(dir.path().join("cluster.redb")).expect("created"));
}

#[test]
fn a_new_store_is_empty_at_revision_0() {
    over_each_store(|store| {
        let state = store.load().expect("loaded");
        assert_eq!(state, crate::model::ClusterState::default());
        assert_eq!(store.secret("ca").expect("read"), None);
    });
}

#[test]
fn a_commit_replaces_deletes_and_raises_the_revision_by_one() {
    over_each_store(|store| {
        assert_eq!(store.commit(0, vec![cluster("c1", 5)], vec![]).expect("committed"), 1);
        assert_eq!(store.commit(1, vec![cluster("c1", 6)], vec![]).expect("committed"), 2);
        let state = store.load().expect("loaded");
        assert_eq!((state.revision, state.cluster.map(|c| c.next_vni)), (2, Some(6)));
        let delete = Change::Delete { kind: Kind::Cluster, id: Id::from_text("c1") };
        assert_eq!(store.commit(2, vec![delete], vec![]).expect("committed"), 3);
        assert_eq!(store.load().expect("loaded").cluster, None);
    });
}

#[test]
fn a_commit_for_another_revision_changes_nothing() {
    over_each_store(|store| {
        store.commit(0, vec![cluster("c1", 5)], vec![]).expect("committed");
        let secret = SecretChange::Put("ca".to_owned(), b"x".to_vec());
        for expected in [0, 2] {
            let result = store.commit(expected, vec![cluster("c1", 9)], vec![secret.clone()]);
            assert!(
                matches!(result, Err(StoreError::Conflict { expected: e, found: 1 }) if e == expected)
            );
        }
        assert_eq!(store.load().expect("loaded").cluster.map(|c| c.next_vni), Some(5));
        assert_eq!(store.secret("ca").expect("read"), None);
    });
}

#[test]
fn secrets_are_listed_by_prefix_in_the_order_of_their_keys() {
    over_each_store(|store| {
        let put = |key: &str| SecretChange::Put(key.to_owned(), key.as_bytes().to_vec());
        let secrets = ["token/b", "tokens", "ca", "token/a", "toke"].map(put).to_vec();
        store.commit(0, vec![], secrets).expect("committed");
        let keys = |prefix| -> Vec<String> {
            store.secrets(prefix).expect("listed").into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys("token/"), ["token/a", "token/b"]);
        assert_eq!(store.secret("token/a").expect("read"), Some(b"token/a".to_vec()));
        store
            .commit(1, vec![], vec![SecretChange::Delete("token/a".to_owned())])
            .expect("committed");
        assert_eq!(keys("token/"), ["token/b"]);
    });
}

#[test]
fn watchers_see_every_commit_once_and_in_order() {
    over_each_store(|store| {
        let mut watch = store.watch();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        while let Err(StoreError::Conflict { .. }) = store.commit(
                            store.load().expect("loaded").revision,
                            vec![cluster("c1", 1)],
                            vec![],
                        ) {}
                    }
                });
            }
        });
        let seen: Vec<u64> =
            std::iter::from_fn(|| watch.try_recv().ok()).map(|c| c.revision).collect();
        assert_eq!(seen, (1..=20).collect::<Vec<u64>>());
    });
}

fn file(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("cluster.redb")
}

fn open_error(path: &Path) -> StoreError {
    RedbStore::open(path).expect_err("must not open")
}

#[test]
fn what_was_committed_is_there_after_opening_the_file_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = RedbStore::create(file(&dir)).expect("created");
    let secret = SecretChange::Put("ca".to_owned(), b"key".to_vec());
    store.commit(0, vec![cluster("c1", 5)], vec![secret]).expect("committed");
    let before = store.load().expect("loaded");
    drop(store);
    let store = RedbStore::open(file(&dir)).expect("opened");
    assert_eq!(store.load().expect("loaded"), before);
    assert_eq!(store.secret("ca").expect("read"), Some(b"key".to_vec()));
}

#[test]
fn the_file_is_for_its_owner_alone_and_never_overwritten() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = RedbStore::create(file(&dir)).expect("created");
    let mode = file(&dir).metadata().expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.commit(0, vec![cluster("c1", 5)], vec![]).expect("committed");
    drop(store);
    let error = RedbStore::create(file(&dir)).expect_err("must not overwrite");
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(RedbStore::open(file(&dir)).expect("opened").load().expect("loaded").revision, 1);
}

#[test]
fn a_second_opener_is_told_that_the_file_is_in_use() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _store = RedbStore::create(file(&dir)).expect("created");
    assert!(matches!(open_error(&file(&dir)), StoreError::Locked(_)));
}

#[test]
fn what_is_no_store_of_ours_is_called_damaged() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for bytes in [&b""[..], b"{}", &[0x5a; 70_000]] {
        std::fs::write(file(&dir), bytes).expect("written");
        let error = open_error(&file(&dir));
        assert!(matches!(error, StoreError::Corrupt { .. }), "{} bytes: {error}", bytes.len());
    }
    std::fs::remove_file(file(&dir)).expect("removed");
    let other = redb::Database::create(file(&dir)).expect("another program's file");
    drop(other);
    assert!(matches!(open_error(&file(&dir)), StoreError::Corrupt { .. }));
}

#[test]
fn a_file_cut_short_or_overwritten_anywhere_never_loads_as_something_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = RedbStore::create(file(&dir)).expect("created");
    for revision in 0..20 {
        let id = format!("c{revision}");
        store.commit(revision, vec![cluster(&id, 5)], vec![]).expect("committed");
    }
    let good = store.load().expect("loaded");
    drop(store);
    let bytes = std::fs::read(file(&dir)).expect("read");
    let damaged = dir.path().join("damaged.redb");
    for at in (0..bytes.len()).step_by(bytes.len() / 61) {
        for cut in [true, false] {
            let mut copy = bytes.clone();
            if cut {
                copy.truncate(at);
            } else {
                let end = (at + 512).min(copy.len());
                copy[at..end].fill(0xa5);
            }
            std::fs::write(&damaged, copy).expect("written");
            // Damage in unused parts of the file is harmless. Any other damage must be reported.
            match RedbStore::open(&damaged) {
                Ok(store) => assert_eq!(store.load().expect("loaded"), good, "{at} {cut}"),
                Err(StoreError::Corrupt { .. }) => {}
                Err(e) => panic!("at {at}, cut {cut}: {e}"),
            }
        }
    }
}

#[test]
fn a_newer_format_asks_for_the_newer_version() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    drop(RedbStore::create(file(&dir)).expect("created"));
    let database = redb::Database::open(file(&dir)).expect("opened");
    let write = database.begin_write().expect("writing");
    write
        .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
        .expect("the table")
        .insert("format", 2)
        .expect("written");
    write.commit().expect("committed");
    drop(database);
    assert!(matches!(open_error(&file(&dir)), StoreError::Format { found: 2, supported: 1, .. }));
}

#[test]
fn an_object_that_does_not_parse_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (key, json) in [("network/n1", "{\"id\": 3"), ("pod/p1", "{}"), ("network", "{}")] {
        drop(RedbStore::create(file(&dir)).expect("created"));
        let database = redb::Database::open(file(&dir)).expect("opened");
        let write = database.begin_write().expect("writing");
        write
            .open_table(redb::TableDefinition::<&str, &str>::new("objects"))
            .expect("the table")
            .insert(key, json)
            .expect("written");
        write.commit().expect("committed");
        drop(database);
        let error = open_error(&file(&dir)).to_string();
        assert!(error.contains(key) && error.contains("restore it"), "{error}");
        std::fs::remove_file(file(&dir)).expect("removed");
    }
}
