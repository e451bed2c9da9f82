//! The bpf(2) commands that aya does not offer: links by interface index, what a link is attached to, and maps as bytes.
//!
//! All of the agent's `unsafe` that is not about mapped memory is in this file and in `sys/map.rs`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod map;

pub use map::{NO_EXIST, Place, RawMap};

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

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
