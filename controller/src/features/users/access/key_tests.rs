//! SSH public keys through the API.

use serde_json::json;

use crate::authz::RoleName;
use crate::core::db::args;
use crate::core::event::Event;
use crate::testing::{Answer, Api};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICvjztBQGh62NfsD9vZHmN0xBvHMLyuBefme95mo6XeX";

async fn add(api: &Api, session: &str, key: &str) -> Answer {
    let body = json!({ "name": "laptop", "public_key": key });
    api.call(session, "POST", "/me/ssh-keys", Some(body)).await
}

async fn own_id(api: &Api, token: &str) -> String {
    api.call(token, "GET", "/session", None).await.text("/user/id").to_owned()
}

#[tokio::test]
async fn keys_are_added_once_listed_and_removed_by_their_owner() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let bob = api.person("bob", RoleName::USER).await;

        let added = add(&api, &alice, &format!("{KEY} alice@laptop")).await;
        assert_eq!(added.code(), 201, "{added:?}");
        assert_eq!(added.text("/public_key"), KEY);
        assert_eq!(added.body["last_used_at"], json!(null));
        assert_eq!(add(&api, &alice, KEY).await.problem(), "duplicate");
        assert_eq!(add(&api, &bob, KEY).await.code(), 201, "two may hold the same key");
        assert_eq!(add(&api, &bob, "ssh-ed25519 AAAA").await.problem(), "bad_ssh_key");

        let list = api.call(&alice, "GET", "/me/ssh-keys", None).await;
        assert_eq!((list.code(), &list.body["total"]), (200, &json!(1)), "{list:?}");
        let path = format!("/me/ssh-keys/{}", added.text("/id"));
        assert_eq!(api.call(&bob, "DELETE", &path, None).await.problem(), "no_such_ssh_key");
        let mut events = api.ctx.events.listen();
        assert_eq!(api.call(&alice, "DELETE", &path, None).await.code(), 204);
        assert!(matches!(events.try_recv(), Ok(Event::Revoked(_))));
        assert_eq!(api.call(&alice, "DELETE", &path, None).await.problem(), "no_such_ssh_key");
    }
}

#[tokio::test]
async fn a_session_ends_with_the_key_that_began_it() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let key = add(&api, &alice, KEY).await;
        let visitor = crate::authz::login::Visitor {
            remote: [192, 0, 2, 1].into(),
            request_id: String::new(),
            user_agent: "SSH-2.0-test".to_owned(),
            via: crate::core::audit::Via::Ssh,
        };
        let authz = &api.ctx.authz;
        let fingerprint = key.text("/fingerprint");
        assert!(authz.knows_ssh_key("alice", fingerprint).await.unwrap());
        assert!(!authz.knows_ssh_key("nobody", fingerprint).await.unwrap());
        assert!(authz.ssh_key(&visitor, "nobody", fingerprint).await.is_err());

        let actor = authz.ssh_key(&visitor, "alice", fingerprint).await.unwrap();
        let sessions = api.call(&alice, "GET", "/me/sessions", None).await;
        let ssh = sessions.body["items"].as_array().unwrap().iter().find(|it| it["kind"] == "ssh");
        assert_eq!(ssh.unwrap()["remote_address"], "192.0.2.1", "{sessions:?}");
        let list = api.call(&alice, "GET", "/me/ssh-keys", None).await;
        assert_eq!(list.body["items"][0]["last_used_address"], "192.0.2.1");
        assert!(authz.refresh(&actor).await.is_ok());

        let path = format!("/me/ssh-keys/{}", key.text("/id"));
        assert_eq!(api.call(&alice, "DELETE", &path, None).await.code(), 204);
        assert_eq!(authz.refresh(&actor).await.unwrap_err().code, "unauthorised");
    }
}

#[tokio::test]
async fn an_admin_lists_and_removes_somebodys_keys_and_a_token_touches_none() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let id = own_id(&api, &alice).await;
        let key = add(&api, &alice, KEY).await;
        let body = json!({ "name": "robot", "permissions": ["instances:read"] });
        let token = api.call(&alice, "POST", "/me/tokens", Some(body)).await;
        assert_eq!(add(&api, token.text("/token"), KEY).await.code(), 403);

        let path = format!("/users/{id}/ssh-keys");
        let list = api.call(&admin, "GET", &path, None).await;
        assert_eq!(list.body["items"][0]["name"], "laptop", "{list:?}");
        assert_eq!(api.call(&alice, "GET", &path, None).await.code(), 403);
        let one = format!("{path}/{}", key.text("/id"));
        assert_eq!(api.call(&alice, "DELETE", &one, None).await.code(), 403);
        assert_eq!(api.call(&admin, "DELETE", &one, None).await.code(), 204);
        let sql = "select count(*) from audit_events where target_kind = 'ssh_key'";
        assert_eq!(api.ctx.db.number(sql, args![]).await.unwrap(), 2, "added and removed");
    }
}
