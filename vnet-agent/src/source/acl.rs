//! Access for a few users of this host, beside the owner: a POSIX access control list, which an owner can set without any
//! capability, as it could not give the file away.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `posix_acl_xattr_header`, `ACL_USER_OBJ`… of Linux (`include/uapi/linux/posix_acl_xattr.h`, `posix_acl.h`).
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Entries that are about nobody in particular.
const NO_ID: u32 = u32::MAX;

/// Lets the owner and these users do to `path` what `rights` says (as one digit of a mode), and nobody else anything.
///
/// # Errors
/// It is not ours, or its file system has no such lists.
pub(super) fn allow(path: &Path, rights: u16, users: &[u32]) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(u32::from(rights) << 6))?;
    if users.is_empty() {
        return Ok(());
    }
    let (path, list) = (CString::new(path.as_os_str().as_bytes())?, list(rights, users));
    // SAFETY: both names are C strings and the value has the length that is given; the kernel only reads them.
    let set = unsafe { libc::setxattr(path.as_ptr(), c"system.posix_acl_access".as_ptr(), list.as_ptr().cast(), list.len(), 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As the kernel wants it: little-endian, sorted by kind and user.
fn list(rights: u16, users: &[u32]) -> Vec<u8> {
    let mut users = users.to_vec();
    users.sort_unstable();
    users.dedup();
    let named = users.into_iter().map(|user| (USER, rights, user));
    let entries = [(USER_OBJ, rights, NO_ID)].into_iter().chain(named);
    let entries = entries.chain([(GROUP_OBJ, 0, NO_ID), (MASK, rights, NO_ID), (OTHER, 0, NO_ID)]);
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}
