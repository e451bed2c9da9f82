//! How a member is asked: what there is to ask, and the sockets for it.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use vnet_common::policy::MARK_PROBE;

use super::http::{self, Tls};
use super::{Check, icmp, udp};
use crate::resource::{HealthCheck, HttpCheck, UdpCheck};

/// What a member is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Does a connection open?
    Tcp,
    /// What is the status of a page?
    Http(Arc<HttpCheck>),
    /// What is the answer to a datagram?
    Udp(Arc<UdpCheck>),
    /// Is there an answer to a ping?
    Icmp,
}

impl Kind {
    /// What a resource asks for.
    pub fn of(check: &HealthCheck) -> Self {
        match check {
            HealthCheck { http: Some(http), .. } => Self::Http(Arc::new(http.clone())),
            HealthCheck { udp: Some(udp), .. } => Self::Udp(Arc::new(udp.clone())),
            HealthCheck { icmp: Some(_), .. } => Self::Icmp,
            _ => Self::Tcp,
        }
    }
}

impl Check {
    /// What is done, for messages.
    pub fn what(&self) -> String {
        let target = self.target;
        match &self.kind {
            Kind::Tcp => format!("connect to {target}"),
            Kind::Http(http) => format!("GET http{}://{target}{}", if http.https { "s" } else { "" }, http.path),
            Kind::Udp(_) => format!("UDP to {target}"),
            Kind::Icmp => format!("ping of {}", target.ip()),
        }
    }

    /// Who is asked, for messages.
    pub fn whom(&self) -> String {
        match self.kind {
            Kind::Icmp => self.target.ip().to_string(),
            _ => self.target.to_string(),
        }
    }
}

/// How checks are made: over the network, but for tests.
pub trait Probe: Clone + Send + Sync + 'static {
    /// Succeeds if the target answers as it should. Nothing is to be left of it when it is dropped: it is, when it takes too long.
    fn ask(&self, check: &Check) -> impl Future<Output = Result<()>> + Send;
}

/// Makes checks over the network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    tls: Arc<Tls>,
}

impl Probe for Network {
    async fn ask(&self, check: &Check) -> Result<()> {
        match &check.kind {
            Kind::Tcp => connect(check.target).await.map(drop),
            Kind::Http(http) => {
                let stream = connect(check.target).await.context("connecting")?;
                http::ask(stream, http, check.target, &self.tls).await
            }
            Kind::Udp(udp) => udp::ask(check.target, udp).await,
            Kind::Icmp => icmp::ask(check.target.ip()).await,
        }
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    mark(&socket)?;
    let stream = socket.connect(target).await?;
    // Closing by reset leaves no TIME_WAIT: a host with a thousand members would collect them by ten thousands.
    stream.set_zero_linger()?;
    Ok(stream)
}

/// Makes the socket's packets the agent's own probes: rules and quarantine let them through, and their answers. To be called before the
/// first of them is sent.
pub(super) fn mark(socket: &impl AsFd) -> Result<()> {
    setsockopt(socket, sockopt::Mark, &MARK_PROBE).context("marking the socket as the agent's own")
}

/// Any address and port of the family of `target`.
pub(super) fn any(target: SocketAddr) -> SocketAddr {
    if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}
