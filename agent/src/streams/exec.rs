//! A program in an instance, by its guest or through the engine's own exec.
//!
//! Input and output run in tasks of their own, so that a program that does not read its input still
//! gets its output carried. Nothing is queued here: each side waits for the other, and QUIC's flow
//! control carries the waiting to the far end.

use std::sync::Arc;
use std::time::Duration;

use tianqi_common::shell;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{
    Command, Exec, ExecFrame, PtySize, StreamOpen, StreamRefusal, Terminal,
};
use tokio::io::AsyncWriteExt;

use super::relay::{self, AbortOnDrop};
use super::{Found, Sink, Source, StreamError, Streams, accept, by_guest, refused};
use crate::docker::{
    Docker, ExecReader, ExecRequest, ExecSession, ExecWriter, OutputKind, exit_code, shells,
};

/// Most arguments, and most bytes of arguments and environment together: what Linux takes anyway.
const MAX_WORDS: usize = 1_024;
const MAX_BYTES: usize = 128 << 10;
/// Most columns and rows of a terminal.
const MAX_SIZE: u16 = 10_000;
/// What a program gets after a hang-up before it is killed, once nobody listens to it.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Serves a program by the guest of the instance, or by the engine's own exec where there is none.
pub(super) async fn serve(
    streams: &Streams,
    mut wanted: Exec,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    check(&wanted)?;
    name_terminal(&mut wanted);
    let _slot = streams.slot(wanted.instance)?;
    let open = StreamOpen::Exec(wanted.clone());
    let container = match by_guest(streams, &open).await? {
        Found::Guest(guest) => return relay::frames(guest, reader, writer).await,
        Found::Container(container) => container,
    };
    let docker = streams.docker();
    let argv = argv(&*docker, &container.id, &wanted.command).await?;
    let request = ExecRequest { argv, env: wanted.env, pty: wanted.pty, user: String::new() };
    let session = docker.exec(&container.id, request).await?;
    accept(writer).await?;
    carry(docker, session, reader, writer).await
}

/// Serves a program with a terminal that outlives its stream; only a guest can.
pub(super) async fn serve_kept(
    streams: &Streams,
    mut wanted: Terminal,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    check(&wanted.exec)?;
    if wanted.exec.pty.is_none() {
        return Err(refused(StreamRefusal::BadRequest, "a kept terminal needs a size"));
    }
    name_terminal(&mut wanted.exec);
    let _slot = streams.slot(wanted.exec.instance)?;
    match by_guest(streams, &StreamOpen::Terminal(wanted)).await? {
        Found::Guest(guest) => relay::frames(guest, reader, writer).await,
        Found::Container(_) => {
            let message = "no guest serves in this instance, so that no terminal can be kept";
            Err(refused(StreamRefusal::Unsupported, message))
        }
    }
}

async fn carry(
    docker: Arc<dyn Docker>,
    session: ExecSession,
    reader: impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    let exec = session.id.clone();
    let input = tokio::spawn(carry_input(docker.clone(), exec.clone(), reader, session.writer));
    let stop_input = AbortOnDrop(input.abort_handle());
    let ended = tokio::select! {
        ended = carry_output(session.reader, writer) => ended,
        // The controller's side is gone: nobody sees the output any more.
        _ = input => Ok(Ended::Unheard),
    };
    drop(stop_input);
    match ended {
        Ok(Ended::ByItself) => {
            let last = last_frame(&*docker, &exec).await;
            Ok(frame::write(writer, &last, Limit::STREAM).await?)
        }
        Ok(Ended::Broken(message)) => {
            Ok(frame::write(writer, &ExecFrame::Failed { message }, Limit::STREAM).await?)
        }
        Ok(Ended::Unheard) => {
            end_program(docker, exec).await;
            Ok(())
        }
        Err(error) => {
            end_program(docker, exec).await;
            Err(error.into())
        }
    }
}

/// How the output came to its end.
enum Ended {
    /// The program closed it.
    ByItself,
    /// The engine's stream broke.
    Broken(String),
    /// Nobody listens.
    Unheard,
}

/// Returns when the controller went away. Input that merely ended is not that.
async fn carry_input(
    docker: Arc<dyn Docker>,
    exec: String,
    mut reader: impl Source,
    mut writer: ExecWriter,
) {
    // A program that ended or closed its input takes no more; what still comes is read and dropped,
    // because signals and the end of the stream come the same way.
    let mut takes_input = true;
    loop {
        let frame = match frame::read::<ExecFrame, _>(&mut reader, Limit::STREAM).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "input of a program ended early");
                return;
            }
        };
        match frame {
            ExecFrame::Stdin(bytes) if takes_input => {
                takes_input =
                    writer.write_all(&bytes).await.is_ok() && writer.flush().await.is_ok();
            }
            ExecFrame::StdinEnd if takes_input => {
                takes_input = false;
                let _ = writer.shutdown().await;
            }
            ExecFrame::Resize(size) if is_sane(size) => {
                note(docker.resize_exec(&exec, size).await, "resize");
            }
            ExecFrame::Signal(name) if is_signal(&name) => {
                note(docker.signal_exec(&exec, &name).await, "signal");
            }
            ExecFrame::Stdin(_)
            | ExecFrame::StdinEnd
            | ExecFrame::Resize(_)
            | ExecFrame::Signal(_)
            | ExecFrame::Stdout(_)
            | ExecFrame::Stderr(_)
            | ExecFrame::Exit { .. }
            | ExecFrame::Failed { .. }
            | ExecFrame::Hangup
            | ExecFrame::Position { .. } => {}
        }
    }
}

fn note(done: Result<(), crate::docker::DockerError>, what: &'static str) {
    if let Err(error) = done {
        tracing::debug!(%error, "{what} of a program did not work");
    }
}

async fn carry_output(
    mut reader: ExecReader,
    writer: &mut impl Sink,
) -> Result<Ended, frame::FrameError> {
    loop {
        let frame = match reader.next().await {
            Ok(Some(output)) => match output.kind {
                OutputKind::Stdout => ExecFrame::Stdout(output.bytes),
                OutputKind::Stderr => ExecFrame::Stderr(output.bytes),
            },
            Ok(None) => return Ok(Ended::ByItself),
            Err(error) => return Ok(Ended::Broken(error.to_string())),
        };
        frame::write(writer, &frame, Limit::STREAM).await?;
    }
}

async fn last_frame(docker: &dyn Docker, exec: &str) -> ExecFrame {
    match exit_code(docker, exec).await {
        Ok(Some(code)) => ExecFrame::Exit { code },
        Ok(None) => {
            let message =
                "the program closed its output and went on running; its exit code is not known";
            ExecFrame::Failed { message: message.to_owned() }
        }
        Err(error) => ExecFrame::Failed { message: error.to_string() },
    }
}

/// Docker leaves a program running when its stream is closed. A shell that nobody sees is hung up,
/// and killed when it does not go.
async fn end_program(docker: Arc<dyn Docker>, exec: String) {
    for (signal, wait) in [("HUP", HANGUP_GRACE), ("KILL", Duration::ZERO)] {
        match docker.exec_state(&exec).await {
            Ok(state) if state.running => {}
            Ok(_) | Err(_) => return,
        }
        note(docker.signal_exec(&exec, signal).await, "end");
        tokio::time::sleep(wait).await;
    }
}

async fn argv(
    docker: &dyn Docker,
    container: &str,
    command: &Command,
) -> Result<Vec<String>, StreamError> {
    let found = match command {
        Command::Argv(_) => Vec::new(),
        Command::Shell(_) | Command::Line(_) => shells(docker, container).await?,
    };
    shell::argv(command, &found)
        .ok_or_else(|| StreamError::Refused(StreamRefusal::BadRequest, shell::NO_SHELL.to_owned()))
}

/// A terminal that nobody names is one of the usual kind.
fn name_terminal(wanted: &mut Exec) {
    if wanted.pty.is_some() && !wanted.env.iter().any(|(name, _)| name == "TERM") {
        wanted.env.push(("TERM".to_owned(), "xterm-256color".to_owned()));
    }
}

fn check(wanted: &Exec) -> Result<(), StreamError> {
    let refuse = |message: &str| Err(refused(StreamRefusal::BadRequest, message));
    let words: &[String] = match &wanted.command {
        Command::Argv(argv) => argv,
        Command::Line(line) => std::slice::from_ref(line),
        Command::Shell(_) => &[],
    };
    if !matches!(wanted.command, Command::Shell(_)) && words.first().is_none_or(String::is_empty) {
        return refuse("the program's name is empty");
    }
    let bytes = words.iter().map(String::len).sum::<usize>()
        + wanted.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    if words.len() + wanted.env.len() > MAX_WORDS || bytes > MAX_BYTES {
        return refuse("arguments and environment are too long: at most 1024 words and 128 KiB");
    }
    if words.iter().any(|word| word.contains('\0')) {
        return refuse("an argument holds a zero byte");
    }
    let is_name = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    if !wanted.env.iter().all(|(name, value)| is_name(name) && !value.contains('\0')) {
        return refuse("an environment variable has a bad name or holds a zero byte");
    }
    match wanted.pty {
        Some(size) if !is_sane(size) => refuse("a terminal has 1 to 10000 columns and rows"),
        _ => Ok(()),
    }
}

fn is_sane(size: PtySize) -> bool {
    (1..=MAX_SIZE).contains(&size.cols) && (1..=MAX_SIZE).contains(&size.rows)
}

/// The signals that SSH and terminals know.
fn is_signal(name: &str) -> bool {
    matches!(
        name,
        "ABRT"
            | "ALRM"
            | "FPE"
            | "HUP"
            | "ILL"
            | "INT"
            | "KILL"
            | "PIPE"
            | "QUIT"
            | "SEGV"
            | "TERM"
            | "USR1"
            | "USR2"
            | "TSTP"
            | "CONT"
            | "WINCH"
    )
}
