//! The commands' side of the admin socket.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tianqi_common::wire::frame::{self, CHUNK, Limit};
use tianqi_common::wire::stream::ExecFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Command, Reply, Request, Secrets, socket_path, terminal};
use crate::config::Config;
use crate::serve::say;

/// Frames of input that wait for the socket; when it is full, reading input waits.
const INPUT_QUEUE: usize = 16;

/// Sends `command` to the running controller and shows what it answers.
///
/// # Errors
///
/// When no controller runs with this data directory, or it could not do as asked.
pub fn run(config: &Config, command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(talk(config, command));
    // Reading standard input cannot be cancelled, so its thread is left behind.
    runtime.shutdown_background();
    code
}

async fn talk(config: &Config, command: Command) -> Result<ExitCode> {
    let path = socket_path(&config.data_dir);
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!(
            "no controller answers at {}; is it running, and are you its user or root?",
            path.display()
        )
    })?;
    let (mut reader, mut writer) = stream.into_split();
    let request = request_of(command)?;
    frame::write(&mut writer, &request, Limit::OPEN).await?;
    match frame::read::<Reply, _>(&mut reader, Limit::OPEN).await? {
        Some(Reply::Done(text)) => {
            say(&text);
            Ok(ExitCode::SUCCESS)
        }
        Some(Reply::Wrong(text)) => {
            say(&text);
            Ok(ExitCode::FAILURE)
        }
        Some(Reply::Failed(text)) => bail!(text),
        Some(Reply::Opened) => {
            let pty = matches!(request, Request::Exec { pty: Some(_), .. });
            converse(reader, writer, pty).await
        }
        None => bail!("the controller ended before it answered"),
    }
}

fn request_of(command: Command) -> Result<Request> {
    let absolute = |file: std::path::PathBuf| {
        std::path::absolute(&file)
            .with_context(|| format!("{} has no absolute path", file.display()))
    };
    Ok(match command {
        Command::ResetPassword { user } => Request::ResetPassword { user },
        Command::Audit(command) => Request::Audit(command),
        Command::Exec { instance, argv } => {
            let pty = terminal::is_interactive().then(terminal::size);
            Request::Exec { instance, argv, pty }
        }
        Command::Backup { file } => Request::Backup { file: absolute(file)? },
        Command::Restore { file } => Request::Restore { file: absolute(file)? },
        Command::Secrets(Secrets::Rotate) => Request::RotateSecrets,
    })
}

/// Carries a program's input and output until it ends, and ends with its exit code.
async fn converse(
    mut reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    pty: bool,
) -> Result<ExitCode> {
    let raw = if pty { Some(terminal::Raw::begin()?) } else { None };
    let (input, frames) = mpsc::channel(INPUT_QUEUE);
    tokio::spawn(read_input(input.clone()));
    if pty {
        tokio::spawn(watch_size(input));
    }
    tokio::spawn(send_frames(frames, writer));
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let ended = loop {
        match frame::read::<ExecFrame, _>(&mut reader, Limit::STREAM).await? {
            Some(ExecFrame::Stdout(bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            Some(ExecFrame::Stderr(bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            }
            Some(ExecFrame::Exit { code }) => break Ok(code),
            Some(ExecFrame::Failed { message }) => break Err(message),
            Some(_) => {}
            None => break Err("the connection to the instance was lost".to_owned()),
        }
    };
    drop(raw);
    match ended {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        Err(message) => bail!(message),
    }
}

async fn read_input(frames: mpsc::Sender<ExecFrame>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        let frame = match stdin.read(&mut buffer).await {
            Ok(n) if n > 0 => {
                ExecFrame::Stdin(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default()))
            }
            _ => ExecFrame::StdinEnd,
        };
        let is_last = frame == ExecFrame::StdinEnd;
        if frames.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

async fn watch_size(frames: mpsc::Sender<ExecFrame>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if frames.send(ExecFrame::Resize(terminal::size())).await.is_err() {
            return;
        }
    }
}

async fn send_frames(mut frames: mpsc::Receiver<ExecFrame>, mut writer: OwnedWriteHalf) {
    while let Some(frame) = frames.recv().await {
        if frame::write(&mut writer, &frame, Limit::STREAM).await.is_err() {
            return;
        }
    }
    // The writer stays open: ending it would tell the server that the client is gone.
    std::future::pending::<()>().await;
}
