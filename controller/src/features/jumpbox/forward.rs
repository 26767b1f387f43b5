//! Connections through the jumpbox: into an instance (`-L`, `-D`, `-W` of somebody who is in one), and
//! to an instance's own SSH server (`-J`, `-W instance:22` of somebody who is not), which is here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use russh::ChannelOpenFailure;
use russh::server::{self, ChannelOpenHandle};

use super::access::{self, Face};
use super::channel::Ends;
use super::connection::Connection;
use super::flow::Transport;
use super::intake::{Bytestream, Piece};
use super::model::{Target, jump_target};
use super::server::Client;
use super::settings;
use super::target::{self, Entry};
use crate::core::error::Problem;

/// Longest name of a host (RFC 1035).
const HOST_MAX: usize = 255;
/// How long a client may take to close a connection whose both ways have ended. It closes it sooner
/// by itself, and russh forgets only channels that the client closes.
const CLOSE: Duration = Duration::from_secs(5);

/// Serves one connection that a client asks for.
pub(super) async fn run(ends: Ends, reply: ChannelOpenHandle, host: String, port: u32) {
    let target = ends.connection.who().and_then(|who| who.target.clone());
    match target {
        Some(target) => dial(ends, reply, &target, host, port).await,
        None => jump(ends, reply, &jump_target(&host, port)).await,
    }
}

async fn dial(ends: Ends, reply: ChannelOpenHandle, target: &Target, host: String, port: u32) {
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    let Some(port) = port.filter(|_| !host.is_empty() && host.len() <= HOST_MAX) else {
        reply.reject(ChannelOpenFailure::ConnectFailed).await;
        return;
    };
    let opened = async {
        let entry = target::entry(&ends.connection, target).await?;
        let open = access::open(&ends, &entry, &Face::Forward(host, port)).await?;
        Ok((entry, open))
    };
    match opened.await {
        Ok((entry, open)) => {
            reply.accept().await;
            open.carry(&ends, &entry).await;
            let is_closed = async { while ends.taker.next().await != Piece::Closed {} };
            let _ = tokio::time::timeout(CLOSE, is_closed).await;
            ends.out.close().await;
        }
        Err(problem) => reply.reject(reason(&problem)).await,
    }
}

/// What a client is told. An instance of somebody else is like one that does not exist.
fn reason(problem: &Problem) -> ChannelOpenFailure {
    match problem.code {
        "forbidden" | "password_change_required" | "unauthorised" => {
            ChannelOpenFailure::AdministrativelyProhibited
        }
        "too_many_streams" => ChannelOpenFailure::ResourceShortage,
        _ => ChannelOpenFailure::ConnectFailed,
    }
}

async fn jump(ends: Ends, reply: ChannelOpenHandle, target: &Target) {
    if *target == Target::Nothing {
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        return;
    }
    match target::entry(&ends.connection, target).await {
        Ok(entry) => {
            reply.accept().await;
            inner(ends, &entry).await;
        }
        Err(problem) => reply.reject(reason(&problem)).await,
    }
}

/// The SSH server of one instance, inside a channel. Boxed, because a connection may hold another.
fn inner(ends: Ends, entry: &Entry) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let Ends { connection: outer, out, taker } = ends;
    let instance = entry.resource().id;
    let key = outer.door.host_key.of_instance(instance);
    let config = Arc::new(settings::config(key, &outer.ctx().config.jumpbox, true));
    let connection = Arc::new(outer.inner(entry.actor().clone(), instance));
    Box::pin(async move {
        let stream = Bytestream::new(taker, out.writer());
        let (flow, version) = (connection.flow.clone(), connection.version.clone());
        let transport = Transport::new(stream, flow, version, connection.cut.clone());
        let client = Client::new(connection.clone());
        let late = Duration::from_secs(outer.ctx().config.jumpbox.login_seconds.into());
        let greeted = server::run_stream(config, transport, client);
        if let Ok(Ok(session)) = tokio::time::timeout(late, greeted).await {
            // How it ended is of no interest; its channels have written down theirs.
            let _ = session.await;
        }
        settle(&connection).await;
        out.end().await;
        out.close().await;
    })
}

async fn settle(connection: &Connection) {
    connection.cut.cancel();
    connection.tasks.close();
    connection.tasks.wait().await;
}
