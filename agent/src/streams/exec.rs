//! A program in an instance, through the engine's own exec.
//!
//! Input and output run in tasks of their own, so that a program that does not read its input still
//! gets its output carried. Nothing is queued here: each side waits for the other, and QUIC's flow
//! control carries the waiting to the far end.

use std::sync::Arc;
use std::time::Duration;

use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{Command, Exec, ExecFrame, PtySize, Shell, StreamRefusal};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{StreamError, Streams, accept, container_of};
use crate::docker::{Docker, ExecReader, ExecRequest, ExecWriter, OutputKind, shells};

/// Most arguments, and most bytes of arguments and environment together: what Linux takes anyway.
const MAX_WORDS: usize = 1_024;
const MAX_BYTES: usize = 128 << 10;
/// Most columns and rows of a terminal.
const MAX_SIZE: u16 = 10_000;
/// Docker may say for some milliseconds that a program runs whose output has ended.
const EXIT_POLL: Duration = Duration::from_millis(10);
const EXIT_POLLS: u32 = 500;
/// What a program gets after a hang-up before it is killed, once nobody listens to it.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

pub(super) async fn serve<R, W>(
    streams: &Streams,
    wanted: Exec,
    reader: R,
    writer: &mut W,
) -> Result<(), StreamError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin,
{
    check(&wanted)?;
    let _slot = streams.slots.take(wanted.instance).ok_or_else(|| {
        let message = format!(
            "{} streams into this instance are open already; close one",
            super::MAX_PER_INSTANCE
        );
        StreamError::Refused(StreamRefusal::TooMany, message)
    })?;
    let docker = streams.docker();
    let container = container_of(&*docker, wanted.instance).await?;
    if !container.run.is_running() {
        let message = "the instance does not run; start it first".to_owned();
        return Err(StreamError::Refused(StreamRefusal::NotRunning, message));
    }
    let argv = argv(&*docker, &container.id, &wanted.command).await?;
    let request =
        ExecRequest { argv, env: environment(&wanted), pty: wanted.pty, user: String::new() };
    let session = docker.exec(&container.id, request).await?;
    accept(writer).await?;

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

/// Ends a task with the stream that it serves.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns when the controller went away. Input that merely ended is not that.
async fn carry_input<R: AsyncRead + Unpin>(
    docker: Arc<dyn Docker>,
    exec: String,
    mut reader: R,
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

async fn carry_output<W: AsyncWrite + Unpin>(
    mut reader: ExecReader,
    writer: &mut W,
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
    for _ in 0..EXIT_POLLS {
        match docker.exec_state(exec).await {
            Ok(state) if !state.running => {
                if let Some(code) = state.exit_code {
                    return ExecFrame::Exit { code };
                }
            }
            Ok(_) => {}
            Err(error) => return ExecFrame::Failed { message: error.to_string() },
        }
        tokio::time::sleep(EXIT_POLL).await;
    }
    let message = "the program closed its output and went on running; its exit code is not known";
    ExecFrame::Failed { message: message.to_owned() }
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
    let (shell, line) = match command {
        Command::Argv(argv) => return Ok(argv.clone()),
        Command::Shell(shell) => (*shell, None),
        Command::Line(line) => (Shell::Bash, Some(line)),
    };
    let found = shells(docker, container).await?;
    let is_bash = |path: &&&str| path.ends_with("/bash");
    let bash = found.iter().find(is_bash);
    let sh = found.iter().find(|path| !is_bash(path));
    let (program, login) = match (shell, bash, sh) {
        (Shell::Bash, Some(bash), _) | (Shell::Sh, Some(bash), None) => (*bash, Some("-l")),
        (_, _, Some(sh)) => (*sh, None),
        (_, None, None) => {
            let message = "the image has neither bash nor sh; run a program of it instead";
            return Err(StreamError::Refused(StreamRefusal::BadRequest, message.to_owned()));
        }
    };
    let arguments = match line {
        Some(line) => vec!["-c", line],
        None => login.into_iter().collect(),
    };
    Ok(std::iter::once(program).chain(arguments).map(str::to_owned).collect())
}

fn environment(wanted: &Exec) -> Vec<(String, String)> {
    let mut env = wanted.env.clone();
    if wanted.pty.is_some() && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".to_owned(), "xterm-256color".to_owned()));
    }
    env
}

fn check(wanted: &Exec) -> Result<(), StreamError> {
    let refuse =
        |message: &str| Err(StreamError::Refused(StreamRefusal::BadRequest, message.to_owned()));
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
