//! The bpf(2) commands that aya does not offer: links by interface index, what a link is attached to, and maps as bytes.
//!
//! All of the agent's `unsafe` that is not about mapped memory is in this file.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_NOEXIST`: insert, but change nothing that is there.
pub const NO_EXIST: u64 = 1;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TYPE_TCX: u32 = 11;
const F_BEFORE: u32 = 1 << 3;
const F_AFTER: u32 = 1 << 4;
const F_LINK: u32 = 1 << 13;

/// Where on a device a program sits: the kernel's `bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// `BPF_TCX_INGRESS`: what the host receives from the device, all that the endpoint sends.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`: what the host sends to the device.
    Egress = 47,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// `BPF_LINK_TYPE_…`.
    pub kind: u32,
    /// The program that runs.
    pub program: u32,
    /// For a TCX link: the device, or 0 if it is gone.
    pub ifindex: u32,
}

/// Where among others on the same hook a new program goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Before all that are there.
    #[default]
    First,
    /// After all that are there.
    Last,
}

/// # Safety
/// The attribute is what the command takes; pointers in it are valid for what the command reads and writes through them.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    let attr: *mut T = attr;
    // SAFETY: by the contract of this function. The kernel takes attributes of any size: it reads what there is, and takes
    // the rest for 0.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: a file descriptor that the kernel has just given to us, and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at `path`.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_c(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_GET, &mut attr) }.map(owned)
}

/// Pins a map, link or program.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_c(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches a program to a device. By index: its name may change at any time.
pub fn link_create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook, order: Order) -> io::Result<OwnedFd> {
    // Before or after nothing in particular: before or after all of them.
    let flags = if order == Order::First { F_BEFORE } else { F_AFTER };
    link_create_at(program, ifindex, hook, flags, 0)
}

/// Attaches a program right before the one of another link.
pub fn link_create_before(program: BorrowedFd<'_>, ifindex: u32, hook: Hook, other: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_create_at(program, ifindex, hook, F_BEFORE | F_LINK, raw(other))
}

fn link_create_at(program: BorrowedFd<'_>, ifindex: u32, hook: Hook, flags: u32, relative: u32) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreateAttr { program: raw(program), ifindex, attach_type: hook as u32, flags, relative, pad: 0, revision: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

/// Puts another program into a link, between two packets.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), raw(program), 0, 0];
    // SAFETY: no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link's program off its device, at once. (Without it that happens some time after the last pin and file
/// descriptor are gone.)
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), 0];
    // SAFETY: no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// What a link is, and where.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let at: *mut RawLinkInfo = &mut info;
    let mut attr = InfoAttr { fd: raw(link), len: size_of::<RawLinkInfo>() as u32, info: at as u64 };
    // SAFETY: `info` is writable for the length given, and any bytes are valid in it.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(LinkInfo { kind: info.kind, program: info.program, ifindex: info.ifindex })
}

#[repr(C)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    id_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The ids of the programs on a device's hook, in the order in which they run.
pub fn programs_of(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    // The kernel holds at most 64 a hook (BPF_MPROG_MAX).
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        ifindex,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
        id_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: `ids` is writable for `count` words; the other pointers are null, which says that they are not wanted.
    unsafe { bpf(PROG_QUERY, &mut attr)? };
    Ok(ids.iter().copied().take(attr.count as usize).collect())
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Bytes that an answer may be longer than what it answers.
const LONGER: usize = 256;

/// Runs a program for TCX once on a frame that is at the device `ifindex` (1: at none in particular). Gives what it returned, and the frame
/// afterwards. The kernel wants a whole IP header where the EtherType promises one.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> io::Result<(i32, Vec<u8>)> {
    // `struct __sk_buff` of linux/bpf.h, of which only this field may be anything but 0.
    const IFINDEX: usize = 10;
    let mut context = [0u32; 48];
    context[IFINDEX] = ifindex;
    let mut out = vec![0u8; frame.len() + LONGER];
    let mut attr = TestRunAttr {
        program: raw(program),
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: size_of_val(&context) as u32,
        ctx_in: context.as_ptr() as u64,
        ..TestRunAttr::default()
    };
    // SAFETY: frame and context are readable and `out` is writable for the sizes given; all outlive the call.
    unsafe { bpf(PROG_TEST_RUN, &mut attr)? };
    out.truncate(attr.data_size_out as usize);
    Ok((attr.result as i32, out))
}

/// Runs a program once, on a frame of zeros.
pub fn run_once(program: BorrowedFd<'_>) -> io::Result<()> {
    let frame = [0u8; 64];
    let mut attr = TestRunAttr {
        program: raw(program),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRunAttr::default()
    };
    // SAFETY: the frame is readable for its size and outlives the call; there is no output buffer.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// Waits until every program run that was going on when this was called has ended.
pub fn wait_for_programs() {
    // SAFETY: no pointers. The global command is the kernel's synchronize_rcu(), and programs run under RCU.
    let r = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if r < 0 {
        // nohz_full CPUs refuse it. A program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Plain data as bytes.
pub fn bytes_of<T: aya::Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` types in maps have no padding (asserted beside each type), and any byte is a valid `u8`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Plain data as bytes to be filled in.
pub fn bytes_of_mut<T: aya::Pod>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and every pattern of bytes is a valid `T`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// A value of plain data, all bytes 0.
pub fn zeroed<T: aya::Pod>() -> T {
    // SAFETY: every pattern of bytes is a valid `T`.
    unsafe { std::mem::zeroed() }
}

#[repr(C)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where in a map a scan is: only the kernel knows what it means.
pub type Place = [u64; 8];

/// A map whose element sizes are known; every access checks the buffers against them.
pub struct RawMap {
    fd: OwnedFd,
    key_size: usize,
    /// As the kernel copies values: rounded up to 8 bytes and one for each CPU in per-CPU maps.
    value_size: usize,
}

impl RawMap {
    /// Takes a map. The sizes must be the map's own: [`super::layout`] reads them from the kernel.
    pub fn new(fd: OwnedFd, key_size: usize, value_size: usize) -> Self {
        Self { fd, key_size, value_size }
    }

    /// The map's file descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value, as the kernel copies it.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    fn elem(&self, command: u32, key: &[u8], value: Option<*mut u8>, flags: u64) -> io::Result<()> {
        assert!(key.len() == self.key_size, "the key has not the map's size");
        let value = value.map_or(0, |v| v as u64);
        let mut attr = ElemAttr { map: raw(self.fd()), pad: 0, key: key.as_ptr() as u64, value, flags };
        // SAFETY: the key has the map's key size, and the callers check the value's; both outlive the call.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// Copies the value of `key` out; says if there is one.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert!(value.len() == self.value_size, "the value has not the map's size");
        found(self.elem(MAP_LOOKUP_ELEM, key, Some(value.as_mut_ptr()), 0))
    }

    /// Sets the value of `key`; `flags` may be [`NO_EXIST`].
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert!(value.len() == self.value_size, "the value has not the map's size");
        self.elem(MAP_UPDATE_ELEM, key, Some(value.as_ptr().cast_mut()), flags)
    }

    /// Removes `key`; says if there was one.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        found(self.elem(MAP_DELETE_ELEM, key, None, 0))
    }

    fn count(&self, keys: &[u8], values: &[u8]) -> u32 {
        let n = keys.len() / self.key_size;
        assert!(keys.len() == n * self.key_size && values.len() == n * self.value_size, "not as many keys as values");
        n as u32
    }

    /// Copies as many elements as the buffers hold, from `cursor` (of the call before; `None` at first) on. Gives how many,
    /// and the next cursor unless that was all. `ENOSPC`: the buffers do not hold one bucket of the hash table.
    pub fn lookup_batch(&self, cursor: Option<Place>, keys: &mut [u8], values: &mut [u8]) -> io::Result<(u32, Option<Place>)> {
        let count = self.count(keys, values);
        assert!(self.key_size <= size_of::<Place>(), "a key is longer than a place in a map");
        let (cursor_in, mut next) = (cursor.unwrap_or_default(), Place::default());
        let next_at: *mut Place = &mut next;
        let mut attr = BatchAttr {
            in_batch: if cursor.is_some() { &raw const cursor_in as u64 } else { 0 },
            out_batch: next_at as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map: raw(self.fd()),
            ..BatchAttr::default()
        };
        // SAFETY: the buffers hold `count` elements; a cursor of a hash table is a 32-bit word, others are a key, which is
        // not longer than a place; all outlive the call.
        match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => Ok((attr.count, Some(next))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, None)),
            Err(e) => Err(e),
        }
    }

    /// Removes elements, up to the first that is not there; gives how many.
    pub fn delete_batch(&self, keys: &[u8]) -> io::Result<u32> {
        let count = (keys.len() / self.key_size) as u32;
        assert!(keys.len() == count as usize * self.key_size, "a part of a key is left");
        let mut attr = BatchAttr { keys: keys.as_ptr() as u64, count, map: raw(self.fd()), ..BatchAttr::default() };
        // SAFETY: the buffer holds `count` keys and outlives the call.
        match unsafe { bpf(MAP_DELETE_BATCH, &mut attr) } {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(attr.count),
        }
    }

    /// Sets many elements.
    pub fn update_batch(&self, keys: &[u8], values: &[u8], flags: u64) -> io::Result<()> {
        let count = self.count(keys, values);
        let (keys, values) = (keys.as_ptr() as u64, values.as_ptr() as u64);
        let mut attr = BatchAttr { keys, values, count, map: raw(self.fd()), elem_flags: flags, ..BatchAttr::default() };
        // SAFETY: the buffers hold `count` elements and outlive the call.
        unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }
}

fn found(r: io::Result<()>) -> io::Result<bool> {
    match r {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}
