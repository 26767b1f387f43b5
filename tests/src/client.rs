//! The API as a test calls it.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::deadline::Deadline;

/// Longest wait for an instance to reach a phase.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One person's session. Methods without `try_` panic on any answer but success, with the problem
/// that the controller gave.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    cookie: Option<String>,
}

impl Client {
    /// Returns a client without a session for a controller at `address` (`127.0.0.1:8890`).
    #[must_use]
    pub fn anonymous(address: &str) -> Self {
        crate::install_crypto();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .expect("http client");
        Self { http, base: format!("http://{address}"), token: None, cookie: None }
    }

    /// Logs in and returns the client of that session.
    pub async fn login(&self, username: &str, password: &str) -> Self {
        let body = json!({ "username": username, "password": password, "mode": "token" });
        let session = self.post("/session", &body).await;
        let token = text(&session, "token");
        Self { token: Some(token), cookie: None, ..self.clone() }
    }

    /// Logs in as a browser does and returns the client of that session: it sends the cookie, and
    /// says that it is a page of the controller's own.
    pub async fn login_by_cookie(&self, username: &str, password: &str) -> Self {
        let body = json!({ "username": username, "password": password });
        let request = self.request(Method::POST, "/session").json(&body);
        let response = request.send().await.expect("the controller answers");
        assert_eq!(response.status(), StatusCode::CREATED);
        let cookie = response.headers()["set-cookie"].to_str().expect("a cookie");
        let pair = cookie.split(';').next().expect("a cookie").to_owned();
        Self { token: None, cookie: Some(pair), ..self.clone() }
    }

    /// Returns a client that comes by an API token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), cookie: None, ..self.clone() }
    }

    /// Returns the headers that say who this is.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let token = self.token.iter().map(|token| ("authorization", format!("Bearer {token}")));
        let cookie = self
            .cookie
            .iter()
            .flat_map(|cookie| [("cookie", cookie.clone()), ("origin", self.base.clone())]);
        token.chain(cookie).collect()
    }

    /// Returns the session's token, for WebSockets and hand-made requests.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Returns the address of a path under `/api/v1`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.base)
    }

    /// Begins a request to a path under `/api/v1`.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, self.url(path));
        self.headers().into_iter().fold(request, |it, (name, value)| it.header(name, value))
    }

    /// Calls and returns status and body, whatever they are; an empty body is `null`.
    pub async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.expect("the controller answers");
        let status = response.status();
        let bytes = response.bytes().await.expect("the whole answer arrives");
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        (status, if bytes.is_empty() { Value::Null } else { body })
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    /// Creates, or does a verb.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Changes.
    pub async fn patch(&self, path: &str, body: &Value) -> Value {
        self.call(Method::PATCH, path, Some(body)).await
    }

    /// Deletes.
    pub async fn delete(&self, path: &str) -> Value {
        self.call(Method::DELETE, path, None).await
    }

    /// Creates a listed image under `address` and returns its id.
    pub async fn create_image(&self, name: &str, address: &str) -> String {
        let body = json!({ "name": name, "address": address, "supports_slicing": true });
        text(&self.post("/images", &body).await, "id")
    }

    /// Creates a listed spec without cards (half a core, 64 MiB) and returns its id.
    pub async fn create_cpu_spec(&self, name: &str) -> String {
        self.create_spec(name, &json!({})).await
    }

    /// Creates a listed spec of half a core and 64 MiB with these fields besides, and returns its
    /// id.
    pub async fn create_spec(&self, name: &str, fields: &Value) -> String {
        let mut body = json!({
            "name": name, "gpu_count": 0, "cpu_cores": 0.5, "memory_mib": 64,
            "system_disk_gib": 0, "data_disk_gib": 1, "price_per_hour": "0",
        });
        for (key, value) in fields.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        text(&self.post("/specs", &body).await, "id")
    }

    /// Asks for an instance and returns its id; it is not running yet.
    pub async fn create_instance(&self, name: &str, image_id: &str, spec_id: &str) -> String {
        let body = json!({ "name": name, "image_id": image_id, "spec_id": spec_id });
        text(&self.post("/instances", &body).await, "id")
    }

    /// Reads one instance.
    pub async fn instance(&self, id: &str) -> Value {
        self.get(&format!("/instances/{id}")).await
    }

    /// Starts, stops or restarts an instance; the answer comes before it is done.
    pub async fn act(&self, id: &str, verb: &str) {
        self.post(&format!("/instances/{id}/{verb}"), &json!({})).await;
    }

    /// Waits until an instance is in `phase` and returns it.
    pub async fn wait_phase(&self, id: &str, phase: &str) -> Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let instance = self.instance(id).await;
            if instance["phase"] == phase {
                return instance;
            }
            deadline.pause_async(&format!("instance is not {phase}: {instance}")).await;
        }
    }

    /// Waits until an instance is gone.
    pub async fn wait_gone(&self, id: &str) {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let (status, body) =
                self.try_call(Method::GET, &format!("/instances/{id}"), None).await;
            if status == StatusCode::NOT_FOUND {
                return;
            }
            deadline.pause_async(&format!("instance is still there: {body}")).await;
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.try_call(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path} answered {status}: {answer}");
        answer
    }
}

/// Returns a text field of an answer.
///
/// # Panics
///
/// When it is missing.
#[must_use]
pub fn text(answer: &Value, field: &str) -> String {
    let found = answer[field].as_str();
    found.unwrap_or_else(|| panic!("no {field} in {answer}")).to_owned()
}
