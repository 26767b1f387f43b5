//! Raw byte streams into an instance: connections to its servers, and its files.
//!
//! Where no guest serves, the same program is run by the engine's exec, once for each stream.

use tianqi_common::wire::frame::FrameError;
use tianqi_common::wire::guest::CONNECTED;
use tianqi_common::wire::stream::{Dial, StreamOpen, StreamRefusal};
use tokio::io::{AsyncWriteExt as _, copy};

use super::{Found, Sink, Source, StreamError, Streams, accept, by_guest, refused, relay};
use crate::docker::spec::GUEST;
use crate::docker::{ExecReader, ExecRequest, ExecSession, ExecWriter, OutputKind};

/// Longest name of a server.
const MAX_HOST: usize = 255;
/// Most bytes of why a connection failed.
const MAX_REASON: usize = 300;

/// Serves a TCP connection.
pub(super) async fn tcp(
    streams: &Streams,
    dial: Dial,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    check(&dial)?;
    let _slot = streams.dial_slot(dial.instance)?;
    let words = ["tcp".to_owned(), dial.host.clone(), dial.port.to_string()];
    let container = match by_guest(streams, &StreamOpen::Tcp(dial)).await? {
        Found::Guest(guest) => return relay::bytes(guest, reader, writer).await,
        Found::Container(container) => container,
    };
    let mut session = run(streams, &container.id, &words).await?;
    let first = until_connected(&mut session.reader).await?;
    accept(writer).await?;
    writer.write_all(&first).await.map_err(FrameError::Io)?;
    carry(session, reader, writer).await
}

/// Serves one flow of datagrams; only a guest can.
pub(super) async fn udp(
    streams: &Streams,
    dial: Dial,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    check(&dial)?;
    let _slot = streams.dial_slot(dial.instance)?;
    match by_guest(streams, &StreamOpen::Udp(dial)).await? {
        Found::Guest(guest) => relay::datagrams(guest, reader, writer).await,
        Found::Container(_) => {
            let message = "no guest serves in this instance, so that no datagrams reach it";
            Err(refused(StreamRefusal::Unsupported, message))
        }
    }
}

/// Serves a person's files.
pub(super) async fn sftp(
    streams: &Streams,
    wanted: tianqi_common::wire::stream::Sftp,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    let _slot = streams.slot(wanted.instance)?;
    let container = match by_guest(streams, &StreamOpen::Sftp(wanted)).await? {
        Found::Guest(guest) => return relay::bytes(guest, reader, writer).await,
        Found::Container(container) => container,
    };
    let session = run(streams, &container.id, &["sftp".to_owned()]).await?;
    accept(writer).await?;
    carry(session, reader, writer).await
}

fn check(dial: &Dial) -> Result<(), StreamError> {
    let is_name = !dial.host.is_empty()
        && dial.host.len() <= MAX_HOST
        && dial.host.chars().all(|c| c.is_ascii_graphic());
    if is_name && dial.port != 0 {
        return Ok(());
    }
    let message = "a server is a name or address of 1 to 255 characters and a port of 1 to 65535";
    Err(refused(StreamRefusal::BadRequest, message))
}

/// Runs a verb of the guest's program by the engine's exec.
async fn run(
    streams: &Streams,
    container: &str,
    words: &[String],
) -> Result<ExecSession, StreamError> {
    let argv = std::iter::once(GUEST.to_owned()).chain(words.iter().cloned()).collect();
    let request = ExecRequest { argv, env: Vec::new(), pty: None, user: String::new() };
    Ok(streams.docker().exec(container, request).await?)
}

/// Waits until the guest's program says that its connection stands; returns what came after that.
async fn until_connected(reader: &mut ExecReader) -> Result<bytes::Bytes, StreamError> {
    let mut said = Vec::new();
    while let Some(output) = reader.next().await? {
        match output.kind {
            OutputKind::Stdout if output.bytes.first() == Some(&CONNECTED) => {
                return Ok(output.bytes.slice(1..));
            }
            OutputKind::Stdout | OutputKind::Stderr => {
                let room = MAX_REASON.saturating_sub(said.len());
                said.extend(output.bytes.iter().take(room));
            }
        }
    }
    let said = String::from_utf8_lossy(&said);
    Err(refused(StreamRefusal::ConnectFailed, said.trim().trim_start_matches("tianqi-guest: ")))
}

/// Carries bytes between the controller and a program until the program's output ends.
async fn carry(
    session: ExecSession,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    let ExecSession { reader: mut output, writer: input, .. } = session;
    let input = tokio::spawn(carry_input(reader, input));
    let _stop_input = relay::AbortOnDrop(input.abort_handle());
    while let Some(piece) = output.next().await? {
        if piece.kind == OutputKind::Stdout {
            writer.write_all(&piece.bytes).await.map_err(FrameError::Io)?;
        }
    }
    writer.shutdown().await.map_err(FrameError::Io)?;
    Ok(())
}

async fn carry_input(mut reader: impl Source, mut writer: ExecWriter) {
    // A program that takes no more ends, and with it the output, which is what counts.
    let _ = copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}
