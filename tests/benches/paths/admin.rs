//! Ours: programs in instances by the controller's admin socket, as `tianqi-controller exec` does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{ExecFrame, PtySize};
use tokio::net::UnixStream;

const SIZE: PtySize = PtySize { cols: 80, rows: 24 };

/// The words of the socket that are spoken here, by their number.
#[derive(Serialize)]
#[allow(dead_code, reason = "the first word is there to be counted")]
enum Request {
    ResetPassword { user: String },
    Exec { instance: String, argv: Vec<String>, pty: Option<PtySize> },
}

#[derive(Deserialize)]
enum Reply {
    Done(String),
    Failed(String),
    Opened,
}

/// The admin socket of a controller.
#[derive(Debug)]
pub struct Admin {
    socket: PathBuf,
}

/// A program in an instance, attached.
#[derive(Debug)]
pub struct Program {
    io: UnixStream,
}

impl Admin {
    /// The socket in a controller's data folder.
    pub fn of(data_dir: PathBuf) -> Self {
        Self { socket: data_dir.join("admin.sock") }
    }

    /// Starts a program in an instance.
    pub async fn exec(&self, instance: &str, argv: &[&str], has_terminal: bool) -> Program {
        let mut io = UnixStream::connect(&self.socket).await.expect("the controller listens");
        let request = Request::Exec {
            instance: instance.to_owned(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            pty: has_terminal.then_some(SIZE),
        };
        frame::write(&mut io, &request, Limit::OPEN).await.expect("the request is taken");
        match frame::read::<Reply, _>(&mut io, Limit::OPEN).await.expect("an answer") {
            Some(Reply::Opened) => Program { io },
            Some(Reply::Done(text) | Reply::Failed(text)) => panic!("exec in {instance}: {text}"),
            None => panic!("exec in {instance}: the controller hung up"),
        }
    }
}

impl Program {
    /// Reads some output and returns how many bytes came; 0 at its end.
    pub async fn read(&mut self) -> usize {
        match frame::read(&mut self.io, Limit::STREAM).await.expect("a frame") {
            Some(ExecFrame::Stdout(bytes) | ExecFrame::Stderr(bytes)) => bytes.len(),
            Some(ExecFrame::Exit { .. }) | None => 0,
            Some(other) => panic!("{other:?}"),
        }
    }
}
