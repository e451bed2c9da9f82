//! `store status`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Serialize;
use vnet_common::etcd::{Access, Failure, Member, RoleSet, Snapshot};
use vnet_common::fleet::{Key, LOAD, ROOT, SERIAL};

use crate::fleet;
use crate::human;
use crate::output::Session;
use crate::style::{Look, Paint};
use crate::table::{Cell, Table};

/// The store, for programs.
#[derive(Serialize)]
struct Status {
    store: String,
    members: Vec<MemberStatus>,
    /// The revision of what was counted.
    revision: i64,
    /// It checks who its clients are; `null`: that is not known.
    #[serde(rename = "checksClients")]
    checks: Option<bool>,
    /// Who we are to it.
    user: Option<String>,
    kinds: Vec<Kind>,
}

#[derive(Serialize)]
struct MemberStatus {
    endpoint: String,
    answers: bool,
    /// Why not, or what it complains of.
    trouble: Vec<String>,
    version: String,
    leads: bool,
    revision: i64,
    bytes: u64,
}

#[derive(Serialize)]
struct Kind {
    kind: String,
    keys: u64,
    bytes: u64,
}

/// Runs it.
pub async fn run(session: &Session) -> Result<u8> {
    let store = fleet::address(session).await?;
    let access = session.store.access(&store)?;
    let mut members = Vec::new();
    for endpoint in access.endpoints() {
        members.push(member(&access, endpoint).await);
    }
    let Some(first) = members.iter().find(|member| member.answers) else {
        // Tells why, and what to do.
        fleet::open(session, &store).await?;
        bail!("no member of the store {store} answers");
    };
    let checks = RoleSet::is_enabled(&access, &first.endpoint).await.ok();
    let mut etcd = fleet::open(session, &store).await?;
    let mut kinds = BTreeMap::new();
    let shared = etcd.read(ROOT).await?;
    count(&mut kinds, &shared);
    count(&mut kinds, &etcd.read(LOAD).await?);
    let kinds = kinds.into_iter().map(|(kind, (keys, bytes))| Kind { kind, keys, bytes }).collect();
    let user = etcd.user().map(str::to_owned);
    let status = Status { store: access.to_string(), members, revision: shared.revision, checks, user, kinds };
    session.show(&status, |status| text(status, session.paint))?;
    Ok(0)
}

async fn member(access: &Access, endpoint: &str) -> MemberStatus {
    let asked = async { access.connect(endpoint).await?.member().await };
    let (answers, trouble, member) = match asked.await {
        Ok(member) => (true, member.alarms.clone(), member),
        // It does answer, even if it does not say how it is.
        Err(error) if Failure::in_error(&error) == Failure::Denied => (true, vec![format!("{error:#}")], Member::default()),
        Err(error) => (false, vec![format!("{error:#}")], Member::default()),
    };
    let Member { version, bytes, leads, revision, .. } = member;
    MemberStatus { endpoint: endpoint.to_owned(), answers, trouble, version, leads, revision, bytes }
}

/// Keys and bytes, by kind.
fn count(kinds: &mut BTreeMap<String, (u64, u64)>, snapshot: &Snapshot) {
    for (key, entry) in &snapshot.entries {
        let kind = match Key::parse(key) {
            Some(Key::Resource(kind, _)) => format!("resource {kind}"),
            Some(Key::Override(..)) => "member change".to_owned(),
            Some(Key::Registration(_)) => "host".to_owned(),
            Some(Key::Rollout(_)) => "rollout".to_owned(),
            Some(Key::Alive(_)) => "host that is alive".to_owned(),
            Some(Key::Applied(_)) => "how far a host is".to_owned(),
            Some(Key::Global(_)) => "the fleet's load".to_owned(),
            Some(Key::Health(_)) => "health by host".to_owned(),
            Some(Key::Endpoint(..)) => "endpoint".to_owned(),
            Some(Key::Identity(..)) => "identity".to_owned(),
            Some(Key::Moving(..)) => "flows that move".to_owned(),
            Some(Key::Load(_)) => "load by host".to_owned(),
            None if key == SERIAL => continue,
            None => "not known to this version".to_owned(),
        };
        let (keys, bytes) = kinds.entry(kind).or_default();
        *keys += 1;
        *bytes += (key.len() + entry.value.len()) as u64;
    }
}

fn text(status: &Status, paint: Paint) -> String {
    let checks = match status.checks {
        Some(true) => paint.paint(Look::Green, "checked, by their certificates"),
        Some(false) => paint.paint(Look::Red, "not checked: whoever reaches the store may do everything"),
        None => "not known whether they are checked".to_owned(),
    };
    let user = status.user.as_deref().unwrap_or("nobody: there is no certificate");
    let head = format!("{}: revision {}\n  {:<8} {checks}\n  {:<8} {user}\n", status.store, status.revision, "Clients", "You");
    let troubled = status.members.iter().any(|member| !member.trouble.is_empty());
    let mut columns = vec!["MEMBER", "STATE", "VERSION", ">REVISION", ">SIZE"];
    columns.extend(troubled.then_some("TROUBLE"));
    let mut members = Table::new(&columns);
    for member in &status.members {
        let state = match (member.answers, member.leads) {
            (false, _) => Cell::new("silent", Look::Red),
            (true, true) => Cell::new("answers, leads", Look::Green),
            (true, false) => Cell::new("answers", Look::Green),
        };
        let (revision, size) = match member.answers {
            true => (member.revision.to_string(), human::bytes(member.bytes)),
            false => Default::default(),
        };
        let mut row: Vec<Cell> = vec![(&member.endpoint).into(), state, (&member.version).into(), revision.into(), size.into()];
        row.extend(troubled.then(|| Cell::new(member.trouble.join("; "), Look::Red)));
        members.row(row);
    }
    let mut kinds = Table::new(&["HOLDS", ">KEYS", ">BYTES"]);
    for kind in &status.kinds {
        kinds.row(vec![(&kind.kind).into(), kind.keys.into(), human::bytes(kind.bytes).into()]);
    }
    let kinds = kinds.render(paint);
    let gap = if kinds.is_empty() { "" } else { "\n" };
    format!("{head}\n{}{gap}{kinds}", members.render(paint))
}
