//! The whole API on a temporary database, called without a port, for the tests of the rooms.
#![allow(clippy::expect_used, reason = "a harness that cannot be made fails its test")]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use tianqi_common::clock::{ManualClock, SharedClock, UnixMillis};
use tower::ServiceExt;

use crate::app;
use crate::authz::RoleName;
use crate::authz::account::{self, Account};
use crate::config::{Config, Limits, Passwords};
use crate::core::db::{Db, args, row, testing};
use crate::core::secret::Secret;
use crate::features::Ctx;

/// The password of every account that [`Api`] makes.
pub const PASSWORD: &str = "correct horse battery";
/// When a test begins.
pub const START: UnixMillis = UnixMillis(1_800_000_000_000);

/// Passwords and challenges that cost next to nothing.
pub const CHEAP: Passwords = Passwords {
    min_length: 10,
    argon2_memory_kib: 1_024,
    argon2_iterations: 1,
    argon2_parallelism: 1,
    challenge_tries: 4,
};

const ANSWER_LIMIT: usize = 16 << 20;

/// Puts together what the rooms reach on `db`, with keys in a temporary folder.
///
/// # Panics
///
/// When a key cannot be made.
pub async fn ctx_on(db: Db, clock: SharedClock) -> Ctx {
    let data_dir = tempfile::tempdir().expect("temporary folder").keep();
    // The clock stands still, so nothing that was used up would ever come back.
    let config = Config { data_dir, limits: Limits::none(), passwords: CHEAP, ..Config::default() };
    app::assemble(db, config, clock).await.expect("keys in a temporary folder")
}

/// The API, with a clock that stands still.
#[derive(Debug)]
pub struct Api {
    /// What the rooms reach.
    pub ctx: Ctx,
    /// What the time is.
    pub clock: Arc<ManualClock>,
    router: Router,
}

/// An answer: status, headers, and the body as JSON (null when there is none).
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// Returns the status as a number.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// Returns the problem's stable word, or nothing.
    #[must_use]
    pub fn problem(&self) -> &str {
        self.text("/code")
    }

    /// Returns the text at a JSON pointer, or nothing.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

row! {
    struct DetailRow { detail: String }
}

/// Returns which fields the newest row of the audit says were changed.
///
/// # Panics
///
/// When there is no row.
pub async fn audited_changes(db: &Db) -> Value {
    let sql = "select detail from audit_events order by id desc limit 1";
    let row: Option<DetailRow> = db.first(sql, args![]).await.expect("audit");
    let detail: Value = serde_json::from_str(&row.expect("a row").detail).expect("json");
    detail.get("changes").cloned().unwrap_or_default()
}

impl Api {
    /// Serves on `db`.
    pub async fn on(db: Db) -> Self {
        let clock = Arc::new(ManualClock::at(START));
        let ctx = ctx_on(db, clock.clone()).await;
        let router = app::router(&ctx);
        Self { ctx, clock, router }
    }

    /// Serves with what was changed in `ctx` since.
    pub fn serve(&mut self) {
        self.router = app::router(&self.ctx);
    }

    /// Serves on a fresh SQLite database.
    pub async fn sqlite() -> Self {
        Self::on(testing::sqlite().await).await
    }

    /// Serves three times, on each engine.
    pub async fn engines() -> Vec<Self> {
        let mut all = Vec::new();
        for db in testing::databases().await {
            all.push(Self::on(db).await);
        }
        all
    }

    /// Makes an account with [`PASSWORD`] and returns the token of a session of it.
    ///
    /// # Panics
    ///
    /// When the name is taken.
    pub async fn person(&self, name: &str, role: RoleName) -> String {
        let password = Secret::new(PASSWORD.to_owned());
        let hash = self.ctx.authz.hasher.hash(&password).await.expect("hash");
        let now = self.ctx.clock.now();
        let account = Account::new(name.to_owned(), role, now);
        let mut tx = self.ctx.db.begin().await.expect("transaction");
        account::insert(&mut tx, &account, &hash).await.expect("account");
        tx.commit().await.expect("commit");
        self.log_in(name).await
    }

    /// Logs in with [`PASSWORD`] and returns the token.
    ///
    /// # Panics
    ///
    /// When the account does not exist.
    pub async fn log_in(&self, name: &str) -> String {
        let body = serde_json::json!({ "username": name, "password": PASSWORD, "mode": "token" });
        let answer = self.call("", "POST", "/session", Some(body)).await;
        assert_eq!(answer.code(), 201, "{answer:?}");
        answer.text("/token").to_owned()
    }

    /// Calls `path` under `/api/v1` with a session's token, or with none when it is empty.
    pub async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_with(token, method, path, body, &[]).await
    }

    /// As [`Api::call`], with more headers.
    ///
    /// # Panics
    ///
    /// When the request cannot be made of these words.
    pub async fn call_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("method");
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        if !token.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request.body(body).expect("request")).await
    }

    /// Sends any request, as if from 127.0.0.1.
    ///
    /// # Panics
    ///
    /// When the answer is endless.
    pub async fn send(&self, mut request: Request<Body>) -> Answer {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        request.extensions_mut().insert(ConnectInfo(peer));
        let Ok(response) = self.router.clone().oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, ANSWER_LIMIT).await.expect("answer");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }
}
