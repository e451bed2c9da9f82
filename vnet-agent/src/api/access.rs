//! Who may do what: whoever can open the socket may read; root and the members of group `vnet` may also change.
//!
//! The answer comes from the system's user database at each request, so that who leaves the group is out at once.

use std::ffi::CString;

use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::error::response;
use super::socket::Peer;

/// Its members may change things.
const WRITERS: &str = "vnet";

/// Lets a request through, or not, and logs it.
pub(super) async fn check(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let line = format!("{} {}", request.method(), request.uri().path());
    if request.method().is_safe() {
        let answer = next.run(request).await;
        log::debug!("{peer}: {line}: {}", answer.status());
        return answer;
    }
    let answer = if may_write(peer.uid(), peer.gid()).await { next.run(request).await } else { refuse(&peer) };
    log::info!("{peer}: {line}: {}", answer.status());
    answer
}

fn refuse(peer: &Peer) -> Response {
    let name = User::from_uid(Uid::from_raw(peer.uid())).ok().flatten().map_or_else(|| peer.uid().to_string(), |user| user.name);
    response(
        StatusCode::FORBIDDEN,
        format!(
            "user {name} may look but not change: only root and the members of group '{WRITERS}' may. \
             Use sudo, or have an administrator run: usermod -aG {WRITERS} {name}"
        ),
    )
}

async fn may_write(uid: u32, gid: u32) -> bool {
    if uid == 0 {
        return true;
    }
    // The user database may be on the network.
    tokio::task::spawn_blocking(move || is_writer(Uid::from_raw(uid), Gid::from_raw(gid))).await.unwrap_or(false)
}

fn is_writer(uid: Uid, gid: Gid) -> bool {
    let Ok(Some(writers)) = Group::from_name(WRITERS) else { return false };
    gid == writers.gid || groups_of(uid).contains(&writers.gid)
}

fn groups_of(uid: Uid) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(uid) else { return Vec::new() };
    CString::new(user.name).ok().and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_default()
}
