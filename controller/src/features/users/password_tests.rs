//! Guessing passwords through the API, and what stands in its way.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::authz::challenge::{Challenge, solve};
use crate::authz::password::Hasher;
use crate::config::Passwords;
use crate::core::db::args;
use crate::core::secret::Secret;
use crate::testing::{Answer, Api, CHEAP, PASSWORD};

/// Longer than failures are remembered.
const QUIET: Duration = Duration::from_mins(16);

async fn log_in(api: &Api, name: &str, password: &str, solution: Option<Value>) -> Answer {
    let mut body = json!({ "username": name, "password": password, "mode": "token" });
    if let Some(solution) = solution {
        body["challenge_solution"] = solution;
    }
    api.call("", "POST", "/session", Some(body)).await
}

async fn try_login(api: &Api, name: &str, password: &str) -> Answer {
    log_in(api, name, password, None).await
}

/// Solves the challenge that came with a refusal.
fn solved(refusal: &Answer) -> Value {
    assert_eq!((refusal.code(), refusal.problem()), (403, "challenge_required"), "{refusal:?}");
    let challenge: Challenge =
        serde_json::from_value(refusal.body["data"]["challenge"].clone()).unwrap();
    serde_json::to_value(solve(&challenge).unwrap()).unwrap()
}

#[tokio::test]
async fn unknown_and_disabled_accounts_and_wrong_passwords_are_told_apart_by_nothing() {
    let api = Api::sqlite().await;
    for name in ["alice", "gone"] {
        api.person(name, RoleName::USER).await;
    }
    let disable = "update users set disabled = $1 where name = $2";
    api.ctx.db.run(disable, args![true, "gone"]).await.unwrap();

    for (name, password) in [
        ("alice", "wrong"),
        ("nobody", PASSWORD),
        ("gone", "wrong"),
        ("../x", PASSWORD),
        ("", ""),
        ("alice", ""),
    ] {
        let runs = api.ctx.authz.hasher.runs();
        let answer = try_login(&api, name, password).await;
        assert_eq!((answer.code(), answer.problem()), (401, "wrong_credentials"), "{name}");
        assert_eq!(answer.text("/detail"), "the name or the password is wrong");
        assert_eq!(api.ctx.authz.hasher.runs() - runs, 1, "{name}: another number of hashes");
    }
    let refused = "select count(*) from audit_events where action = 'session:login' \
         and outcome = 'refused'";
    assert_eq!(api.ctx.db.number(refused, args![]).await.unwrap(), 6);
    assert_eq!(try_login(&api, "gone", PASSWORD).await.problem(), "account_disabled");
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "how long a login takes is measured by the real clock"
)]
async fn a_login_to_an_unknown_account_takes_about_as_long_as_to_a_known_one() {
    let mut api = Api::sqlite().await;
    // The cost matters here: it must stand out of everything else that a login does.
    api.ctx.authz.hasher = Hasher::new(&Passwords { challenge_tries: 4, ..Passwords::default() });
    api.serve();
    api.person("alice", RoleName::USER).await;
    let mut times = [Vec::new(), Vec::new()];

    for _ in 0..7 {
        for (name, times) in ["alice", "nobody"].iter().zip(&mut times) {
            api.clock.advance(QUIET);
            let began = Instant::now();
            assert_eq!(try_login(&api, name, "wrong").await.code(), 401);
            times.push(began.elapsed());
        }
    }

    let [known, unknown] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    assert!(known < unknown * 3 && unknown < known * 3, "{known:?} and {unknown:?}");
}

#[tokio::test]
async fn guessing_is_slowed_down_and_time_heals_it() {
    let api = Api::sqlite().await;
    api.person("alice", RoleName::USER).await;
    api.person("bob", RoleName::USER).await;
    for _ in 0..3 {
        assert_eq!(try_login(&api, "alice", "wrong").await.code(), 401);
    }
    for _ in 3..5 {
        let solution = solved(&try_login(&api, "alice", "wrong").await);
        assert_eq!(log_in(&api, "alice", "wrong", Some(solution)).await.code(), 401);
    }

    let refused = try_login(&api, "alice", PASSWORD).await;
    assert_eq!((refused.code(), refused.problem()), (429, "too_many_attempts"));
    assert_eq!(refused.body["data"]["retry_after_seconds"], 1);
    assert_eq!(try_login(&api, "bob", PASSWORD).await.code(), 201, "a bystander is locked out");

    api.clock.advance(Duration::from_secs(1));
    let solution = solved(&try_login(&api, "alice", PASSWORD).await);
    assert_eq!(log_in(&api, "alice", PASSWORD, Some(solution)).await.code(), 201);
    assert_eq!(try_login(&api, "alice", "wrong").await.code(), 401, "the count did not start anew");
}

#[tokio::test]
async fn a_challenge_is_asked_of_unknown_accounts_too_and_each_solution_serves_once() {
    let api = Api::sqlite().await;
    api.person("alice", RoleName::USER).await;
    for name in ["alice", "nobody"] {
        for _ in 0..3 {
            assert_eq!(try_login(&api, name, "wrong").await.code(), 401);
        }
        let solution = solved(&try_login(&api, name, "wrong").await);

        let mut wrong = solution.clone();
        wrong["number"] = json!(solution["number"].as_u64().unwrap() + 1);
        let refused = log_in(&api, name, "wrong", Some(wrong)).await;
        assert_eq!(refused.problem(), "challenge_required", "a wrong solution was taken");
        let used = log_in(&api, name, "wrong", Some(solution.clone())).await;
        assert_eq!(used.code(), 401, "{used:?}");
        let again = log_in(&api, name, PASSWORD, Some(solution)).await;
        assert_eq!(again.problem(), "challenge_required", "a solution served twice");
        assert!(again.text("/detail").contains("used before"), "{again:?}");

        let late = solved(&again);
        api.clock.advance(Duration::from_mins(5));
        let late = log_in(&api, name, PASSWORD, Some(late)).await;
        assert!(late.text("/detail").contains("too old"), "{late:?}");
    }
}

#[tokio::test]
async fn an_address_that_fails_with_many_names_is_challenged_for_every_name() {
    let api = Api::sqlite().await;
    api.person("alice", RoleName::USER).await;
    for i in 0..10 {
        assert_eq!(try_login(&api, &format!("guess-{i}"), "wrong").await.code(), 401);
    }

    let solution = solved(&try_login(&api, "alice", PASSWORD).await);
    assert_eq!(log_in(&api, "alice", PASSWORD, Some(solution)).await.code(), 201);
    api.clock.advance(QUIET);
    assert_eq!(try_login(&api, "alice", PASSWORD).await.code(), 201);
}

#[tokio::test]
async fn a_password_that_is_reset_while_it_is_compared_lets_nobody_in() {
    for mut api in Api::engines().await {
        // Dear enough that the reset is done before the comparison is.
        let dear = Passwords { argon2_iterations: 40, argon2_memory_kib: 19_456, ..CHEAP };
        api.person("alice", RoleName::USER).await;
        let (cheap, dear) = (api.ctx.authz.hasher.clone(), Hasher::new(&dear));
        let hash = dear.hash(&Secret::new(PASSWORD.to_owned())).await.unwrap();
        let set = "update users set password_hash = $1";
        api.ctx.db.run(set, args![hash]).await.unwrap();
        api.ctx.authz.hasher = cheap;
        api.serve();
        let runs = api.ctx.authz.hasher.runs();

        let reset = async {
            while api.ctx.authz.hasher.runs() == runs {
                tokio::task::yield_now().await;
            }
            let changed = "update users set password_hash = 'other', updated_at = updated_at + 1";
            api.ctx.db.run(changed, args![]).await.unwrap();
        };
        let (answer, ()) = tokio::join!(try_login(&api, "alice", PASSWORD), reset);

        assert_eq!((answer.code(), answer.problem()), (409, "account_changed"), "{answer:?}");
        let sessions = "select count(*) from sessions";
        assert_eq!(api.ctx.db.number(sessions, args![]).await.unwrap(), 1, "only the first");
    }
}

#[tokio::test]
async fn a_login_renews_a_hash_of_another_cost() {
    for mut api in Api::engines().await {
        api.person("alice", RoleName::USER).await;
        let count = async |api: &Api, pattern: &str| {
            let sql = "select count(*) from users where password_hash like $1";
            api.ctx.db.number(sql, args![pattern]).await.unwrap()
        };
        assert_eq!(count(&api, "%m=1024,t=1,p=1%").await, 1);

        api.ctx.authz.hasher = Hasher::new(&Passwords { argon2_iterations: 2, ..CHEAP });
        api.serve();
        assert_eq!(try_login(&api, "alice", "wrong").await.code(), 401);
        assert_eq!(count(&api, "%t=2%").await, 0, "a wrong password renewed the hash");
        assert_eq!(try_login(&api, "alice", PASSWORD).await.code(), 201);

        assert_eq!(count(&api, "%m=1024,t=2,p=1%").await, 1);
        assert_eq!(try_login(&api, "alice", PASSWORD).await.code(), 201);
    }
}

#[tokio::test]
async fn common_passwords_and_the_accounts_name_are_refused_wherever_one_is_set() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    let alice = api.person("alice", RoleName::USER).await;
    let id = api.call(&alice, "GET", "/session", None).await.text("/user/id").to_owned();

    for weak in ["password123", "qwertyuiop", "my name is Alice", "too short"] {
        let create = json!({ "name": "alice", "password": weak });
        let created = api.call(&admin, "POST", "/users", Some(create)).await;
        assert_eq!((created.code(), created.problem()), (422, "weak_password"), "{weak}");
        let reset = Some(json!({ "password": weak }));
        let reset = api.call(&admin, "PUT", &format!("/users/{id}/password"), reset).await;
        assert_eq!((reset.code(), reset.problem()), (422, "weak_password"), "{weak}");
        let change = json!({ "current_password": PASSWORD, "new_password": weak });
        let changed = api.call(&alice, "PUT", "/me/password", Some(change)).await;
        assert_eq!((changed.code(), changed.problem()), (422, "weak_password"), "{weak}");
        assert!(!changed.text("/detail").is_empty());
    }
}
