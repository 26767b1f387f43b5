//! Programs in a container: started on a raw byte stream of our own, asked about through bollard.

use std::time::Duration;

use bollard::models::ExecConfig;
use bollard::query_parameters::ResizeExecOptionsBuilder;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tianqi_common::wire::stream::PtySize;

use super::{Engine, QUICK, SLOW, send};
use crate::docker::{DockerError, ExecRequest, ExecSession, ExecState};

/// Most bytes of a refusal that are read.
const REFUSAL: usize = 16 << 10;

impl Engine {
    pub(super) async fn start_exec(
        &self,
        container: &str,
        request: ExecRequest,
    ) -> Result<ExecSession, DockerError> {
        let config = ExecConfig {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(request.pty.is_some()),
            env: Some(request.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            cmd: Some(request.argv),
            user: Some(request.user).filter(|user| !user.is_empty()),
            ..Default::default()
        };
        let call = self.client.create_exec(container, config);
        let id = self.within("create exec", QUICK, call).await?.id;
        let attached = tokio::time::timeout(SLOW, self.attach(&id, request.pty)).await;
        let session =
            attached.unwrap_or(Err(DockerError::TimedOut { what: "start exec", after: SLOW }))?;
        if let Some(size) = request.pty {
            // Engines below API 1.42 learn the first size only this way. A program that ended
            // already has no terminal to resize.
            if let Err(error) = self.resize(&id, size).await {
                tracing::debug!(%error, "first size of a terminal was not set");
            }
        }
        Ok(session)
    }

    async fn attach(&self, id: &str, pty: Option<PtySize>) -> Result<ExecSession, DockerError> {
        let mut start = serde_json::json!({ "Detach": false, "Tty": pty.is_some() });
        if let (Some(size), Some(start)) = (pty, start.as_object_mut()) {
            start.insert("ConsoleSize".to_owned(), serde_json::json!([size.rows, size.cols]));
        }
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/exec/{id}/start"))
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp")
            .body(Full::new(Bytes::from(start.to_string())))
            .map_err(|error| protocol(&error))?;
        let answer = send(&self.dialer, request)
            .await
            .map_err(|error| self.error("start exec", SLOW, error))?;
        let status = answer.status();
        if status == StatusCode::SWITCHING_PROTOCOLS || status == StatusCode::OK {
            let stream = hyper::upgrade::on(answer).await.map_err(|error| protocol(&error))?;
            return Ok(ExecSession::new(
                id.to_owned(),
                Box::new(TokioIo::new(stream)),
                pty.is_some(),
            ));
        }
        Err(refusal(answer).await)
    }

    pub(super) async fn resize(&self, exec: &str, size: PtySize) -> Result<(), DockerError> {
        let options = ResizeExecOptionsBuilder::default()
            .h(i32::from(size.rows))
            .w(i32::from(size.cols))
            .build();
        self.within("resize", QUICK, self.client.resize_exec(exec, options)).await
    }

    pub(super) async fn read_exec(&self, exec: &str) -> Result<ExecState, DockerError> {
        Ok(self.inspect_program(exec).await?.0)
    }

    async fn inspect_program(&self, exec: &str) -> Result<(ExecState, String), DockerError> {
        let answer = self.within("inspect exec", QUICK, self.client.inspect_exec(exec)).await?;
        let running = answer.running.unwrap_or_default();
        let code = answer.exit_code.and_then(|code| i32::try_from(code).ok());
        let state = ExecState {
            running,
            exit_code: code.filter(|_| !running),
            pid: answer.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
        };
        Ok((state, answer.container_id.unwrap_or_default()))
    }

    pub(super) async fn signal(&self, exec: &str, signal: &str) -> Result<(), DockerError> {
        if !self.dialer.endpoint().is_local() {
            return Err(DockerError::Unsupported(
                "signals need a docker engine on the agent's machine".to_owned(),
            ));
        }
        let signal: Signal = format!("SIG{signal}")
            .parse()
            .map_err(|_| DockerError::Unsupported(format!("there is no signal {signal:?}")))?;
        let pid = self.wait_for_pid(exec).await?;
        let raw = i32::try_from(pid.0).unwrap_or(i32::MAX);
        // The number may belong to another process by now; its cgroup tells.
        let cgroup = tokio::fs::read_to_string(format!("/proc/{raw}/cgroup")).await;
        if pid.1.is_empty() || !cgroup.unwrap_or_default().contains(&pid.1) {
            return Err(DockerError::NotFound { message: "the program has ended".to_owned() });
        }
        kill(Pid::from_raw(raw), signal)
            .map_err(|error| DockerError::Refused { status: 500, message: error.to_string() })
    }

    /// Returns process id and container of a program; Docker learns the first a moment after the
    /// program began.
    async fn wait_for_pid(&self, exec: &str) -> Result<(u32, String), DockerError> {
        for _ in 0..20 {
            let (state, container) = self.inspect_program(exec).await?;
            if let Some(pid) = state.pid {
                return Ok((pid, container));
            }
            if state.exit_code.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Err(DockerError::NotFound { message: "the program does not run".to_owned() })
    }
}

/// Reads why the engine said no.
pub(super) async fn refusal(answer: Response<Incoming>) -> DockerError {
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|value| Some(value.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    match status {
        404 => DockerError::NotFound { message },
        409 => DockerError::Conflict { message },
        status => DockerError::Refused { status, message },
    }
}

fn protocol(error: &dyn std::error::Error) -> DockerError {
    DockerError::Protocol { what: "start exec", message: super::chain(error) }
}
