//! Who may do what: whoever can open the socket may read; root and the members of one group may also change; the users of a
//! tag source may send events in its name.
//!
//! The answer comes from the system's user database at each request, so that who leaves the group is out at once.

use std::ffi::CString;

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::error::response;
use super::socket::Peer;
use super::sources::{self, Sources};

/// Who may change things.
#[derive(Clone)]
pub(super) struct Access {
    /// The group whose members may.
    pub(super) writers: Arc<str>,
    /// Knows who may send events to tag sources.
    pub(super) senders: Option<Arc<dyn Sources>>,
}

/// Lets a request through, or not, and logs it. Ordinary users, who have but a few connections, keep none that they do not use.
pub(super) async fn check(
    State(access): State<Access>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    peer.has_asked();
    let is_root = peer.uid() == 0;
    let mut answer = answer(access, peer, request, next).await;
    if !is_root {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn answer(access: Access, peer: Peer, request: Request, next: Next) -> Response {
    let line = format!("{} {}", request.method(), request.uri().path());
    if request.method().is_safe() {
        let answer = next.run(request).await;
        log::debug!("{peer}: {line}: {}", answer.status());
        return answer;
    }
    let (uid, gid) = (peer.uid(), peer.gid());
    // The user database may be on the network: asking it may take a while.
    let path = request.uri().path().to_owned();
    let refused = tokio::task::spawn_blocking(move || {
        let refusal = refusal(Uid::from_raw(uid), Gid::from_raw(gid), &access.writers)?;
        if access.may_send(&path, uid) { None } else { Some(refusal) }
    })
    .await;
    let answer = match refused {
        Ok(None) => next.run(request).await,
        Ok(Some(why)) => response(StatusCode::FORBIDDEN, why),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, format!("finding out what uid {uid} may do: {error}")),
    };
    log::info!("{peer}: {line}: {}", answer.status());
    answer
}

impl Access {
    /// Is this where a tag source's events go, and this user one of those who may send them?
    fn may_send(&self, path: &str, uid: u32) -> bool {
        let sent_to = sources::sent_to(path);
        sent_to.is_some_and(|source| self.senders.as_ref().is_some_and(|sources| sources.may_send(source, uid)))
    }
}

/// Why this user may not change anything; `None` if it may.
fn refusal(uid: Uid, gid: Gid, writers: &str) -> Option<String> {
    if uid.is_root() || is_writer(uid, gid, writers) {
        return None;
    }
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    Some(format!(
        "user {name} may look but not change: only root and the members of group '{writers}' may. \
         Use sudo, or have an administrator run: usermod -aG {writers} {name}"
    ))
}

/// As the audit log names a user: `user NAME (UID)`. It may take a while.
pub(super) fn user(peer: &Peer) -> String {
    let uid = peer.uid();
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| "?".to_owned(), |user| user.name);
    format!("user {name} ({uid})")
}

fn is_writer(uid: Uid, gid: Gid, writers: &str) -> bool {
    let Ok(Some(writers)) = Group::from_name(writers) else { return false };
    gid == writers.gid || groups_of(uid).contains(&writers.gid)
}

fn groups_of(uid: Uid) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(uid) else { return Vec::new() };
    CString::new(user.name).ok().and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_default()
}
