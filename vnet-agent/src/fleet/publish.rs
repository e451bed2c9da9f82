//! Writes what this host says of itself, and keeps its leases.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep_until};
use vnet_common::etcd::{Client, Failure, Write};
use vnet_common::fleet::{ALIVE_SECONDS, Key};

use super::{Fleet, Hold, Said, lock};

/// What comes within this time goes together.
const GATHER: Duration = Duration::from_millis(1);
/// After the store did not take something, or took it from another.
const PAUSE: Duration = Duration::from_secs(5);

impl Fleet {
    /// Writes what is said, for as long as the connection lasts; gives why it does not.
    pub(super) async fn publishing(&self, client: Client) -> anyhow::Error {
        match self.publish(client).await {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    async fn publish(&self, mut client: Client) -> Result<Infallible> {
        let mut alive = client.lease(self.disk.number("lease alive"), ALIVE_SECONDS).await?;
        let mut linger = client.lease(self.disk.number("lease linger"), self.settings.linger.into()).await?;
        // Also after a restart they are the same, and what has them need not be written again.
        self.note(&[("lease alive", alive.id()), ("lease linger", linger.id())]);
        let (mut alive_due, mut linger_due) = (Instant::now() + alive.period(), Instant::now() + linger.period());
        let (mut written, mut not_before) = (0, Instant::now());
        loop {
            // The mirror has to know what was written before it can be compared with. Said before it is asked: who changes it meanwhile
            // wakes this.
            self.behind.store(true, Ordering::SeqCst);
            let is_known = self.mirror().revision() >= written;
            self.behind.store(!is_known, Ordering::SeqCst);
            if is_known && Instant::now() >= not_before {
                let another = self.another_us(alive.id(), written);
                let (writes, load) = match another {
                    Some(_) => (Vec::new(), None),
                    None => self.due(alive.id(), linger.id()),
                };
                let is_news = another.is_some() || !writes.is_empty() || load.is_some();
                let (revision, refused) = self.write(&mut client, writes, load).await?;
                let trouble = another.or(refused);
                written = written.max(revision);
                if trouble.is_some() {
                    // What somebody else wrote as us until now is told, and to be put right.
                    written = written.max(self.mirror().revision());
                    not_before = Instant::now() + PAUSE;
                }
                if is_news {
                    self.taken(trouble);
                }
            }
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
                () = sleep_until(alive_due) => {
                    kept(alive.renew().await?, "alive")?;
                    self.heard();
                    alive_due = Instant::now() + alive.period();
                }
                () = sleep_until(linger_due) => {
                    kept(linger.renew().await?, "linger")?;
                    linger_due = Instant::now() + linger.period();
                }
                () = sleep_until(not_before), if not_before > Instant::now() => {}
            }
        }
    }

    /// Why nothing is to be written now: after our last write, in revision `written`, somebody else wrote that this host is alive.
    fn another_us(&self, lease: i64, written: i64) -> Option<String> {
        let (mirror, host) = (self.mirror(), &self.settings.host);
        let entry = mirror.get(&Key::Alive(host.clone()).to_string())?;
        let is_another = written > 0 && entry.modified > written && entry.lease != lease;
        is_another.then(|| {
            format!("another agent says that it is host `{host}`: each host needs a name, and a certificate, of its own")
        })
    }

    /// Gives the revision of the last write that the mirror will hear of, and what the store does not take.
    async fn write(&self, client: &mut Client, writes: Vec<Write>, load: Option<Write>) -> Result<(i64, Option<String>)> {
        let mut result = (0, None);
        // Together; if the store refuses something, one by one: the rest is not to wait for that.
        match client.write(&writes).await {
            Ok(revision) => result.0 = revision,
            Err(e) if Failure::in_error(&e) == Failure::Refused => {
                for write in &writes {
                    match client.write(std::slice::from_ref(write)).await {
                        Ok(revision) => result.0 = revision,
                        Err(e) => result.1 = Some(self.not_taken(write.key(), e)?),
                    }
                }
            }
            Err(e) => return Ok((0, Some(self.not_taken("what this host says of itself", e)?))),
        }
        if let Some(load) = load
            && let Err(e) = client.write(std::slice::from_ref(&load)).await
        {
            result.1 = Some(self.not_taken(load.key(), e)?);
        }
        Ok(result)
    }

    /// What to say of an error; one that goes with the connection is given back.
    fn not_taken(&self, what: &str, why: anyhow::Error) -> Result<String> {
        let hint = match Failure::in_error(&why) {
            Failure::Later | Failure::Compacted => return Err(why),
            Failure::Refused => String::new(),
            Failure::Denied => format!(
                ". Its certificate has to be that of host `{0}`, which has to be registered: vnet-ctl host add {0}",
                self.settings.host
            ),
        };
        Ok(format!("the store does not take {what}: {why:#}{hint}"))
    }

    /// All that was to be written was, or why not.
    fn taken(&self, trouble: Option<String>) {
        self.heard();
        let mut link = lock(&self.link);
        if let Some(trouble) = trouble.as_ref().filter(|_| link.trouble != trouble) {
            log::error!("{trouble}");
        }
        link.trouble = trouble;
    }

    /// What the store should have, and has not.
    fn due(&self, alive: i64, linger: i64) -> (Vec<Write>, Option<Write>) {
        let host = &self.settings.host;
        // In this order everywhere.
        let mirror = self.mirror();
        let mut said = lock(&self.said);
        let lease = |hold: Hold| match hold {
            Hold::Alive => alive,
            Hold::Lingering => linger,
            Hold::Kept => 0,
        };
        let load = said.load.take().map(|value| Write::Put(Key::Load(host.clone()).to_string(), value, alive));
        (
            due(&said, host, |key| mirror.get(key).map(|e| (e.value.as_slice(), e.lease)), lease, {
                let (single, below) = &self.own;
                let keys = single.iter().filter(|k| mirror.get(k).is_some()).cloned();
                let more = below.iter().flat_map(|prefix| mirror.below(prefix).map(|(k, _)| k.clone()).collect::<Vec<_>>());
                keys.chain(more).collect()
            }),
            load,
        )
    }
}

fn kept(is_there: bool, what: &str) -> Result<()> {
    if is_there { Ok(()) } else { Err(anyhow!("the lease `{what}` has ended: this host was silent for too long")) }
}

/// The writes that make the store say what is said. `there` is what it has of a key, value and lease; `own` its keys that are this host's.
fn due<'a>(
    said: &Said,
    host: &str,
    there: impl Fn(&str) -> Option<(&'a [u8], i64)>,
    lease: impl Fn(Hold) -> i64,
    own: Vec<String>,
) -> Vec<Write> {
    debug_assert!(said.values.keys().all(|k| Key::parse(k).is_none_or(|k| k.host() == Some(host))));
    let differs = |key: &str, value: &[u8], lease: i64| there(key) != Some((value, lease));
    let mut writes: BTreeMap<&str, Write> = BTreeMap::new();
    for (key, (value, hold)) in &said.values {
        if differs(key, value, lease(*hold)) {
            writes.insert(key, Write::Put(key.clone(), value.clone(), lease(*hold)));
        }
    }
    let mut all: Vec<Write> = writes.into_values().collect();
    if said.whole {
        all.extend(own.into_iter().filter(|key| !said.values.contains_key(key)).map(Write::Delete));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_only_what_is_known_to_be_over_deleted() {
        let key = |name: &str| Key::Endpoint("h".into(), name.into()).to_string();
        let mut said = Said::default();
        for (name, value, hold) in [
            ("same", "1", Hold::Lingering),
            ("new", "2", Hold::Lingering),
            ("other", "3", Hold::Kept),
            ("lease", "4", Hold::Alive),
        ] {
            said.values.insert(key(name), (value.into(), hold));
        }
        let lease = |hold| match hold {
            Hold::Alive => 1,
            Hold::Lingering => 2,
            Hold::Kept => 0,
        };
        let store: BTreeMap<String, (&[u8], i64)> =
            [(key("same"), (&b"1"[..], 2)), (key("other"), (b"0", 0)), (key("lease"), (b"4", 7)), (key("over"), (b"5", 2))]
                .into();
        let due = |said: &Said| due(said, "h", |k| store.get(k).copied(), lease, store.keys().cloned().collect());
        let mut expected = vec![
            Write::Put(key("lease"), b"4".to_vec(), 1),
            Write::Put(key("new"), b"2".to_vec(), 2),
            Write::Put(key("other"), b"3".to_vec(), 0),
        ];
        assert_eq!(due(&said), expected, "an agent that starts knows nothing yet of what is over");
        said.whole = true;
        expected.push(Write::Delete(key("over")));
        assert_eq!(due(&said), expected);
    }
}
