//! bpf(2), for the calls that aya has no words for.

use std::os::{
    fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    raw::c_long,
};

use aya::Pod;
use nix::{errno::Errno, libc};

/// `enum bpf_cmd` of the kernel's uapi/linux/bpf.h.
const MAP_DELETE_ELEM: c_long = 3;
const MAP_GET_NEXT_KEY: c_long = 4;
const MAP_LOOKUP_BATCH: c_long = 24;
const MAP_UPDATE_BATCH: c_long = 26;

/// Fields of the batch commands in `union bpf_attr`.
const IN_BATCH: usize = 0;
const OUT_BATCH: usize = 8;
const KEYS: usize = 16;
const VALUES: usize = 24;
const COUNT: usize = 32;
const MAP: usize = 36;

/// How many entries are read in one call.
const BATCH: usize = 512;

/// `union bpf_attr`, zero-padded; fields are written at their offsets.
#[repr(C, align(8))]
pub struct Attr([u8; 128]);

impl Default for Attr {
    /// All zero.
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attr {
    /// Sets a field of four bytes.
    pub fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// Sets a field of eight bytes.
    pub fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// Sets a pointer. Its target must live as long as the attributes are used, and must be as
    /// large as the command expects.
    pub fn pointer<T: ?Sized>(self, offset: usize, to: *const T) -> Self {
        self.u64(offset, to.cast::<u8>() as u64)
    }

    /// Sets a file descriptor.
    pub fn fd(self, offset: usize, fd: impl AsFd) -> Self {
        self.u32(offset, fd.as_fd().as_raw_fd().unsigned_abs())
    }

    /// Reads a field of four bytes after the call: the kernel's answer.
    pub fn read(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }

    /// Calls the kernel.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn call(&mut self, command: c_long) -> Result<c_long, Errno> {
        // SAFETY: the attributes live through the call and have the stated size. Every address in
        // them is of memory that the caller of this function holds, of the stated size.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(self), size_of::<Self>())
        };
        Errno::result(result)
    }

    /// Calls the kernel for a descriptor.
    ///
    /// # Errors
    /// The errors of [`Attr::call`].
    pub fn open(mut self, command: c_long) -> Result<OwnedFd, Errno> {
        let fd = i32::try_from(self.call(command)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Reads all entries of a map with keys and values of these sizes, by few calls. A value of a
/// per-CPU map has the size of the values of all possible CPUs. Returns the keys and the values,
/// each in one vector.
///
/// # Errors
/// If the map has no batch operations: some kinds have none on some kernels.
pub fn entries(map: impl AsFd, (key, value): (usize, usize)) -> Result<(Vec<u8>, Vec<u8>), Errno> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    // The cursor for the kernel's next batch: of a key's size, and never less than four bytes.
    let (mut from, mut next) = (vec![0u8; key.max(8)], vec![0u8; key.max(8)]);
    let mut first = true;
    loop {
        let mut some = (vec![0u8; BATCH * key], vec![0u8; BATCH * value]);
        let mut attr = Attr::default()
            .pointer(OUT_BATCH, next.as_mut_ptr())
            .pointer(KEYS, some.0.as_mut_ptr())
            .pointer(VALUES, some.1.as_mut_ptr())
            .u32(COUNT, BATCH as u32)
            .fd(MAP, &map);
        if !first {
            attr = attr.pointer(IN_BATCH, from.as_ptr());
        }
        let result = attr.call(MAP_LOOKUP_BATCH);
        // At the end of the map the kernel returns ENOENT and the entries before the end.
        if result.is_ok() || result == Err(Errno::ENOENT) {
            let count = attr.read(COUNT) as usize;
            keys.extend(&some.0[..count * key]);
            values.extend(&some.1[..count * value]);
        }
        match result {
            Ok(_) => first = false,
            Err(Errno::ENOENT) => return Ok((keys, values)),
            Err(error) => return Err(error),
        }
        std::mem::swap(&mut from, &mut next);
    }
}

/// Every key and value of a hash map of these types.
///
/// # Errors
/// The errors of [`entries`].
pub fn typed_entries<K: Pod, V: Pod>(map: impl AsFd) -> Result<(Vec<K>, Vec<V>), Errno> {
    let (keys, values) = entries(map, (size_of::<K>(), size_of::<V>()))?;
    // SAFETY: a chunk has as many bytes as the type, and any bytes are a valid value of a `Pod`.
    let keys = keys.chunks_exact(size_of::<K>()).map(|bytes| unsafe { read(bytes) }).collect();
    // SAFETY: as above.
    let values = values.chunks_exact(size_of::<V>()).map(|bytes| unsafe { read(bytes) }).collect();
    Ok((keys, values))
}

/// A value of these bytes.
///
/// # Safety
/// `bytes` are as many as the type has.
pub unsafe fn read<T: Pod>(bytes: &[u8]) -> T {
    debug_assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: the caller's promise, and any bytes are a valid value of a `Pod`.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// Zeroes an array of values of this size, which for a per-CPU array is that of all possible CPUs.
///
/// # Errors
/// The kernel rejects the call.
pub fn zero(map: impl AsFd, value: usize, count: u32) -> Result<(), Errno> {
    let keys: Vec<u32> = (0..count).collect();
    let values = vec![0u8; value * count as usize];
    // SAFETY: there are as many keys and values as stated, of the map's sizes.
    unsafe { update(map, keys.as_ptr().cast(), values.as_ptr(), count) }
}

/// Writes entries. A value of a per-CPU map is that of all CPUs.
///
/// # Errors
/// The kernel rejects the call.
///
/// # Panics
/// If there are not as many keys as values.
pub fn write<K: Pod, V: Pod>(map: impl AsFd, keys: &[K], values: &[V]) -> Result<(), Errno> {
    assert_eq!(keys.len(), values.len());
    let count = u32::try_from(keys.len()).map_err(|_| Errno::E2BIG)?;
    // SAFETY: there are as many as stated, and their types have the map's sizes.
    unsafe { update(map, keys.as_ptr().cast(), values.as_ptr().cast(), count) }
}

/// # Safety
/// `keys` and `values` are `count` each, of the sizes that the map has.
unsafe fn update(
    map: impl AsFd,
    keys: *const u8,
    values: *const u8,
    count: u32,
) -> Result<(), Errno> {
    let attr = Attr::default().pointer(KEYS, keys).pointer(VALUES, values);
    attr.u32(COUNT, count).fd(MAP, &map).call(MAP_UPDATE_BATCH).map(drop)
}

/// Removes all entries from a map with keys of this size that is no array.
///
/// # Errors
/// The kernel rejects the call.
pub fn empty(map: impl AsFd, key: usize) -> Result<(), Errno> {
    let mut first = vec![0u8; key];
    loop {
        let mut attr = Attr::default().fd(0, &map).pointer(16, first.as_mut_ptr());
        match attr.call(MAP_GET_NEXT_KEY) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        match Attr::default().fd(0, &map).pointer(8, first.as_ptr()).call(MAP_DELETE_ELEM) {
            // An LRU may have evicted the entry meanwhile.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}
