//! The secret by which a page comes back to its terminal.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::core::secret::{Secret, token_hash};

/// 32 random bytes as text. It is good for one return and never stored, only its hash is.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Ticket(Secret);

impl Ticket {
    /// Makes another one.
    pub(super) fn random() -> Self {
        let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
        rand::rng().fill_bytes(bytes.as_mut());
        Self(Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
    }

    /// Returns what is stored of it.
    pub(super) fn hash(&self) -> Vec<u8> {
        token_hash(self.0.expose())
    }
}

impl Serialize for Ticket {
    /// Only the frame that hands it to its page is ever written.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash()
    }
}

impl Eq for Ticket {}

#[cfg(test)]
impl From<&str> for Ticket {
    fn from(text: &str) -> Self {
        Self(Secret::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_256_random_bits_and_is_not_printed() {
        let (one, two) = (Ticket::random(), Ticket::random());
        let text = serde_json::to_string(&one).unwrap();

        assert_ne!(one, two);
        assert_eq!(text.len(), 43 + 2, "32 bytes in base64");
        assert!(!format!("{one:?}").contains(&text[1..10]));
    }
}
