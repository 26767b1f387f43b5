//! Output of a container, read off Docker's own stream.
//!
//! bollard's options know whole seconds only, and its decoder keeps a line of any length in memory.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tianqi_common::clock::UnixMillis;

use super::exec::refusal;
use super::{Engine, SLOW, chain, send};
use crate::docker::attach::Decoder;
use crate::docker::{DockerError, LogRequest, Output, Pieces, time_length};

/// Longest piece of a line that Docker keeps as one.
const CUT: usize = 16 << 10;

impl Engine {
    pub(super) async fn read_logs(
        &self,
        container: &str,
        wanted: LogRequest,
    ) -> Result<Pieces<Output>, DockerError> {
        let container = self.inspect_ours(container).await?;
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("/containers/{}/logs?{}", container.id, query(&wanted)))
            .body(Empty::<Bytes>::new())
            .map_err(|error| protocol(error.to_string()))?;
        let answer = self.within("logs", SLOW, send(&self.dialer, request)).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer).await);
        }
        let reader = LogReader {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            decoder: Decoder::between_frames(),
        };
        let next = |mut reader: LogReader| async move {
            Ok(reader.next().await?.map(|output| (output, reader)))
        };
        Ok(stream::try_unfold(reader, next).boxed())
    }
}

/// Writes the question as Docker's API takes it: times are seconds with nine places.
fn query(wanted: &LogRequest) -> String {
    let tail = wanted.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
    let mut query = format!(
        "stdout=true&stderr=true&follow={}&timestamps={}&tail={tail}",
        wanted.follow, wanted.timestamps
    );
    for (name, time) in [("since", wanted.since), ("until", wanted.until)] {
        if let Some(UnixMillis(millis)) = time {
            let millis = millis.max(0);
            let (seconds, rest) = (millis / 1_000, millis % 1_000);
            query.push_str(&format!("&{name}={seconds}.{rest:03}000000"));
        }
    }
    query
}

/// What is read and not yet handed on.
struct LogReader {
    body: Incoming,
    buffer: BytesMut,
    decoder: Decoder,
}

impl LogReader {
    async fn next(&mut self) -> Result<Option<Output>, DockerError> {
        loop {
            if let Some(message) = self.decoder.take_whole(&mut self.buffer)? {
                return Ok(Some(mended(message)));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(protocol(chain(&error))),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(protocol("it ended inside a frame".to_owned())),
            }
        }
    }
}

/// Docker cuts lines at 16 KiB, and its `local` driver loses the end of a line that it has cut. A
/// message that is shorter than a cut one is the last of its line.
fn mended(message: Output) -> Output {
    let length = message.bytes.len() - time_length(&message.bytes);
    if message.bytes.ends_with(b"\n") || length >= CUT {
        return message;
    }
    Output { bytes: [&message.bytes, b"\n".as_slice()].concat().into(), ..message }
}

fn protocol(message: String) -> DockerError {
    DockerError::Protocol { what: "logs", message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::OutputKind;

    #[test]
    fn the_end_of_a_line_that_was_cut_is_put_back() {
        let mend = |text: String| {
            let message = Output { kind: OutputKind::Stdout, bytes: text.into() };
            String::from_utf8(mended(message).bytes.to_vec()).unwrap()
        };
        let (whole, time) = ("x".repeat(CUT), "2026-01-31T08:30:00.123456789Z ");

        assert_eq!(mend(whole.clone()), whole);
        assert_eq!(mend(format!("{time}{whole}")), format!("{time}{whole}"));
        assert_eq!(mend("line\n".to_owned()), "line\n");
        assert_eq!(mend(format!("{time}rest")), format!("{time}rest\n"));
    }

    #[test]
    fn times_are_written_to_the_millisecond_and_everything_is_all() {
        let wanted = LogRequest {
            tail: None,
            since: Some(UnixMillis(1_800_000_000_007)),
            until: Some(UnixMillis(-5)),
            follow: true,
            timestamps: false,
        };

        assert_eq!(
            query(&wanted),
            "stdout=true&stderr=true&follow=true&timestamps=false&tail=all\
             &since=1800000000.007000000&until=0.000000000"
        );
        assert!(query(&LogRequest { tail: Some(7), ..wanted }).contains("&tail=7&"));
    }
}
