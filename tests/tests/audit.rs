//! Who did what to this instance, when: asked of a controller as an admin would, and whether the
//! answer can be trusted.

use std::process::Output;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;

const PASSWORD: &str = "a-long-enough-password";

async fn account(cluster: &Cluster, admin: &Client, name: &str, role: &str) -> Client {
    let account = json!({
        "name": name, "password": PASSWORD, "role": role, "must_change_password": false,
    });
    admin.post("/users", &account).await;
    Client::anonymous(cluster.http()).login(name, PASSWORD).await
}

/// Creates an instance as the console does: by the cookie of a session.
async fn create_by_cookie(cluster: &Cluster, name: &str, body: &Value) -> String {
    let anybody = Client::anonymous(cluster.http());
    let origin = format!("http://{}", cluster.http());
    let login = json!({ "username": name, "password": PASSWORD });
    let request = anybody.request(Method::POST, "/session").header("origin", &origin);
    let session = request.json(&login).send().await.unwrap();
    let cookie = session.headers()["set-cookie"].to_str().unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap();
    let request = anybody.request(Method::POST, "/instances").header("origin", &origin);
    let created = request.header("cookie", cookie).json(body).send().await.unwrap();
    assert_eq!(created.status(), StatusCode::ACCEPTED);
    text(&created.json().await.unwrap(), "id")
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `audit verify` when every row has its link.
async fn verify_sealed(cluster: &Cluster) -> Output {
    let deadline = Deadline::after(PATIENCE);
    loop {
        // Just after a start the admin socket may not be there yet.
        let output = cluster.run(&["audit", "verify"]);
        let text = printed(&output);
        if text.contains("the audit is") && !text.contains("not sealed yet") {
            return output;
        }
        deadline.pause_async(&format!("the newest rows are not sealed: {output:?}")).await;
    }
}

async fn tamper(cluster: &Cluster, statements: &[&str]) {
    let url = format!("sqlite:{}", cluster.data_dir().join("tianqi.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    for statement in statements {
        connection.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_can_answer_who_did_what_to_an_instance_and_its_owner_cannot_ask() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let alice = account(&cluster, &admin, "alice", "user").await;
    let boss = account(&cluster, &admin, "boss", "admin").await;
    let image = admin.create_image("image", "tianqi/busybox:1").await;
    let spec = admin.create_cpu_spec("spec").await;
    let body = json!({ "name": "train", "image_id": image, "spec_id": spec });

    let id = create_by_cookie(&cluster, "alice", &body).await;
    let other = alice.create_instance("other", &image, &spec).await;
    boss.patch(&format!("/instances/{id}"), &json!({ "remark": "whose is this?" })).await;
    alice.act(&id, "stop").await;
    let refused = cluster.run(&["exec", &id, "--", "true"]);
    assert!(!refused.status.success(), "{refused:?}");
    alice.patch(&format!("/instances/{other}"), &json!({ "name": "another" })).await;
    boss.delete(&format!("/instances/{id}")).await;

    let about = format!("/audit-events?target_kind=instance&target_id={id}");
    let page = admin.get(&about).await;
    let mut rows = page["items"].as_array().unwrap().clone();
    rows.reverse();
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            let verb = row["detail"]["verb"].as_str().unwrap_or_default().to_owned();
            let words = ["actor_name", "via", "action", "outcome"].map(|field| text(row, field));
            let [who, via, action, outcome] = words;
            (who, via, action, verb, outcome)
        })
        .collect();
    let row = |who: &str, via: &str, action: &str, verb: &str, outcome: &str| {
        let own = str::to_owned;
        (own(who), own(via), own(action), own(verb), own(outcome))
    };
    let expected = [
        row("alice", "cookie", "instances:create", "", "done"),
        row("boss", "token", "instances:write", "change", "done"),
        row("alice", "token", "instances:write", "stop", "done"),
        row("local", "local", "local:exec", "", "failed"),
        row("boss", "token", "instances:delete", "delete", "done"),
    ];
    assert_eq!(told, expected, "{page}");
    let remark = json!({ "before": "", "after": "whose is this?" });
    assert_eq!(rows[1]["detail"]["changes"], json!({ "remark": remark }), "{page}");
    assert_eq!(rows[2]["detail"]["changes"]["desired"]["after"], "stopped", "{page}");

    let request = text(&rows[1], "request_id");
    let one = admin.get(&format!("/audit-events?request_id={request}")).await;
    assert_eq!((&one["total"], &one["items"][0]["id"]), (&json!(1), &rows[1]["id"]), "{one}");
    let before = text(&rows[2], "id");
    let older = admin.get(&format!("{about}&before={before}&actor=ALICE")).await;
    assert_eq!(older["total"], 1, "{older}");
    let export = admin.get(&format!("/audit-events/export?target_id={id}&via=token")).await;
    let export = export.as_str().unwrap();
    assert_eq!(export.lines().count(), 1 + 3, "{export}");
    for path in ["/audit-events", "/audit-events/export"] {
        let (status, answer) = alice.try_call(Method::GET, path, None).await;
        assert_eq!((status, &answer["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_a_row_that_was_changed_behind_the_controllers_back() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin().await;
    admin.create_cpu_spec("spec").await;
    let fine = verify_sealed(&cluster).await;
    assert_eq!(fine.status.code(), Some(0), "{fine:?}");
    assert!(printed(&fine).contains("the audit is as it was written"), "{fine:?}");

    cluster.controller().stop();
    let change = "update audit_events set actor_name = 'mallory' where action = 'specs:write'";
    tamper(&cluster, &["drop trigger audit_events_fixed", change]).await;
    cluster.start_controller();

    let found = verify_sealed(&cluster).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let wrong: Vec<_> =
        printed(&found).lines().filter(|it| it.starts_with("WRONG")).map(str::to_owned).collect();
    assert_eq!(wrong.len(), 1, "{found:?}");
    assert!(wrong[0].contains("is not what was written") && wrong[0].contains("specs:write"));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_rows_cut_from_the_end_until_an_admin_accepts_it() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin().await;
    admin.create_cpu_spec("one").await;
    admin.create_cpu_spec("two").await;
    verify_sealed(&cluster).await;

    cluster.controller().stop();
    let last = "(select max(seq) from audit_seals)";
    let row = format!(
        "delete from audit_events where id in (select event_id from audit_seals where seq = {last})"
    );
    let link = format!("delete from audit_seals where seq = {last}");
    tamper(&cluster, &[&row, &link]).await;
    cluster.start_controller();

    let found = verify_sealed(&cluster).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert!(printed(&found).contains("missing from the end of the chain"), "{found:?}");
    let accepted = cluster.run(&["audit", "accept"]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    let fine = verify_sealed(&cluster).await;
    assert_eq!(fine.status.code(), Some(0), "{fine:?}");
    assert!(printed(&fine).contains("missing from the end of the chain"), "{fine:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_a_restored_copy_from_a_cut() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    verify_sealed(&cluster).await;
    let copy = cluster.data_dir().join("copy.db");
    let copy = copy.to_string_lossy();
    assert!(cluster.run(&["backup", &copy]).status.success());
    admin.create_cpu_spec("after-the-copy").await;
    verify_sealed(&cluster).await;

    let restored = cluster.run(&["restore", &copy]);
    assert!(restored.status.success(), "{restored:?}");
    let deadline = Deadline::after(PATIENCE);
    let report = loop {
        let report = cluster.run(&["audit", "verify"]);
        if printed(&report).contains("the database was restored from a copy") {
            break report;
        }
        deadline.pause_async(&format!("the controller is not back: {report:?}")).await;
    };

    assert_eq!(report.status.code(), Some(0), "{report:?}");
    assert!(printed(&report).contains("in the database that it replaced"), "{report:?}");
}
