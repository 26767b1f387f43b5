//! The terminals that wait for somebody to come back, by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tianqi_common::id::TerminalId;
use tianqi_common::wire::frame::FrameError;
use tianqi_common::wire::stream::{PtySize, StreamRefusal, Terminal};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::keeper::{self, Visitor};
use super::stream::refuse;

/// Terminals of a container that are kept at once.
const MOST: usize = 64;

/// Who keeps which terminal.
#[derive(Clone, Default)]
pub(super) struct Terminals {
    doors: Arc<Mutex<HashMap<TerminalId, mpsc::Sender<Visitor>>>>,
}

impl Terminals {
    /// Starts a terminal, or brings somebody back to theirs.
    pub(super) async fn serve(
        &self,
        mut stream: UnixStream,
        wanted: Terminal,
    ) -> Result<(), FrameError> {
        let Some(size) = wanted.exec.pty else {
            let message = "a terminal needs a size".to_owned();
            return refuse(&mut stream, StreamRefusal::BadRequest, message).await;
        };
        match wanted.resume {
            Some(seen) => self.come_back(stream, wanted.id, size, seen).await,
            None => self.start(stream, &wanted, size).await,
        }
    }

    async fn come_back(
        &self,
        stream: UnixStream,
        id: TerminalId,
        size: PtySize,
        seen: u64,
    ) -> Result<(), FrameError> {
        let visitor = Visitor { stream, size, seen };
        let mut stream = match self.door(id) {
            None => visitor.stream,
            Some(door) => match door.send(visitor).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(visitor)) => visitor.stream,
            },
        };
        let message = "this terminal has ended: its program did, or nobody came back in time";
        refuse(&mut stream, StreamRefusal::Gone, message.to_owned()).await
    }

    async fn start(
        &self,
        mut stream: UnixStream,
        wanted: &Terminal,
        size: PtySize,
    ) -> Result<(), FrameError> {
        // Two who come back at once are let in one after the other.
        let (door, visitors) = mpsc::channel(1);
        if let Err(message) = self.enter(wanted.id, door) {
            return refuse(&mut stream, StreamRefusal::TooMany, message.to_owned()).await;
        }
        let served = keeper::keep(stream, &wanted.exec, size, visitors).await;
        self.doors().remove(&wanted.id);
        served
    }

    fn enter(&self, id: TerminalId, door: mpsc::Sender<Visitor>) -> Result<(), &'static str> {
        let mut doors = self.doors();
        if doors.len() >= MOST {
            return Err("64 terminals of this instance are kept already; end one");
        }
        if doors.contains_key(&id) {
            return Err("a terminal of this name is there already");
        }
        doors.insert(id, door);
        Ok(())
    }

    fn door(&self, id: TerminalId) -> Option<mpsc::Sender<Visitor>> {
        self.doors().get(&id).cloned()
    }

    fn doors(&self) -> std::sync::MutexGuard<'_, HashMap<TerminalId, mpsc::Sender<Visitor>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
