//! The pick of a backend for a new flow. Every scheduler reads a constant number of entries, for
//! any number of services and backends.

use overlay_common::{
    hash,
    maps::{
        Active, Affinity, AffinityKey, BACKEND_ACTIVE, Backend, ConntrackKey, LB_HASH_FLOW,
        LB_LEAST, LB_MAGLEV, LB_SOURCE_HASH, Service, SlotKey, TableKey, VNI_FLAG_IPV6,
    },
};

use crate::{
    clock::now,
    maps::{
        ACTIVE, AFFINITY, BACKENDS, LB_TABLES, RR_CURSOR, SERVICES, SLOTS, addr6_id, lookup,
        work::Pick,
    },
};

const SECOND: u64 = 1_000_000_000;
/// Makes the second choice of [`LB_LEAST`] independent of the first one: 2^32 divided by the golden
/// ratio.
const SECOND_CHOICE: u32 = 0x9e37_79b9;

/// The number of the backend for the new flow `key` to service `number`; `None` if no backend takes
/// new flows. `pick` is working memory and holds the service afterwards.
#[inline(always)]
pub fn pick(pick: &mut Pick, key: &ConntrackKey, number: u32) -> Option<u32> {
    let service = lookup(&SERVICES, &number)?;
    pick.service = service;
    if service.slots == 0 {
        return None;
    }
    if service.affinity == 0 {
        return next(pick, key, number);
    }
    pick.client = AffinityKey { service: number, vni: key.vni, client: key.saddr };
    let now = now();
    let backend = match kept(&pick.client, service.affinity, now) {
        Some(backend) => backend,
        None => next(pick, key, number)?,
    };
    pick.affinity = Affinity { backend, pad: 0, last_used: now };
    // If the map takes no entry, the client loses its affinity, not its flow.
    let _ = AFFINITY.replace(&pick.client, &pick.affinity);
    Some(backend)
}

/// The backend that the client keeps, if it takes new flows.
#[inline(always)]
fn kept(client: &AffinityKey, seconds: u32, now: u64) -> Option<u32> {
    let entry = AFFINITY.get_ptr_mut(client)?;
    // SAFETY: the pointer comes from a successful look-up. If the kernel reuses the entry at this
    // moment, the result is another client's backend; the checks below hold for it too.
    let Affinity { backend, last_used, .. } = unsafe { *entry };
    if now.wrapping_sub(last_used) > u64::from(seconds) * SECOND && now > last_used {
        return None;
    }
    let Backend { state, weight, .. } = lookup(&BACKENDS, &backend)?;
    if state == BACKEND_ACTIVE && weight != 0 { Some(backend) } else { None }
}

/// The scheduler's choice.
#[inline(always)]
fn next(pick: &mut Pick, key: &ConntrackKey, number: u32) -> Option<u32> {
    if let Some(backend) = scheduled(pick, key, number) {
        return Some(backend);
    }
    // The table may have been replaced between the two look-ups.
    let then = pick.service.table;
    pick.service = lookup(&SERVICES, &number)?;
    let Service { table, slots, .. } = pick.service;
    if table == then || slots == 0 {
        return None;
    }
    scheduled(pick, key, number)
}

#[inline(always)]
fn scheduled(pick: &Pick, key: &ConntrackKey, number: u32) -> Option<u32> {
    let service = &pick.service;
    let slots = service.slots;
    if slots == 0 {
        return None;
    }
    match service.scheduler {
        LB_SOURCE_HASH | LB_MAGLEV => {
            backend_slot(service, number, client_hash(service, key) % slots)
        }
        LB_LEAST => {
            less_loaded(service, number, hash::mix(client_hash(service, key), turn(number)))
        }
        _ => backend_slot(service, number, turn(number) % slots),
    }
}

#[inline(always)]
fn client_hash(service: &Service, key: &ConntrackKey) -> u32 {
    let client = if key.vni & VNI_FLAG_IPV6 == 0 { key.saddr } else { addr6_id::hashed(key.saddr) };
    if service.hash == LB_HASH_FLOW {
        hash::of_client_flow(client, [key.sport, key.dport], key.proto)
    } else {
        hash::of_client(client)
    }
}

/// Number of picks before this one.
#[inline(always)]
fn turn(service: u32) -> u32 {
    match RR_CURSOR.get_ptr_mut(&service) {
        // This is not atomic. Two CPUs that pick at the same time may take the same backend once,
        // which costs less than a locked cache line that moves between them.
        // SAFETY: the pointer comes from a successful look-up; a torn u32 does not exist.
        Some(cursor) => unsafe {
            let turn = cursor.read_volatile();
            cursor.write_volatile(turn.wrapping_add(1));
            turn
        },
        None => 0,
    }
}

#[inline(always)]
fn backend_slot(service: &Service, number: u32, index: u32) -> Option<u32> {
    let backend = if service.table == 0 {
        lookup(&SLOTS, &SlotKey { service: number, index })?
    } else {
        let key = TableKey { service: number, table: service.table };
        // SAFETY: a table in the map is never written to, and a removed one stays until this run of
        // the program has ended.
        *unsafe { LB_TABLES.get_value(&key, &index) }?
    };
    // An entry that was never filled in: numbers of backends begin at 1.
    if backend == 0 { None } else { Some(backend) }
}

/// The backend with fewer flows for its weight, of two random ones. Its load is close to the least
/// of all, at the cost of two look-ups (M. Mitzenmacher, The Power of Two Choices in Randomized
/// Load Balancing).
#[inline(always)]
fn less_loaded(service: &Service, number: u32, random: u32) -> Option<u32> {
    let slots = service.slots;
    let first = random % slots;
    let mut second = hash::mix(random, SECOND_CHOICE) % slots;
    if second == first {
        second = if first + 1 == slots { 0 } else { first + 1 };
    }
    let a = backend_slot(service, number, first)?;
    let Some(b) = backend_slot(service, number, second) else { return Some(a) };
    if a == b || flows(a) * weight(b) <= flows(b) * weight(a) { Some(a) } else { Some(b) }
}

/// Number of flows that the backend would have with this one.
#[inline(always)]
fn flows(backend: u32) -> u64 {
    u64::from(lookup(&ACTIVE, &backend).unwrap_or(0)) + 1
}

#[inline(always)]
fn weight(backend: u32) -> u64 {
    lookup(&BACKENDS, &backend).map_or(1, |backend| u64::from(backend.weight))
}

/// Counts a new flow.
#[inline(always)]
pub fn began(backend: u32) {
    correct(backend, |flows| flows.wrapping_add(1));
}

/// Counts the end of a flow.
#[inline(always)]
pub fn ended(backend: u32) {
    // The agent may have counted it out already.
    correct(backend, |flows| if flows == 0 { 0 } else { flows - 1 });
}

#[inline(always)]
fn correct(backend: u32, change: impl FnOnce(Active) -> Active) {
    if let Some(active) = ACTIVE.get_ptr_mut(&backend) {
        // SAFETY: the pointer comes from a successful look-up. A write of another CPU or of the
        // agent at the same time makes the number wrong by one, until the agent counts again.
        unsafe { active.write_volatile(change(active.read_volatile())) };
    }
}
