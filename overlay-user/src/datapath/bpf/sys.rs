//! The few bpf(2) commands that aya keeps to itself: it opens pinned links without a way to their
//! interface, and replaces programs in TC and XDP links only, not in those of cgroups.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

/// The target that a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// TC ingress of the interface with this index.
    Tcx(u32),
    /// XDP of the interface with this index.
    Xdp(u32),
    /// The cgroup with this id, which is the inode number of its directory.
    Cgroup(u64),
    /// The target no longer exists.
    Gone,
    /// Something that we never attach to.
    Other,
}

/// The kernel's information about a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    pub(super) program: u32,
    pub(super) target: Target,
}

/// `BPF_OBJ_GET`: opens a pin.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the command returns a new descriptor that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_UPDATE`: replaces the program of a link; no packet sees none or both.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: BPF_LINK_UPDATE reads this member of the union, all of which is zero.
    let update = unsafe { &mut attr.link_update };
    update.link_fd = link.as_raw_fd().cast_unsigned();
    update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// `BPF_LINK_DETACH`: detaches before it returns. A link that loses its last pin is detached too,
/// but by a worker of the kernel, some time later.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: the structure is integers and unions of integers; zero is a valid value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd().cast_unsigned();
    attr.info.info_len = size_of_val(&info) as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    const CGROUP: u32 = bpf_link_type::BPF_LINK_TYPE_CGROUP as u32;
    // SAFETY: the type says which member of the union the kernel filled; all are integers.
    let target = unsafe {
        match info.type_ {
            TCX => some_or_gone(info.__bindgen_anon_1.tcx.ifindex, Target::Tcx),
            XDP => some_or_gone(info.__bindgen_anon_1.xdp.ifindex, Target::Xdp),
            CGROUP => some_or_gone(info.__bindgen_anon_1.cgroup.cgroup_id, Target::Cgroup),
            _ => Target::Other,
        }
    };
    Ok(LinkInfo { program: info.prog_id, target })
}

/// `BPF_MAP_UPDATE_BATCH` (Linux 5.6) of an array of words: sets all of its entries.
pub(super) fn fill_array(map: BorrowedFd<'_>, values: &[u32]) -> io::Result<()> {
    let keys: Vec<u32> = (0..values.len() as u32).collect();
    let mut attr = zeroed();
    // SAFETY: the batch commands read this member of the union, all of which is zero.
    let batch = unsafe { &mut attr.batch };
    batch.map_fd = map.as_raw_fd().cast_unsigned();
    batch.keys = keys.as_ptr() as u64;
    batch.values = values.as_ptr() as u64;
    batch.count = values.len() as u32;
    bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) of an array of `size` words.
pub(super) fn read_array(map: BorrowedFd<'_>, size: u32) -> io::Result<Vec<u32>> {
    let mut keys = vec![0_u32; size as usize];
    let mut values = vec![0_u32; size as usize];
    let mut next = 0_u32;
    let mut attr = zeroed();
    // SAFETY: as above.
    let batch = unsafe { &mut attr.batch };
    batch.map_fd = map.as_raw_fd().cast_unsigned();
    batch.out_batch = (&raw mut next) as u64;
    batch.keys = keys.as_mut_ptr() as u64;
    batch.values = values.as_mut_ptr() as u64;
    batch.count = size;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The end of the map was reached.
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
        outcome => drop(outcome?),
    }
    Ok(values)
}

/// How many entries are read in one call.
const BATCH: usize = 4096;

/// Counts the entries of a hash map with keys and values of these sizes, in bytes.
pub(super) fn count_entries(map: BorrowedFd<'_>, sizes: (u32, u32)) -> io::Result<u64> {
    let mut entries = 0;
    let sizes = (sizes.0 as usize, sizes.1 as usize);
    read_entries(map, sizes, |keys, _| entries += (keys.len() / sizes.0) as u64)?;
    Ok(entries)
}

/// Reads the entries of a hash map with keys and values of these sizes, in bytes, by
/// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6), some thousand at a time: keys one after the other, and their
/// values. That copies bucket by bucket, and makes no entry more recent than it is.
pub(super) fn read_entries(
    map: BorrowedFd<'_>,
    (key, value): (usize, usize),
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut keys = vec![0_u8; BATCH * key];
    let mut values = vec![0_u8; BATCH * value];
    // The bucket to go on with; nothing the first time.
    let (mut from, mut next) = (None, 0_u32);
    loop {
        let mut attr = zeroed();
        // SAFETY: the batch commands read and write this member of the union, all of which is zero.
        let batch = unsafe { &mut attr.batch };
        batch.map_fd = map.as_raw_fd().cast_unsigned();
        batch.in_batch = from.as_ref().map_or(0, |from: &u32| std::ptr::from_ref(from) as u64);
        batch.out_batch = (&raw mut next) as u64;
        batch.keys = keys.as_mut_ptr() as u64;
        batch.values = values.as_mut_ptr() as u64;
        batch.count = BATCH as u32;
        let outcome = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: as above; the kernel returns the earlier entries also when it reports the end of
        // the map.
        let count = unsafe { attr.batch.count } as usize;
        let ended = match outcome {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        each(&keys[..count * key], &values[..count * value]);
        if ended {
            return Ok(());
        }
        from = Some(next);
    }
}

/// `BPF_MAP_LOOKUP_ELEM`; `value` has room for the map's value, of all possible CPUs where it is
/// per CPU. False when there is no such entry.
pub(super) fn get(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    found(bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr))
}

/// `BPF_MAP_UPDATE_ELEM`; `value` as in [`get`].
pub(super) fn set(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = element(map, key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// `BPF_MAP_DELETE_ELEM`; a missing entry is no error.
pub(super) fn remove(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    found(bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut element(map, key))).map(drop)
}

/// `BPF_MAP_GET_NEXT_KEY`: writes the key after `key`, or the first one. False at the end.
pub(super) fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = element(map, key.unwrap_or_default());
    if key.is_none() {
        attr.__bindgen_anon_2.key = 0;
    }
    attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
    found(bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr))
}

/// The attributes of a new map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    /// One of `BPF_MAP_TYPE_*`.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value, of one CPU.
    pub(super) value: u32,
    /// Most entries.
    pub(super) entries: u32,
    /// Bits of `BPF_F_*`.
    pub(super) flags: u32,
}

/// `BPF_MAP_CREATE`; `inner` is a map like those that a map of maps is to hold.
pub(super) fn create_map(shape: MapShape, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: BPF_MAP_CREATE reads this member of the union, all of which is zero.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = shape.kind;
    create.key_size = shape.key;
    create.value_size = shape.value;
    create.max_entries = shape.entries;
    create.map_flags = shape.flags;
    create.inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd().cast_unsigned());
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the command returns a new descriptor that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_OBJ_PIN`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

fn element(map: BorrowedFd<'_>, key: &[u8]) -> bpf_attr {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr
}

fn found(outcome: io::Result<i32>) -> io::Result<bool> {
    match outcome {
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
        outcome => outcome.map(|_| true),
    }
}

/// `BPF_MAP_FREEZE` (Linux 5.2): user space can write no more to the map.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr).map(drop)
}

/// The kernel shows 0 once a link's interface or cgroup is removed.
fn some_or_gone<T: Default + PartialEq>(id: T, target: impl FnOnce(T) -> Target) -> Target {
    if id == T::default() { Target::Gone } else { target(id) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: this is a union of structures of integers. Zero is a valid value of each, and the
    // kernel demands zero in the fields that a command does not use.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` lives through the call and is as long as said; the pointers in it, set by the
    // callers above, point to values that live through it too.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            command as nix::libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
