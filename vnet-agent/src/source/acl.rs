//! Access for a few users of this host, beside the owner: a POSIX access control list, which an owner can set without any
//! capability, as it could not give the file away.

use std::ffi::CString;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// `posix_acl_xattr_header`, `ACL_USER_OBJ`… of Linux (`include/uapi/linux/posix_acl_xattr.h`, `posix_acl.h`).
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Entries that are about nobody in particular.
const NO_ID: u32 = u32::MAX;

/// A file, held by itself: whoever may write to its directory can put another, or a link to one, at its path.
pub(super) struct Held(File);

impl Held {
    /// The socket at `path`, which is ours; and this one, if that is known.
    ///
    /// # Errors
    /// There is something else by now.
    pub(super) fn socket(path: &Path, instance: Option<(u64, u64)>) -> io::Result<Self> {
        // One that has another name may be a socket of the agent's in another place.
        Self::open(path, instance, |metadata| metadata.file_type().is_socket() && metadata.nlink() == 1)
    }

    /// The directory at `path`, likewise.
    ///
    /// # Errors
    /// There is something else by now.
    pub(super) fn directory(path: &Path, instance: Option<(u64, u64)>) -> io::Result<Self> {
        Self::open(path, instance, Metadata::is_dir)
    }

    fn open(path: &Path, instance: Option<(u64, u64)>, is_expected: impl FnOnce(&Metadata) -> bool) -> io::Result<Self> {
        let file = File::from(open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?);
        let metadata = file.metadata()?;
        let same = instance.is_none_or(|instance| instance == (metadata.dev(), metadata.ino()));
        let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
        match same && ours && is_expected(&metadata) {
            true => Ok(Self(file)),
            false => Err(io::Error::other("somebody has put something else there")),
        }
    }

    /// Lets the owner and these users do to it what `rights` says (as one digit of a mode), and nobody else anything.
    ///
    /// # Errors
    /// Its file system has no such lists.
    pub(super) fn allow(&self, rights: u16, users: &[u32]) -> io::Result<()> {
        if users.is_empty() {
            return self.set_mode(u32::from(rights) << 6);
        }
        let (path, list) = (CString::new(self.itself().as_os_str().as_bytes())?, list(rights, users));
        // In one step: who may already is not kept out meanwhile.
        // SAFETY: both names are C strings and the value has the length that is given; the kernel only reads them.
        let set =
            unsafe { libc::setxattr(path.as_ptr(), c"system.posix_acl_access".as_ptr(), list.as_ptr().cast(), list.len(), 0) };
        if set == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        self.set_mode(u32::from(rights) << 6)?;
        Err(error)
    }

    /// Sets its mode.
    ///
    /// # Errors
    /// The system does not let it.
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(self.itself(), Permissions::from_mode(mode))
    }

    fn itself(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn only_what_was_meant_is_opened_to_others() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-acl-XXXXXX")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        let instance = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
        let (secret, place, other) = (dir.join("secret"), dir.join("place"), dir.join("other"));
        std::fs::write(&secret, "").unwrap();
        std::fs::set_permissions(&secret, Permissions::from_mode(0o640)).unwrap();
        symlink(&secret, &place).unwrap();
        Held::socket(&place, None).map(drop).unwrap_err();
        Held::directory(&place, None).map(drop).unwrap_err();
        std::fs::remove_file(&place).unwrap();
        std::fs::hard_link(&secret, &place).unwrap();
        Held::socket(&place, None).map(drop).unwrap_err();
        assert_eq!(mode(&secret), 0o640);
        std::fs::remove_file(&place).unwrap();
        let (_one, _two) = (UnixDatagram::bind(&place).unwrap(), UnixDatagram::bind(&other).unwrap());
        Held::socket(&place, Some(instance(&other))).map(drop).unwrap_err();
        Held::directory(&place, None).map(drop).unwrap_err();
        let held = Held::socket(&place, Some(instance(&place))).unwrap();
        std::fs::remove_file(&place).unwrap();
        symlink(&secret, &place).unwrap();
        held.set_mode(0o666).unwrap();
        assert_eq!(mode(&secret), 0o640);
        Held::directory(&dir, Some(instance(&dir))).unwrap().allow(0o7, &[]).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_list_says_who_may() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-acl-XXXXXX")).unwrap();
        let mode = || std::fs::metadata(&dir).unwrap().mode() & 0o777;
        let held = Held::directory(&dir, None).unwrap();
        match held.allow(0o7, &[4711]) {
            // The group's digit is the most that the list gives.
            Ok(()) => assert_eq!(mode(), 0o770),
            Err(error) => {
                eprintln!("SKIPPED a_list_says_who_may: {error}");
                assert_eq!(mode(), 0o700);
            }
        }
        held.allow(0o7, &[]).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
