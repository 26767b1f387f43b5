//! Partial changes: a field that is left out stays, a field that is null is cleared.

use serde::{Deserialize, Deserializer};

use super::error::{Problem, Result};

/// One field of a `PATCH` body; mark it `#[serde(default)]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// The field is not in the body.
    #[default]
    Leave,
    /// The field is null.
    Clear,
    /// The field has a value.
    Set(T),
}

impl<T> Patch<T> {
    /// Returns the field after the change, for a field that may be empty.
    pub fn over(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Leave => old,
            Self::Clear => None,
            Self::Set(new) => Some(new),
        }
    }

    /// Returns the field after the change, for a field that always has a value.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) when the body says null.
    pub fn over_required(self, field: &str, old: T) -> Result<T> {
        match self {
            Self::Leave => Ok(old),
            Self::Clear => {
                let detail = format!("{field} cannot be null; leave it out to keep it");
                Err(Problem::invalid("bad_field", detail))
            }
            Self::Set(new) => Ok(new),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        remark: Patch<String>,
    }

    #[test]
    fn left_out_null_and_a_value_are_three_things() {
        let read = |text| serde_json::from_str::<Body>(text).unwrap().remark;

        assert_eq!(read("{}"), Patch::Leave);
        assert_eq!(read("{\"remark\":null}"), Patch::Clear);
        assert_eq!(read("{\"remark\":\"a\"}"), Patch::Set("a".to_owned()));
    }

    #[test]
    fn null_clears_what_may_be_empty_and_is_refused_elsewhere() {
        assert_eq!(Patch::Clear.over(Some(1)), None);
        assert_eq!(Patch::Leave.over(Some(1)), Some(1));
        assert_eq!(Patch::Set(2).over_required("x", 1).unwrap(), 2);
        assert_eq!(Patch::Clear.over_required("x", 1).unwrap_err().status, 422);
    }
}
