//! What a node listens to beside its socket: SIGHUP, systemd's watchdog, calls over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use knarr_node::Node;
use knarr_node::notify::{Notifier, Told};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::command_error::CommandError;

/// Listens for calls over HTTP, if that is wanted.
///
/// # Errors
/// If the address cannot be had.
pub(super) async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, CommandError> {
    let Some(address) = address else {
        return Ok(None);
    };
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "calls over HTTP come from other machines, too, without TLS: whoever is on the way can read \
             the tokens. Put a server with TLS before it"
        );
    }
    let listener = TcpListener::bind(address).await.map_err(|error| {
        CommandError::failed(format!("cannot listen for HTTP at {address}: {error}"))
            .hint("`node.http.listen` names another address")
    })?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "listening for HTTP");
    Ok(Some(listener))
}

/// Serves calls over HTTP until the node stops.
pub(super) async fn calls(node: &Node, listener: Option<TcpListener>) {
    if let Some(listener) = listener {
        knarr_node::http::serve(node.clone(), listener).await;
    }
}

/// Has the file read again at each SIGHUP.
pub(super) async fn reloads(node: &Node, notifier: &Notifier, cancel: &CancellationToken) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        tracing::warn!("SIGHUP cannot be listened to; `knarr reload` does the same");
        return;
    };
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            hangup = hangups.recv() => if hangup.is_none() { return },
        }
        notifier.tell(Told::Reloading);
        // What is wrong with the file was logged.
        let _stopping: Result<_, knarr_node::DeskError> = node.reload().await;
        notifier.tell(Told::Ready);
    }
}

/// Tells systemd that the node is alive: when its jobs' supervisor answers, and only then.
pub(super) async fn alive(node: &Node, notifier: &Notifier, cancel: &CancellationToken) {
    let Some(period) = notifier.period() else {
        return;
    };
    loop {
        if node.is_alive().await {
            notifier.tell(Told::Alive);
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(period.max(Duration::from_millis(100))) => {}
        }
    }
}
