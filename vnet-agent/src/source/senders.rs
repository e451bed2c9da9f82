//! Who may send in a source's name.

use std::collections::BTreeMap;

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
    /// Some have yet to be looked up.
    pub(super) unknown: bool,
    /// Those that were found by name.
    names: BTreeMap<String, u32>,
}

impl Senders {
    /// Looks the users up, by name or number. The system's user database may be on the network: it may take a while.
    pub(super) fn resolve(users: &[String]) -> Self {
        let mut senders = Self::default();
        for user in users {
            let uid = match user.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => User::from_name(user).map(|user| user.map(|user| user.uid.as_raw())),
            };
            match uid {
                Ok(Some(uid)) => senders.add(user, uid),
                Ok(None) => senders.faults.push(format!("there is no user {user} on this host, so it cannot send")),
                Err(error) => senders.faults.push(format!("looking up user {user}, who may send: {error}")),
            }
        }
        senders
    }

    /// Those that are known without that: by number, or as they were found `before`.
    pub(super) fn at_once(users: &[String], before: &Self) -> Self {
        let mut senders = Self::default();
        for user in users {
            match user.parse().ok().or_else(|| before.names.get(user).copied()) {
                Some(uid) => senders.add(user, uid),
                None => senders.unknown = true,
            }
        }
        senders
    }

    fn add(&mut self, user: &str, uid: u32) {
        if uid == OVERFLOW {
            self.faults.push(format!(
                "user {user} stands for everybody in other user namespaces, so it may not send: run the sender as a user of its own"
            ));
            return;
        }
        self.uids.push(uid);
        if user.parse::<u32>().is_err() {
            self.names.insert(user.to_owned(), uid);
        }
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
        let users = ["daemon".to_owned(), "bin".to_owned(), "4711".to_owned(), "65534".to_owned()];
        let at_once = Senders::at_once(&users, &senders);
        assert!(at_once.uids == [1, 4711] && at_once.unknown && at_once.faults[0].contains("user 65534"), "{at_once:?}");
        assert!(!Senders::at_once(&users, &Senders::resolve(&users)).unknown);
    }
}
