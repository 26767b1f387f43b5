//! Every operation of the API description, called by those who may not.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::Client;
use tianqi_tests::cluster::Cluster;

/// What anybody may call: logging in, and asking whether the controller lives.
const PUBLIC: &[(&str, &str)] = &[("post", "/session")];

/// An operation of the API description.
struct Operation {
    method: Method,
    /// Under `/api/v1`, with an id that nothing has in place of each parameter.
    path: String,
    template: String,
}

fn operations(cluster: &Cluster) -> Vec<Operation> {
    let output = cluster.run(&["openapi"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let description: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let template = path.strip_prefix("/api/v1").unwrap_or(path).to_owned();
        for name in ["get", "post", "put", "patch", "delete"] {
            if methods.get(name).is_some() && !PUBLIC.contains(&(name, template.as_str())) {
                let method = name.to_uppercase().parse().unwrap();
                found.push(Operation {
                    method,
                    path: filled(&template),
                    template: template.clone(),
                });
            }
        }
    }
    assert!(found.len() > 10, "only {} operations were found", found.len());
    found
}

/// Puts an id that nothing has in place of each `{parameter}`.
fn filled(template: &str) -> String {
    let parts = template.split('/').map(|part| {
        let is_parameter = part.starts_with('{');
        if is_parameter { uuid::Uuid::now_v7().to_string() } else { part.to_owned() }
    });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_past_any_operation() {
    let cluster = Cluster::start();
    let nobody = Client::anonymous(cluster.http());
    let mut wrong = Vec::new();

    for operation in operations(&cluster) {
        let body = (operation.method != Method::GET).then(|| json!({}));
        let (status, answer) =
            nobody.try_call(operation.method.clone(), &operation.path, body.as_ref()).await;
        if status != StatusCode::UNAUTHORIZED {
            wrong.push(format!("{} {}: {status} {answer}", operation.method, operation.template));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_and_wrong_bodies_get_a_problem_with_a_code_and_never_a_fault() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let bodies = [json!({}), json!([]), json!("x"), json!({ "name": "../é 名", "gpu_count": -1 })];
    let mut wrong = Vec::new();

    for operation in operations(&cluster) {
        // Ends the session that the test itself uses.
        if operation.template == "/session" {
            continue;
        }
        for body in &bodies {
            let body = (operation.method != Method::GET).then_some(body);
            let (status, answer) =
                admin.try_call(operation.method.clone(), &operation.path, body).await;
            let has_code = answer["code"].as_str().is_some_and(|code| !code.is_empty());
            if status.is_server_error() || (status.is_client_error() && !has_code) {
                wrong.push(format!(
                    "{} {} {body:?}: {status} {answer}",
                    operation.method, operation.template
                ));
            }
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_ten_megabytes_is_refused() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let body = json!({ "name": "x".repeat(10 * 1024 * 1024) });

    let (status, answer) = admin.try_call(Method::POST, "/instances", Some(&body)).await;

    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}
