//! Names that people give, parsed once at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest instance name, in characters.
pub const INSTANCE_NAME_MAX: usize = 50;
/// Longest account name, in characters.
pub const USER_NAME_MAX: usize = 32;

/// Why a name was refused. The message says what to type instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty; give 1 to {max} characters")]
    Empty {
        /// Most characters allowed.
        max: usize,
    },
    /// Too many characters.
    #[error("the name has {length} characters; at most {max} are allowed")]
    TooLong {
        /// Characters given.
        length: usize,
        /// Most characters allowed.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("the name holds {found:?}; only {allowed} are allowed")]
    BadCharacter {
        /// The first such character.
        found: char,
        /// The allowed set, in words.
        allowed: &'static str,
    },
}

/// The name of an instance: letters, digits, `-` and `_`, 1 to 50, ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// The name of an account: small letters, digits, `-`, `_` and `.`, 2 to 32, beginning with a letter.
///
/// It holds no `+`, because `owner+instance@host` is how SSH names an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl InstanceName {
    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`NameError`] with what to type instead.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        check(text, INSTANCE_NAME_MAX, allowed, "letters a-z A-Z, digits, '-' and '_'")?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the name as given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl UserName {
    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`NameError`] with what to type instead.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const ALLOWED: &str = "small letters a-z (first), digits, '-', '_' and '.'";
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        check(text, USER_NAME_MAX, allowed, ALLOWED)?;
        match text.chars().next() {
            Some(first) if first.is_ascii_lowercase() => Ok(Self(text.to_owned())),
            Some(found) => Err(NameError::BadCharacter { found, allowed: ALLOWED }),
            None => Err(NameError::Empty { max: USER_NAME_MAX }),
        }
    }

    /// Returns the name as given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(
    text: &str,
    max: usize,
    is_allowed: impl Fn(char) -> bool,
    allowed: &'static str,
) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { max });
    }
    let length = text.chars().count();
    if length > max {
        return Err(NameError::TooLong { length, max });
    }
    match text.chars().find(|c| !is_allowed(*c)) {
        Some(found) => Err(NameError::BadCharacter { found, allowed }),
        None => Ok(()),
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_conversions!(InstanceName);
text_conversions!(UserName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_name_accepts_the_whole_allowed_set() {
        assert!(InstanceName::parse("Train_7-b").is_ok());
        assert!(InstanceName::parse(&"a".repeat(50)).is_ok());
    }

    #[test]
    fn instance_name_refuses_what_could_be_a_path_or_another_script() {
        for bad in ["", "../x", "a b", "训练", "a/b", "a\0", "a+b"] {
            assert!(InstanceName::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(
            InstanceName::parse(&"a".repeat(51)),
            Err(NameError::TooLong { length: 51, max: 50 })
        );
    }

    #[test]
    fn user_name_begins_with_a_small_letter_and_holds_no_plus() {
        assert!(UserName::parse("alice.b-2_c").is_ok());
        for bad in ["1alice", "Alice", "a+b", "", "-a"] {
            assert!(UserName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
