//! The tables of schedulers in words: each backend's share.

use std::collections::BTreeMap;

use overlay_common::maps::{LB_HASH_FLOW, Service, Slot, TableKey};

use super::names::Names;
use crate::{
    agent::compile::scheduler_of,
    datapath::{DatapathState, TableDump},
    model::Scheduler,
};

/// A scheduler as the maps have it.
pub fn scheduler_word(scheduler: u8) -> &'static str {
    scheduler_of(scheduler).map_or("unknown", Scheduler::name)
}

/// The hash input of a service's scheduler.
pub fn hash_word(service: &Service) -> &'static str {
    match scheduler_of(service.scheduler).and_then(Scheduler::hash) {
        Some(_) if service.hash == LB_HASH_FLOW => "flow",
        Some(_) => "address",
        None => "-",
    }
}

/// A table as its map has it, and its contents.
pub type Table = (TableKey, Vec<Slot>);

/// The tables of schedulers, with the services of `held`.
pub fn dump(tables: &[Table], held: &DatapathState, names: &Names) -> TableDump {
    let rows = tables.iter().flat_map(|(key, entries)| {
        table_rows(*key, held.services.get(&key.service), entries, names)
    });
    let columns =
        ["number", "service", "lb", "table", "in_force", "entries", "backend", "name", "share"];
    TableDump {
        name: "lb_tables".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

fn table_rows(
    key: TableKey,
    service: Option<&Service>,
    entries: &[Slot],
    names: &Names,
) -> Vec<Vec<String>> {
    let mut shares: BTreeMap<Slot, usize> = BTreeMap::new();
    for backend in entries {
        *shares.entry(*backend).or_default() += 1;
    }
    let in_force = service.is_some_and(|service| service.table == key.table);
    let or_none = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
    let row = |(backend, count): (&Slot, &usize)| {
        let share = 100.0 * *count as f64 / entries.len().max(1) as f64;
        vec![
            key.service.to_string(),
            or_none(names.service(key.service)),
            service.map_or("-", |service| scheduler_word(service.scheduler)).to_owned(),
            format!("{:08x}", key.table),
            if in_force { "yes" } else { "no" }.to_owned(),
            count.to_string(),
            backend.to_string(),
            or_none(names.backend(*backend)),
            format!("{share:.2}%"),
        ]
    };
    shares.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::LB_MAGLEV;

    use super::*;

    #[test]
    fn each_backends_share_of_a_table_is_shown() {
        let key = TableKey { service: 7, table: 0xab };
        let service = Service { table: 0xab, scheduler: LB_MAGLEV, ..Service::default() };
        let rows = table_rows(key, Some(&service), &[4, 9, 4, 4], &Names::default());
        assert_eq!(rows[0], ["7", "-", "maglev", "000000ab", "yes", "3", "4", "-", "75.00%"]);
        assert_eq!(rows[1][5..], ["1", "9", "-", "25.00%"]);
    }
}
