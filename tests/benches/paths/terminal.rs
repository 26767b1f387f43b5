//! Ours: the browser terminal, a WebSocket into a shell of an instance.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tianqi_tests::client::Client;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// An open terminal.
#[derive(Debug)]
pub struct Terminal {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Terminal {
    /// Opens `sh` in an instance and waits until it runs.
    pub async fn open(client: &Client, instance: &str) -> Self {
        let url = client.url(&format!("/instances/{instance}/terminal?shell=sh"));
        let url = url.replacen("http", "ws", 1);
        let mut request = url.into_client_request().expect("a request");
        let bearer = format!("Bearer {}", client.token().expect("a token"));
        request.headers_mut().insert("authorization", bearer.parse().expect("a header"));
        let connected = connect_async_with_config(request, None, true).await;
        let (mut socket, _) = connected.expect("a WebSocket");
        let first = socket.next().await.expect("a frame").expect("a frame");
        assert!(first.to_text().is_ok_and(|text| text.contains("opened")), "{first:?}");
        Self { socket }
    }

    /// Types.
    pub async fn write(&mut self, bytes: &[u8]) {
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        self.socket.send(message).await.expect("the terminal takes input");
    }

    /// Reads some output and returns how many bytes came; 0 at its end.
    pub async fn read(&mut self) -> usize {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return bytes.len(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                None | Some(Ok(Message::Close(_))) => return 0,
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    /// Reads until nothing has come for a while.
    pub async fn drain(&mut self) {
        while tokio::time::timeout(Duration::from_millis(500), self.read()).await.is_ok() {}
    }
}
