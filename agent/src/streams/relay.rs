//! Between a controller's stream and a guest's: bytes from the controller go on as they are, what a
//! guest says is checked, so that it can end no more than its own stream.

use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::{Datagram, ExecFrame};
use tokio::io::{AsyncWriteExt as _, copy, copy_bidirectional_with_sizes, join, sink};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use super::{Sink, Source, StreamError, accept};

/// Bytes carried at once, each way.
pub(super) const BUFFER: usize = 128 << 10;

/// Ends a task with the stream that it serves.
pub(super) struct AbortOnDrop(pub(super) tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Carries the frames of a program until its last one, or until one side goes.
pub(super) async fn frames(
    guest: UnixStream,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    accept(writer).await?;
    let (mut from_guest, to_guest) = guest.into_split();
    let input = tokio::spawn(input(reader, to_guest));
    let stop_input = AbortOnDrop(input.abort_handle());
    let ended = tokio::select! {
        ended = output(&mut from_guest, writer) => ended?,
        _ = input => return Ok(()),
    };
    drop(stop_input);
    match ended {
        Output::Ended => Ok(()),
        Output::Broken(message) => {
            Ok(frame::write(writer, &ExecFrame::Failed { message }, Limit::STREAM).await?)
        }
    }
}

/// Carries input until the controller's side ends, which the guest then sees too.
async fn input(mut reader: impl Source, mut to_guest: OwnedWriteHalf) {
    if copy(&mut reader, &mut to_guest).await.is_err() {
        // A guest whose program has ended takes no more, and its last frame may still be on the way:
        // what the controller sends meanwhile is dropped. A controller that is gone fails here again.
        let _ = copy(&mut reader, &mut sink()).await;
    }
}

/// How a guest's output came to its end.
enum Output {
    /// With a last frame.
    Ended,
    /// Without one.
    Broken(String),
}

async fn output(
    from_guest: &mut impl Source,
    writer: &mut impl Sink,
) -> Result<Output, FrameError> {
    loop {
        let payload = match frame::read_payload(from_guest, Limit::STREAM).await {
            Ok(Some(payload)) => payload,
            Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => {
                let message =
                    "the program's end was not seen: its instance ended, or the guest in it";
                return Ok(Output::Broken(message.to_owned()));
            }
            Err(error) => return Ok(Output::Broken(nonsense(&error))),
        };
        let is_last = match frame::decode::<ExecFrame>(&payload) {
            Ok(ExecFrame::Stdout(_) | ExecFrame::Stderr(_) | ExecFrame::Position { .. }) => false,
            Ok(ExecFrame::Exit { .. } | ExecFrame::Failed { .. }) => true,
            Ok(
                ExecFrame::Stdin(_)
                | ExecFrame::StdinEnd
                | ExecFrame::Resize(_)
                | ExecFrame::Signal(_)
                | ExecFrame::Hangup,
            ) => return Ok(Output::Broken("the guest sent what only it may receive".to_owned())),
            Err(error) => return Ok(Output::Broken(nonsense(&error))),
        };
        frame::write_payload(writer, &payload, Limit::STREAM).await?;
        if is_last {
            return Ok(Output::Ended);
        }
    }
}

fn nonsense(error: &FrameError) -> String {
    format!("what the guest said makes no sense: {error}")
}

/// Carries bytes as they are; each half ends by itself.
pub(super) async fn bytes(
    mut guest: UnixStream,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    accept(writer).await?;
    let mut controller = join(reader, writer);
    let carried = copy_bidirectional_with_sizes(&mut controller, &mut guest, BUFFER, BUFFER).await;
    carried.map_err(FrameError::Io)?;
    // A stream that is dropped without this is taken for one that was cut.
    let _ = controller.shutdown().await;
    Ok(())
}

/// Carries datagrams until one side goes.
pub(super) async fn datagrams(
    guest: UnixStream,
    mut reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    accept(writer).await?;
    let (mut from_guest, mut to_guest) = guest.into_split();
    let back = async {
        // A guest that says something else has said its last.
        while let Ok(Some(datagram)) =
            frame::read::<Datagram, _>(&mut from_guest, Limit::STREAM).await
        {
            frame::write(writer, &datagram, Limit::STREAM).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = back => ended,
        _ = copy(&mut reader, &mut to_guest) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use tianqi_common::wire::stream::StreamReply;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn the_last_frame_arrives_although_the_guest_took_no_more_input() {
        let (guest, agents) = std::os::unix::net::UnixStream::pair().unwrap();
        guest.shutdown(Shutdown::Read).unwrap();
        guest.set_nonblocking(true).unwrap();
        agents.set_nonblocking(true).unwrap();
        let agents = UnixStream::from_std(agents).unwrap();
        let (mut typing, reader) = duplex(1_024);
        let (mut writer, mut shown) = duplex(64 << 10);
        let relayed = tokio::spawn(async move { frames(agents, reader, &mut writer).await });

        // More than is kept anywhere on the way: all of it is taken, so some met the closed side.
        typing.write_all(&[0; 1 << 20]).await.unwrap();
        let mut guest = UnixStream::from_std(guest).unwrap();
        frame::write(&mut guest, &ExecFrame::Exit { code: 7 }, Limit::STREAM).await.unwrap();

        let reply = frame::read::<StreamReply, _>(&mut shown, Limit::OPEN).await.unwrap();
        assert_eq!(reply, Some(StreamReply::Open));
        let last = frame::read::<ExecFrame, _>(&mut shown, Limit::STREAM).await.unwrap();
        assert_eq!(last, Some(ExecFrame::Exit { code: 7 }));
        relayed.await.unwrap().unwrap();
    }
}
