//! The peer: programs in containers by Docker's own API, on a raw stream of its own.

use std::path::PathBuf;

use serde_json::{Value, json};
use tianqi_tests::dockerd::Dockerd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::http::{Wire, request};

/// An engine's API.
#[derive(Debug)]
pub struct Direct {
    socket: PathBuf,
}

/// A program in a container, attached.
#[derive(Debug)]
pub struct Program {
    io: UnixStream,
    buffer: Vec<u8>,
    has_terminal: bool,
    left: usize,
}

impl Direct {
    /// Talks to this engine.
    pub fn to(engine: &Dockerd) -> Self {
        Self { socket: engine.socket() }
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let mut wire = Wire::unix(&self.socket).await.expect("the engine listens");
        let request = request("POST", path, "", &body.to_string());
        let answer = wire.call(&request).await.expect("the engine answers");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status < 300, "POST {path}: {} {text}", answer.status);
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Creates and starts a container of an image and returns its id.
    pub async fn run(&self, image: &str) -> String {
        let created = self.post("/containers/create", &json!({ "Image": image })).await;
        let id = created["Id"].as_str().expect("an id").to_owned();
        self.post(&format!("/containers/{id}/start"), &Value::Null).await;
        id
    }

    /// Starts a program in a container.
    pub async fn exec(&self, container: &str, argv: &[&str], has_terminal: bool) -> Program {
        let wanted = json!({
            "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
            "Tty": has_terminal, "Cmd": argv,
        });
        let made = self.post(&format!("/containers/{container}/exec"), &wanted).await;
        let path = format!("/exec/{}/start", made["Id"].as_str().expect("an id"));
        let mut wire = Wire::unix(&self.socket).await.expect("the engine listens");
        let body = json!({ "Detach": false, "Tty": has_terminal }).to_string();
        let upgrade = "connection: upgrade\r\nupgrade: tcp\r\n";
        let started = wire.call(&request("POST", &path, upgrade, &body)).await;
        assert_eq!(started.expect("the engine answers").status, 101);
        let (io, buffer) = wire.into_parts();
        Program { io, buffer, has_terminal, left: 0 }
    }
}

impl Program {
    /// Types.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the program takes input");
    }

    /// Reads some output and returns how many bytes came; 0 at its end.
    pub async fn read(&mut self) -> usize {
        loop {
            let came = self.take();
            if came > 0 {
                return came;
            }
            self.buffer.reserve(64 << 10);
            if self.io.read_buf(&mut self.buffer).await.expect("output") == 0 {
                return 0;
            }
        }
    }

    /// Takes what is in the buffer off it; without a terminal, Docker puts output into frames.
    fn take(&mut self) -> usize {
        if self.has_terminal {
            return std::mem::take(&mut self.buffer).len();
        }
        let (mut at, mut came) = (0, 0);
        loop {
            let here = self.left.min(self.buffer.len() - at);
            (at, came, self.left) = (at + here, came + here, self.left - here);
            let Some(header) = self.buffer.get(at..at + 8).filter(|_| self.left == 0) else {
                break;
            };
            let length = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
            self.left = usize::try_from(length).expect("a length");
            at += 8;
        }
        self.buffer.drain(..at);
        came
    }
}
