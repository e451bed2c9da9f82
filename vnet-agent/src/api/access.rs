//! Who may do what: whoever can open the socket may read; root and the members of one group may also change.
//!
//! The answer comes from the system's user database at each request, so that who leaves the group is out at once.

use std::ffi::CString;

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::error::response;
use super::socket::Peer;

/// Lets a request through, or not, and logs it; the members of group `writers` may change things.
pub(super) async fn check(
    State(writers): State<Arc<str>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let line = format!("{} {}", request.method(), request.uri().path());
    if request.method().is_safe() {
        let answer = next.run(request).await;
        log::debug!("{peer}: {line}: {}", answer.status());
        return answer;
    }
    let (uid, gid) = (peer.uid(), peer.gid());
    // The user database may be on the network: asking it may take a while.
    let refused = tokio::task::spawn_blocking(move || refusal(Uid::from_raw(uid), Gid::from_raw(gid), &writers)).await;
    let answer = match refused {
        Ok(None) => next.run(request).await,
        Ok(Some(why)) => response(StatusCode::FORBIDDEN, why),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, format!("finding out what uid {uid} may do: {error}")),
    };
    log::info!("{peer}: {line}: {}", answer.status());
    answer
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
