//! A browser terminal, as a browser would use it.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::client::Client;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open terminal.
#[derive(Debug)]
pub struct Terminal {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    seen: Vec<u8>,
}

/// How a terminal ended.
#[derive(Debug)]
pub struct Ended {
    /// The last text frame; null when there was none.
    pub last: Value,
    /// The code of the WebSocket's close frame; 0 when it was cut.
    pub code: u16,
}

impl Terminal {
    /// Opens a terminal in an instance; `query` is such as `shell=sh&cols=80`.
    ///
    /// # Errors
    ///
    /// The status and the problem when the controller refuses the upgrade.
    ///
    /// # Panics
    ///
    /// When the controller does not answer.
    pub async fn open(
        client: &Client,
        instance: &str,
        query: &str,
    ) -> Result<Self, (StatusCode, Value)> {
        Self::open_with(client, instance, query, &client.headers()).await
    }

    /// The same with these headers and no others.
    ///
    /// # Errors
    ///
    /// As [`Terminal::open`].
    ///
    /// # Panics
    ///
    /// As [`Terminal::open`].
    pub async fn open_with(
        client: &Client,
        instance: &str,
        query: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Self, (StatusCode, Value)> {
        let path = format!("/instances/{instance}/terminal?{query}");
        let url = client.url(&path).replacen("http", "ws", 1);
        let mut request = url.into_client_request().expect("address");
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).expect("header");
            request.headers_mut().insert(*name, value);
        }
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Self { socket, seen: Vec::new() }),
            Err(Error::Http(answer)) => {
                let status = StatusCode::from_u16(answer.status().as_u16()).expect("status");
                let body = answer.into_body().unwrap_or_default();
                Err((status, serde_json::from_slice(&body).unwrap_or_default()))
            }
            Err(error) => panic!("the terminal does not open: {error}"),
        }
    }

    /// Comes back to a terminal by its ticket; `offset` is what was seen of it.
    ///
    /// # Errors
    ///
    /// As [`Terminal::open`].
    ///
    /// # Panics
    ///
    /// As [`Terminal::open`].
    pub async fn attach(
        client: &Client,
        instance: &str,
        ticket: &str,
        offset: Option<u64>,
    ) -> Result<Self, (StatusCode, Value)> {
        let mut terminal = Self::open(client, instance, "attach=1&cols=100&rows=30").await?;
        let mut frame = serde_json::json!({ "type": "attach", "ticket": ticket });
        if let Some(offset) = offset {
            frame["offset"] = offset.into();
        }
        terminal.say(&frame.to_string()).await;
        Ok(terminal)
    }

    /// Says goodbye as a page that is closed does, without a word about the program.
    pub async fn leave(mut self) {
        let _ = self.socket.close(None).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// Types something.
    pub async fn type_in(&mut self, keys: impl AsRef<[u8]>) {
        let keys = Message::Binary(keys.as_ref().to_vec().into());
        self.socket.send(keys).await.expect("the terminal is open");
    }

    /// Sends a text frame.
    pub async fn say(&mut self, frame: &str) {
        let frame = Message::Text(frame.into());
        self.socket.send(frame).await.expect("the terminal is open");
    }

    /// Waits for the next text frame; output that comes before it is kept.
    pub async fn told(&mut self) -> Value {
        loop {
            match self.next().await {
                Some(Message::Text(text)) => return serde_json::from_str(&text).expect("json"),
                Some(_) => {}
                None => panic!("it ended; seen: {}", self.screen()),
            }
        }
    }

    /// Waits until the output holds `text`, and returns everything up to its end; what comes after
    /// it is left for the next call.
    pub async fn until(&mut self, text: impl AsRef<[u8]>) -> Vec<u8> {
        let text = text.as_ref();
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|part| part == text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            match self.next().await {
                Some(Message::Text(told)) => panic!("{told}; seen: {}", self.screen()),
                Some(_) => {}
                None => panic!("it ended; seen: {}", self.screen()),
            }
        }
    }

    /// Waits until it is over.
    pub async fn ended(&mut self) -> Ended {
        let mut ended = Ended { last: Value::Null, code: 0 };
        while let Some(message) = self.next().await {
            match message {
                Message::Text(text) => ended.last = serde_json::from_str(&text).expect("json"),
                Message::Close(close) => {
                    ended.code = close.map_or(0, |close| close.code.into());
                    // Lets the goodbye go out.
                    let _ = self.socket.close(None).await;
                    return ended;
                }
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        ended
    }

    async fn next(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing more comes; seen: {}", self.screen()));
        let message = next?.ok()?;
        if let Message::Binary(bytes) = &message {
            self.seen.extend_from_slice(bytes);
        }
        Some(message)
    }

    fn screen(&self) -> String {
        let end = self.seen.len().saturating_sub(500);
        String::from_utf8_lossy(&self.seen[end..]).into_owned()
    }
}
