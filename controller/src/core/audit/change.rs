//! What a change changed: two views of a thing, told apart field by field.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// Fields that every change touches and nobody asks about.
const NOISE: &[&str] = &["updated_at"];
/// A field whose name holds one of these may hold a secret.
const SECRET: &[&str] = &["password", "secret", "sealed", "token", "credential", "private_key"];

/// Returns the fields that differ between two views, as `{"field": {"before": …, "after": …}}`.
///
/// Of a field that may hold a secret it says `"changed"` and no more; its value serves for comparing
/// alone. A yes or no is never a secret.
#[must_use]
pub fn changes<T: Serialize>(before: &T, after: &T) -> Value {
    let (before, after) = (fields(before), fields(after));
    let mut changed = Map::new();
    for name in before.keys().chain(after.keys()) {
        let value = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or(Value::Null);
        let (old, new) = (value(&before), value(&after));
        if old == new || NOISE.contains(&name.as_str()) {
            continue;
        }
        let is_told = !is_secret(name) || (is_plain(&old) && is_plain(&new));
        let told = if is_told { json!({ "before": old, "after": new }) } else { json!("changed") };
        changed.insert(name.trim_start_matches("sealed_").to_owned(), told);
    }
    Value::Object(changed)
}

/// A view that is no object has no fields.
fn fields(view: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(view) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) | Err(_) => Map::new(),
    }
}

fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|word| name.contains(word))
}

fn is_plain(value: &Value) -> bool {
    matches!(value, Value::Bool(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Serialize)]
    struct View {
        name: &'static str,
        remark: Option<&'static str>,
        cores: u32,
        registry_password: Option<&'static str>,
        sealed_docker_tls: Option<Vec<u8>>,
        must_change_password: bool,
        updated_at: i64,
    }

    fn view() -> View {
        View {
            name: "a",
            remark: None,
            cores: 1,
            registry_password: Some("sesame"),
            sealed_docker_tls: None,
            must_change_password: true,
            updated_at: 1,
        }
    }

    #[test]
    fn only_the_fields_that_differ_are_told_with_both_values() {
        let after = View { remark: Some("b"), cores: 2, updated_at: 2, ..view() };

        let told = changes(&view(), &after);

        let expected = json!({
            "remark": { "before": null, "after": "b" },
            "cores": { "before": 1, "after": 2 },
        });
        assert_eq!(told, expected);
        assert_eq!(changes(&view(), &view()), json!({}));
    }

    #[test]
    fn of_secrets_it_is_told_that_they_changed_and_nothing_else() {
        let after = View {
            registry_password: None,
            sealed_docker_tls: Some(vec![7; 9]),
            must_change_password: false,
            ..view()
        };

        let told = changes(&view(), &after);

        let expected = json!({
            "registry_password": "changed",
            "docker_tls": "changed",
            "must_change_password": { "before": true, "after": false },
        });
        assert_eq!(told, expected);
        assert!(!told.to_string().contains("sesame"));
    }

    #[test]
    fn a_secret_that_stays_is_not_mentioned() {
        let told = changes(&view(), &View { name: "b", ..view() });

        assert_eq!(told, json!({ "name": { "before": "a", "after": "b" } }));
    }
}
