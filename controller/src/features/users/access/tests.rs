//! Sessions and API tokens through the API.

use std::time::Duration;

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::core::db::args;
use crate::core::event::Event;
use crate::core::secret::token_hash;
use crate::testing::{Answer, Api};

const DAY: Duration = Duration::from_hours(24);

async fn own_id(api: &Api, token: &str) -> String {
    api.call(token, "GET", "/session", None).await.text("/user/id").to_owned()
}

async fn make(api: &Api, session: &str, body: Value) -> Answer {
    api.call(session, "POST", "/me/tokens", Some(body)).await
}

/// Makes a token with these permissions and returns it with its id.
async fn made(api: &Api, session: &str, name: &str, permissions: &[&str]) -> (String, String) {
    let body = json!({ "name": name, "permissions": permissions });
    let answer = make(api, session, body).await;
    assert_eq!(answer.code(), 201, "{answer:?}");
    (answer.text("/token").to_owned(), answer.text("/id").to_owned())
}

#[tokio::test]
async fn ones_own_sessions_are_listed_and_ended_one_by_one() {
    for api in Api::engines().await {
        let here = api.person("alice", RoleName::USER).await;
        let there = api.log_in("alice").await;
        let bobs = api.person("bob", RoleName::USER).await;

        let list = api.call(&here, "GET", "/me/sessions", None).await;
        assert_eq!((list.code(), &list.body["total"]), (200, &json!(2)), "{list:?}");
        let items = list.body["items"].as_array().unwrap();
        assert_eq!(items.iter().filter(|it| it["is_current"] == true).count(), 1);
        assert_eq!(items[0]["kind"], "token");
        assert_eq!(items[0]["remote_address"], "127.0.0.1");
        assert!(!list.body.to_string().contains(&there), "a token is shown");
        let other = items.iter().find(|it| it["is_current"] == false).unwrap();
        let path = format!("/me/sessions/{}", other["id"].as_str().unwrap());

        let foreign = api.call(&bobs, "DELETE", &path, None).await;
        assert_eq!((foreign.code(), foreign.problem()), (404, "no_such_session"));
        let mut events = api.ctx.events.listen();
        assert_eq!(api.call(&here, "DELETE", &path, None).await.code(), 204);
        assert!(matches!(events.try_recv(), Ok(Event::Revoked(_))));
        assert_eq!(api.call(&there, "GET", "/session", None).await.code(), 401);
        assert_eq!(api.call(&here, "GET", "/session", None).await.code(), 200);
        assert_eq!(api.call(&here, "DELETE", &path, None).await.problem(), "no_such_session");
    }
}

#[tokio::test]
async fn sessions_that_have_ended_are_not_listed() {
    let api = Api::sqlite().await;
    api.person("alice", RoleName::USER).await;
    api.clock.advance(api.ctx.authz.sessions.idle);
    let here = api.log_in("alice").await;

    let list = api.call(&here, "GET", "/me/sessions", None).await;

    assert_eq!(list.body["total"], 1, "{list:?}");
}

#[tokio::test]
async fn an_admin_lists_and_ends_somebodys_sessions_and_tokens() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let id = own_id(&api, &alice).await;
        let (token, token_id) = made(&api, &alice, "robot", &["instances:read"]).await;
        let (other, _) = made(&api, &alice, "other", &["instances:read"]).await;

        let sessions = format!("/users/{id}/sessions");
        let list = api.call(&admin, "GET", &sessions, None).await;
        assert_eq!(list.body["total"], 1, "{list:?}");
        let tokens = format!("/users/{id}/tokens");
        let list = api.call(&admin, "GET", &format!("{tokens}?sort=-name"), None).await;
        assert_eq!(list.body["items"][0]["name"], "robot", "{list:?}");

        let one = format!("{tokens}/{token_id}");
        assert_eq!(api.call(&admin, "DELETE", &one, None).await.code(), 204);
        assert_eq!(api.call(&admin, "DELETE", &one, None).await.problem(), "no_such_token");
        assert_eq!(api.call(&token, "GET", "/instances", None).await.code(), 401);
        assert_eq!(api.call(&other, "GET", "/instances", None).await.code(), 200);
        assert_eq!(api.call(&admin, "DELETE", &tokens, None).await.code(), 204);
        assert_eq!(api.call(&other, "GET", "/instances", None).await.code(), 401);

        let list = api.call(&admin, "GET", &sessions, None).await;
        let one = format!("{sessions}/{}", list.text("/items/0/id"));
        let second = api.log_in("alice").await;
        assert_eq!(api.call(&admin, "DELETE", &one, None).await.code(), 204);
        assert_eq!(api.call(&alice, "GET", "/session", None).await.code(), 401);
        assert_eq!(api.call(&second, "GET", "/session", None).await.code(), 200);
        assert_eq!(api.call(&admin, "DELETE", &sessions, None).await.code(), 204);
        assert_eq!(api.call(&second, "GET", "/session", None).await.code(), 401);
        assert_eq!(api.call(&admin, "GET", "/session", None).await.code(), 200);
    }
}

#[tokio::test]
async fn a_token_is_shown_once_stored_as_a_hash_and_does_what_it_is_for() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let (token, _) = made(&api, &alice, "robot", &["instances:read", "me:read"]).await;

        assert!(token.starts_with("tianqi_") && token.len() == 50, "{token}");
        let list = api.call(&alice, "GET", "/me/tokens", None).await;
        assert!(!list.body.to_string().contains(&token), "the token is shown again");
        let stored = "select count(*) from api_tokens where token_hash = $1";
        let count = async |bytes: Vec<u8>| api.ctx.db.number(stored, args![bytes]).await.unwrap();
        assert_eq!(count(token.clone().into_bytes()).await, 0, "the token itself is stored");
        assert_eq!(count(token_hash(&token)).await, 1);

        assert_eq!(api.call(&token, "GET", "/me", None).await.text("/name"), "alice");
        assert_eq!(api.call(&token, "GET", "/instances", None).await.code(), 200);
        for (method, path) in [("GET", "/images"), ("GET", "/placements"), ("GET", "/session")] {
            let refused = api.call(&token, method, path, None).await;
            assert_eq!((refused.code(), refused.problem()), (403, "forbidden"), "{path}");
        }
        let by_cookie = format!("tianqi_session={token}");
        let headers = [("cookie", by_cookie.as_str())];
        let answer = api.call_with("", "GET", "/me", None, &headers).await;
        assert_eq!(answer.code(), 401, "a token was taken as a cookie");
    }
}

#[tokio::test]
async fn a_token_makes_no_tokens_changes_no_password_and_manages_no_sessions() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    for name in ["me:tokens", "me:password", "me:sessions", "session:own"] {
        let refused = make(&api, &admin, json!({ "name": "x", "permissions": [name] })).await;
        assert_eq!((refused.code(), refused.problem()), (422, "bad_field"), "{name}");
    }
    let (token, _) = made(&api, &admin, "robot", &["users:read", "users:write"]).await;

    let body = || Some(json!({ "name": "y", "permissions": ["users:read"] }));
    let password = || Some(json!({ "current_password": "x", "new_password": "y" }));
    for (method, path, body) in [
        ("POST", "/me/tokens", body()),
        ("GET", "/me/tokens", None),
        ("GET", "/me/sessions", None),
        ("PUT", "/me/password", password()),
        ("DELETE", "/session", None),
    ] {
        let refused = api.call(&token, method, path, body).await;
        assert_eq!((refused.code(), refused.problem()), (403, "forbidden"), "{method} {path}");
    }
    assert_eq!(api.call(&token, "GET", "/users", None).await.code(), 200);
}

#[tokio::test]
async fn a_token_has_at_most_what_its_maker_has_when_made_and_when_used() {
    for api in Api::engines().await {
        let (admin, alice) =
            (api.person("root", RoleName::ADMIN).await, api.person("alice", RoleName::ADMIN).await);
        let user = api.person("bob", RoleName::USER).await;
        let beyond = make(&api, &user, json!({ "name": "x", "permissions": ["users:read"] })).await;
        assert_eq!((beyond.code(), beyond.problem()), (403, "beyond_own_rights"));

        let (token, _) = made(&api, &alice, "robot", &["users:read", "instances:read"]).await;
        assert_eq!(api.call(&token, "GET", "/users", None).await.code(), 200);
        let path = format!("/users/{}", own_id(&api, &alice).await);
        let patch = Some(json!({ "role": "user" }));
        assert_eq!(api.call(&admin, "PATCH", &path, patch).await.code(), 200);
        assert_eq!(api.call(&token, "GET", "/users", None).await.problem(), "forbidden");
        assert_eq!(api.call(&token, "GET", "/instances", None).await.code(), 200);
    }
}

#[tokio::test]
async fn a_token_expires_is_still_listed_and_then_forgotten() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let body = json!({ "name": "short", "permissions": ["me:read"], "expires_in_days": 1 });
        let short = make(&api, &alice, body).await.text("/token").to_owned();
        let (long, _) = made(&api, &alice, "long", &["me:read"]).await;

        api.clock.advance(DAY);
        assert_eq!(api.call(&short, "GET", "/me", None).await.code(), 401);
        assert_eq!(api.call(&long, "GET", "/me", None).await.code(), 200);
        api.clock.advance(DAY * 88);
        assert_eq!(api.call(&long, "GET", "/me", None).await.code(), 200, "day 89 of 90");
        api.clock.advance(DAY);
        assert_eq!(api.call(&long, "GET", "/me", None).await.code(), 401);

        let alice = api.log_in("alice").await;
        let list = api.call(&alice, "GET", "/me/tokens", None).await;
        assert_eq!(list.body["total"], 2, "an expired one shows why a program stopped");
        let now = api.ctx.clock.now();
        let forgotten = crate::authz::token::forget_expired(&api.ctx.db, now).await.unwrap();
        assert_eq!(forgotten, 1, "the one that expired more than 30 days ago");
    }
}

#[tokio::test]
async fn the_last_use_of_a_token_is_noted_once_a_minute() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let (token, _) = made(&api, &alice, "robot", &["me:read"]).await;
        let last = async || {
            let list = api.call(&alice, "GET", "/me/tokens", None).await;
            list.body["items"][0]["last_used_at"].as_str().map(str::to_owned)
        };
        assert_eq!(last().await, None);

        api.call(&token, "GET", "/me", None).await;
        let first = last().await.unwrap();
        api.clock.advance(Duration::from_secs(30));
        api.call(&token, "GET", "/me", None).await;
        assert_eq!(last().await.as_deref(), Some(first.as_str()), "it was written twice");
        api.clock.advance(Duration::from_secs(30));
        api.call(&token, "GET", "/me", None).await;
        assert_ne!(last().await, Some(first));
        let list = api.call(&alice, "GET", "/me/tokens", None).await;
        assert_eq!(list.text("/items/0/last_used_address"), "127.0.0.1");
    }
}

#[tokio::test]
async fn bad_tokens_are_refused_with_what_to_write_instead() {
    let mut api = Api::sqlite().await;
    let mut config = (*api.ctx.config).clone();
    config.tokens.per_account = 2;
    api.ctx.config = config.into();
    api.serve();
    let alice = api.person("alice", RoleName::USER).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({ "name": "robot", "permissions": ["me:read"] });
        body[field] = value;
        body
    };
    made(&api, &alice, "taken", &["me:read"]).await;

    for (status, code, body) in [
        (422, "bad_field", with("name", json!(""))),
        (422, "bad_field", with("name", json!("x".repeat(51)))),
        (422, "bad_field", with("permissions", json!([]))),
        (422, "bad_field", with("permissions", json!(["no:such"]))),
        (422, "bad_field", with("expires_in_days", json!(0))),
        (422, "bad_field", with("expires_in_days", json!(366))),
        (409, "duplicate", with("name", json!("taken"))),
    ] {
        let shown = body.to_string();
        let answer = make(&api, &alice, body).await;
        assert_eq!((answer.code(), answer.problem()), (status, code), "{shown}: {answer:?}");
    }
    made(&api, &alice, "second", &["me:read"]).await;
    let third = make(&api, &alice, with("name", json!("third"))).await;
    assert_eq!((third.code(), third.problem()), (409, "too_many_tokens"));
}

#[tokio::test]
async fn disabling_and_resetting_end_tokens_and_a_new_password_of_ones_own_does_not() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        for (name, patch, path) in [
            ("alice", json!({ "disabled": true }), ""),
            ("bob", json!({ "password": "another password" }), "/password"),
        ] {
            let session = api.person(name, RoleName::USER).await;
            let (token, _) = made(&api, &session, "robot", &["me:read"]).await;
            let change = json!({ "current_password": crate::testing::PASSWORD,
                "new_password": "four unrelated words here" });
            let changed = api.call(&session, "PUT", "/me/password", Some(change)).await;
            assert_eq!(changed.code(), 204, "{changed:?}");
            assert_eq!(api.call(&token, "GET", "/me", None).await.code(), 200);

            let path = format!("/users/{}{path}", own_id(&api, &session).await);
            let method = if path.ends_with("/password") { "PUT" } else { "PATCH" };
            assert!(api.call(&admin, method, &path, Some(patch)).await.code() < 300);
            assert_eq!(api.call(&token, "GET", "/me", None).await.code(), 401, "{name}");
            let left = "select count(*) from api_tokens";
            assert_eq!(api.ctx.db.number(left, args![]).await.unwrap(), 0, "{name}");
        }
    }
}
