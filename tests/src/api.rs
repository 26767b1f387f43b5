//! What the API description says there is.

use reqwest::Method;
use serde_json::Value;

use crate::cluster::Cluster;

/// An operation of the API description.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// In small letters, as in the description: `post`.
    pub method: String,
    /// Under `/api/v1`, with its parameters in braces: `/instances/{id}/start`.
    pub template: String,
}

impl Operation {
    /// Returns the method as a request takes it.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method.to_uppercase().parse().expect("a method")
    }

    /// Returns the path with `id` in place of `{id}`, and ids that nothing has in place of other
    /// parameters.
    #[must_use]
    pub fn path(&self, id: &str) -> String {
        let parts = self.template.split('/').map(|part| match part {
            "{id}" => id.to_owned(),
            other if other.starts_with('{') => uuid::Uuid::now_v7().to_string(),
            other => other.to_owned(),
        });
        parts.collect::<Vec<_>>().join("/")
    }
}

/// Returns every operation that the controller describes.
#[must_use]
pub fn operations(cluster: &Cluster) -> Vec<Operation> {
    let output = cluster.run(&["openapi"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let description: Value = serde_json::from_slice(&output.stdout).expect("a description");
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        let template = path.strip_prefix("/api/v1").unwrap_or(path).to_owned();
        for method in ["get", "post", "put", "patch", "delete"] {
            if methods.get(method).is_some() {
                found.push(Operation { method: method.to_owned(), template: template.clone() });
            }
        }
    }
    assert!(found.len() > 40, "only {} operations were found", found.len());
    found
}
