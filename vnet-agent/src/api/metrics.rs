//! The metrics, for Prometheus: on the agent's socket, and on a TCP address for whoever can connect. So nobody can take much of the
//! agent by asking for them, or by not listening to the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::serve::Listener;
use axum::{Json, Router};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::connection::{Asked, Connection};
use super::error::Refusal;
use super::observe::Observe;
use super::routes::ask;
use crate::observe::metrics;

/// Connections to the TCP address; more wait.
const CONNECTIONS: usize = 8;
/// How long one may take, from its beginning to the answer's end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);

/// Answers with the metrics; one request at a time, since each reads most of the datapath.
pub(super) fn route() -> MethodRouter<Arc<dyn Observe>> {
    let turn = Arc::new(Semaphore::new(1));
    get(move |State(observer): State<Arc<dyn Observe>>| answer(observer, Arc::clone(&turn)))
}

async fn answer(observer: Arc<dyn Observe>, turn: Arc<Semaphore>) -> Result<Response, Refusal> {
    let turn = turn.acquire_owned().await.context("waiting for others who ask for the metrics")?;
    let Json(text) = ask(observer, move |o| {
        // Also when who has asked is gone.
        let _turn = turn;
        o.metrics()
    })
    .await?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE), (CONNECTION, "close")], text).into_response())
}

/// A TCP address that is listened at.
pub struct MetricsListener {
    listener: TcpListener,
    free: Arc<Semaphore>,
    patience: Duration,
}

/// Listens at a TCP address, for [`serve_metrics`].
///
/// # Errors
/// This host does not have it, or someone else listens there.
pub async fn listen_for_metrics(address: SocketAddr) -> Result<MetricsListener> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on {address} for metrics (--metrics-listen)"))?;
    log::info!("serving metrics at http://{}/metrics", listener.local_addr().unwrap_or(address));
    Ok(MetricsListener { listener, free: Arc::new(Semaphore::new(CONNECTIONS)), patience: PATIENCE })
}

/// Serves the metrics, and nothing else, without end. Where it cannot be listened it is tried again: the address may come later.
/// `trouble` is told why it cannot, and when it can.
pub async fn serve_metrics(address: SocketAddr, observer: Arc<dyn Observe>, trouble: impl Fn(Option<String>)) {
    let listener = loop {
        match listen_for_metrics(address).await {
            Ok(listener) => break listener,
            Err(error) => trouble(Some(format!("{error:#}"))),
        }
        sleep(RETRY).await;
    };
    trouble(None);
    let router = Router::new().route("/metrics", route()).with_state(observer);
    if let Err(e) = axum::serve(listener, router).await {
        log::error!("serving metrics: {e}");
    }
}

impl Listener for MetricsListener {
    type Io = Connection<TcpStream, OwnedSemaphorePermit>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // Nobody closes the semaphore.
            let Ok(place) = Arc::clone(&self.free).acquire_owned().await else { std::future::pending().await };
            match self.listener.accept().await {
                // It is never set: there is an end to each connection.
                Ok((stream, peer)) => return (Connection::new(stream, place, Asked::default(), self.patience), peer),
                Err(error) => {
                    log::warn!("accepting a connection for metrics: {error}");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use vnet_common::api::{EndpointFlowList, ExplainRequest, Explanation};

    use super::*;
    use crate::observe::events::{Filter, Follower};

    /// Counts who asks at once.
    #[derive(Default)]
    struct Known {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Observe for Known {
        fn events(&self, _: Filter, _: Option<u64>, _: bool) -> Result<Follower, Refusal> {
            Err(Refusal::conflict("none"))
        }
        fn endpoint_flows(&self, _: Option<&str>, _: usize) -> Result<EndpointFlowList, Refusal> {
            Err(Refusal::conflict("none"))
        }
        fn explain(&self, _: ExplainRequest) -> Result<Explanation, Refusal> {
            Err(Refusal::conflict("none"))
        }
        fn metrics(&self) -> Result<String, Refusal> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            self.now.fetch_sub(1, Ordering::SeqCst);
            Ok("known 1\n".to_owned())
        }
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn idle_connections_and_many_scrapes_take_little() {
        let known = Arc::new(Known::default());
        let mut listener = listen_for_metrics("127.0.0.1:0".parse().unwrap()).await.unwrap();
        listener.patience = Duration::from_millis(500);
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/metrics", route()).with_state(Arc::clone(&known) as Arc<dyn Observe>);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // These have to wait until those are hung up on.
        let asking: Vec<_> = (0..4).map(|_| tokio::spawn(ask(address))).collect();
        for answer in asking {
            let text = tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap().unwrap();
            assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("known 1\n"), "{text}");
        }
        assert_eq!(idle[0].read(&mut [0]).await.unwrap(), 0);
        assert_eq!(known.most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_address_that_is_not_there_is_no_reason_to_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        // Of the networks for documentation.
        let serving = serve_metrics("192.0.2.1:9".parse().unwrap(), Arc::new(Known::default()), move |trouble| {
            tell.lock().unwrap().push(trouble);
        });
        tokio::time::timeout(Duration::from_millis(200), serving).await.unwrap_err();
        let told = told.lock().unwrap();
        assert!(told.len() == 1 && told[0].as_ref().is_some_and(|why| why.contains("--metrics-listen")), "{told:?}");
    }
}
