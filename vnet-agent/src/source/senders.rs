//! Who may send in a source's name.

use nix::unistd::{Uid, User, geteuid};

/// The number that stands for all users of other user namespaces (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

/// The users of this host who may send in a source's name: root, the agent's own, and those that the resource names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Senders {
    /// Beside root and the agent's own.
    pub(super) uids: Vec<u32>,
    /// What is wrong with the others, if anything.
    pub(super) faults: Vec<String>,
}

impl Senders {
    /// Looks the users up, by name or number.
    pub(super) fn resolve(users: &[String]) -> Self {
        let mut senders = Self::default();
        for user in users {
            let uid = match user.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => User::from_name(user).map(|user| user.map(|user| user.uid.as_raw())),
            };
            match uid {
                Ok(Some(OVERFLOW)) => senders.faults.push(format!(
                    "user {user} stands for everybody in other user namespaces, so it may not send: run the sender as a user of its own"
                )),
                Ok(Some(uid)) => senders.uids.push(uid),
                Ok(None) => senders.faults.push(format!("there is no user {user} on this host, so it cannot send")),
                Err(error) => senders.faults.push(format!("looking up user {user}, who may send: {error}")),
            }
        }
        senders
    }

    /// May this user?
    pub(super) fn allow(&self, uid: u32) -> bool {
        uid == 0 || self.uids.contains(&uid) || Uid::from_raw(uid) == geteuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_or_numbered_and_nobody_is_nobody() {
        let senders = Senders::resolve(&["daemon".into(), "4711".into(), "no-such-user".into(), "nobody".into()]);
        assert_eq!(senders.uids, [1, 4711]);
        assert!(senders.faults[0].contains("no user no-such-user") && senders.faults[1].contains("user nobody"), "{senders:?}");
        assert!(senders.allow(0) && senders.allow(1) && senders.allow(4711) && senders.allow(geteuid().as_raw()));
        assert!(!senders.allow(2) && !senders.allow(65534));
    }
}
