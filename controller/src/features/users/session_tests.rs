//! Logging in and out through the API.

use std::time::Duration;

use axum::http::header::SET_COOKIE;
use serde_json::json;

use super::tests::instance_of;
use crate::authz::first_start::{ADMIN, password_file};
use crate::authz::policy::{InstancesExec, UsersRead};
use crate::authz::resource::{InstanceRef, Resource};
use crate::authz::watch::{self, InUse, Needs};
use crate::authz::{Actor, Anything, Grant, Role, RoleName};
use crate::core::audit::Via;
use crate::core::db::args;
use crate::core::event::Event;
use crate::core::secret::{Secret, token_hash};
use crate::testing::{Answer, Api, PASSWORD};

async fn try_login(api: &Api, name: &str, password: &str) -> Answer {
    let body = json!({ "username": name, "password": password, "mode": "token" });
    api.call("", "POST", "/session", Some(body)).await
}

#[tokio::test]
async fn a_token_is_given_once_stored_as_a_hash_and_ends_with_the_logout() {
    for api in Api::engines().await {
        let token = api.person("alice", RoleName::USER).await;

        let session = api.call(&token, "GET", "/session", None).await;
        assert_eq!((session.code(), session.text("/user/name")), (200, "alice"));
        assert!(session.body.get("token").is_none(), "the token is shown again");
        let stored = "select count(*) from sessions where token_hash = $1";
        let plain = api.ctx.db.number(stored, args![token.clone().into_bytes()]).await.unwrap();
        assert_eq!(plain, 0, "the token itself is stored");

        let mut events = api.ctx.events.listen();
        assert_eq!(api.call(&token, "DELETE", "/session", None).await.code(), 204);
        assert!(matches!(events.try_recv(), Ok(Event::Revoked(_))));
        assert_eq!(api.call(&token, "GET", "/session", None).await.code(), 401);
    }
}

#[tokio::test]
async fn a_cookie_is_for_pages_of_this_site_and_never_in_the_body() {
    let api = Api::sqlite().await;
    api.person("alice", RoleName::USER).await;
    let body = json!({ "username": "alice", "password": PASSWORD });

    let answer = api.call("", "POST", "/session", Some(body.clone())).await;
    assert_eq!(answer.code(), 201);
    assert!(answer.body.get("token").is_none());
    let cookie = answer.headers[SET_COOKIE].to_str().unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    let (own, foreign) = ("http://tianqi.test", "http://evil.test");
    let table = [
        ("GET", None, 200),
        ("DELETE", None, 403),
        ("DELETE", Some(foreign), 403),
        ("GET", Some(foreign), 403),
        ("DELETE", Some(own), 204),
        ("GET", None, 401),
    ];
    for (method, origin, status) in table {
        let mut headers = vec![("cookie", pair), ("host", "tianqi.test")];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let answer = api.call_with("", method, "/session", None, &headers).await;
        assert_eq!(answer.code(), status, "{method} {origin:?}");
    }

    let foreign = [("origin", foreign), ("host", "tianqi.test")];
    let answer = api.call_with("", "POST", "/session", Some(body), &foreign).await;
    assert_eq!(answer.problem(), "foreign_origin");
    let token = pair.split_once('=').unwrap().1;
    let as_bearer = api.call(token, "GET", "/session", None).await;
    assert_eq!(as_bearer.code(), 401, "a cookie's token was taken as a bearer token");
}

#[tokio::test]
async fn an_idle_and_an_old_session_end() {
    for api in Api::engines().await {
        let rules = api.ctx.authz.sessions;
        let idle = api.person("alice", RoleName::USER).await;
        api.clock.advance(rules.idle);
        assert_eq!(api.call(&idle, "GET", "/session", None).await.code(), 401);

        let old = api.log_in("alice").await;
        let step = rules.idle / 2;
        let mut passed = Duration::ZERO;
        while passed + step < rules.absolute {
            api.clock.advance(step);
            passed += step;
            assert_eq!(api.call(&old, "GET", "/session", None).await.code(), 200, "{passed:?}");
        }
        api.clock.advance(step);
        assert_eq!(api.call(&old, "GET", "/session", None).await.code(), 401);

        let now = api.ctx.clock.now();
        let forgotten = crate::authz::session::forget_ended(&api.ctx.db, rules, now).await;
        assert_eq!(forgotten.unwrap(), 1, "the login removed the idle one, the timer the old one");
    }
}

#[tokio::test]
async fn a_new_password_of_ones_own_ends_the_other_sessions_alone() {
    for api in Api::engines().await {
        let (here, there) = (api.person("alice", RoleName::USER).await, api.log_in("alice").await);
        let change = async |current: &str, new: &str| {
            let body = json!({ "current_password": current, "new_password": new });
            api.call(&here, "PUT", "/me/password", Some(body)).await
        };

        assert_eq!(change("wrong", "a new password").await.problem(), "wrong_password");
        assert_eq!(change(PASSWORD, "short").await.problem(), "weak_password");
        assert_eq!(change(PASSWORD, PASSWORD).await.problem(), "weak_password");
        assert_eq!(api.call(&there, "GET", "/session", None).await.code(), 200);

        assert_eq!(change(PASSWORD, "a new password").await.code(), 204);
        assert_eq!(api.call(&here, "GET", "/session", None).await.code(), 200);
        assert_eq!(api.call(&there, "GET", "/session", None).await.code(), 401);
        assert_eq!(try_login(&api, "alice", PASSWORD).await.code(), 401);
        assert_eq!(try_login(&api, "alice", "a new password").await.code(), 201);
    }
}

#[tokio::test]
async fn the_first_admin_has_a_random_password_in_a_file_and_must_change_it() {
    for api in Api::engines().await {
        let (authz, folder) = (&api.ctx.authz, &api.ctx.config.data_dir);
        authz.ensure_admin(folder, None).await.unwrap();
        let file = password_file(folder);
        let written = std::fs::read_to_string(&file).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&file).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);

        let answer = try_login(&api, ADMIN, written.trim()).await;
        let token = answer.text("/token");
        assert_eq!(answer.body["user"]["must_change_password"], true);
        let early = api.call(token, "GET", "/users", None).await;
        assert_eq!(early.problem(), "password_change_required");
        let body = json!({ "current_password": written.trim(), "new_password": PASSWORD });
        assert_eq!(api.call(token, "PUT", "/me/password", Some(body)).await.code(), 204);
        assert_eq!(api.call(token, "GET", "/users", None).await.code(), 200);
        assert!(!file.exists(), "the old password is still in its file");

        authz.ensure_admin(folder, None).await.unwrap();
        assert!(!file.exists(), "a second start made another password");
    }
}

#[tokio::test]
async fn a_chosen_first_password_is_used_as_it_is_and_a_weak_one_refused() {
    let api = Api::sqlite().await;
    let folder = &api.ctx.config.data_dir;
    let chosen = |text: &str| Some(Secret::new(text.to_owned()));

    let weak = api.ctx.authz.ensure_admin(folder, chosen("123")).await.unwrap_err();
    assert!(weak.to_string().contains("at least 10"), "{weak}");
    api.ctx.authz.ensure_admin(folder, chosen(PASSWORD)).await.unwrap();

    let answer = try_login(&api, ADMIN, PASSWORD).await;
    assert_eq!(answer.body["user"]["must_change_password"], false);
    assert!(!password_file(folder).exists());
}

/// Returns the actor behind a session's token.
async fn actor_of(api: &Api, token: &str, role: Role) -> Actor {
    let session = api.call(token, "GET", "/session", None).await;
    let sql = "select id from sessions where token_hash = $1";
    let row: Option<SessionId> = api.ctx.db.first(sql, args![token_hash(token)]).await.unwrap();
    Actor {
        id: session.text("/user/id").parse().unwrap(),
        name: session.text("/user/name").to_owned(),
        role,
        session: row.unwrap().id,
        expires_at: api.ctx.clock.now().plus(Duration::from_secs(60)),
        must_change_password: false,
        via: Via::Token,
        remote_address: String::new(),
        request_id: String::new(),
    }
}

#[tokio::test]
async fn a_grant_that_is_held_for_long_does_not_outlive_its_session_or_role() {
    let api = Api::sqlite().await;
    let token = api.person("root", RoleName::ADMIN).await;
    let actor = actor_of(&api, &token, Role::admin()).await;
    let grant = Grant::<Anything, UsersRead>::decide(actor, Anything).unwrap();

    assert!(grant.recheck(&api.ctx.authz).await.is_ok());
    api.ctx.db.run("update users set role = 'user'", args![]).await.unwrap();
    assert_eq!(grant.recheck(&api.ctx.authz).await.unwrap_err().code, "forbidden");
    api.call(&token, "DELETE", "/session", None).await;
    assert_eq!(grant.recheck(&api.ctx.authz).await.unwrap_err().code, "unauthorised");
}

#[tokio::test]
async fn a_terminal_that_is_in_use_keeps_its_session_and_one_that_only_stands_open_does_not() {
    let api = Api::sqlite().await;
    let token = api.person("alice", RoleName::USER).await;
    let actor = actor_of(&api, &token, Role::user()).await;
    let id = instance_of(&api, &actor.id.to_string(), "x").await.to_string();
    let instance = InstanceRef::find(&api.ctx.db, Some(&id)).await.unwrap();
    let grant = Grant::<InstanceRef, InstancesExec>::decide(actor, instance).unwrap();
    let (idle, in_use) = (api.ctx.authz.sessions.idle, InUse::default());
    let look = async || watch::look(&api.ctx.authz, &grant, Needs::Existence, &in_use).await;

    for _ in 0..4 {
        api.clock.advance(idle / 2);
        in_use.mark();
        look().await.expect("a session in use lives on");
    }
    api.clock.advance(idle / 2);
    look().await.expect("it was used half the time ago");
    api.clock.advance(idle / 2);
    assert_eq!(look().await.unwrap_err().code, "unauthorised", "nobody used it");
}

crate::core::db::row! {
    struct SessionId { id: uuid::Uuid }
}
