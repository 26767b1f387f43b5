//! What a link of the chain is computed over, and how a walk along the links finds what is wrong.
//! Pure: no database, no clock.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::store::{EventRow, LinkRow};

/// Bytes of the chain's key: the block of the hash, so that every bit counts.
pub(super) const KEY_LENGTH: usize = 64;
/// What stands before the first link.
pub(super) const GENESIS: [u8; 32] = [0; 32];

/// The chain's key, ready for use.
#[derive(Clone)]
pub(super) struct ChainKey(Hmac<Sha256>);

impl ChainKey {
    /// Takes the key in.
    pub(super) fn new(bytes: &Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        Self(Hmac::new(&(**bytes).into()))
    }

    /// Returns the code of one link: over the link before, its place, when it was sealed, and every
    /// column of the row.
    pub(super) fn link(&self, before: &[u8], place: Place, row: &EventRow) -> Vec<u8> {
        let texts = [
            &row.actor_name,
            &row.actor_kind,
            &row.action,
            &row.target_kind,
            &row.target_id,
            &row.outcome,
            &row.detail,
            &row.remote_address,
            &row.request_id,
            &row.via,
        ];
        let mut said = Said(self.0.clone());
        said.text(b"link").text(before).number(place.seq).number(place.sealed_at);
        said.text(row.id.as_bytes()).number(row.at).id(row.actor_id);
        for text in texts {
            said.text(text.as_bytes());
        }
        said.code()
    }

    /// Returns the signature of a checkpoint: the last link that was removed, and when.
    pub(super) fn checkpoint(&self, seq: i64, mac: &[u8], made_at: i64) -> Vec<u8> {
        let mut said = Said(self.0.clone());
        said.text(b"checkpoint").number(seq).text(mac).number(made_at);
        said.code()
    }
}

/// Where in the chain, and when it was put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub seq: i64,
    pub sealed_at: i64,
}

/// Lengths go before contents, so that no two rows say the same.
struct Said(Hmac<Sha256>);

impl Said {
    fn text(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn number(&mut self, number: i64) -> &mut Self {
        self.0.update(&number.to_be_bytes());
        self
    }

    fn id(&mut self, id: Option<Uuid>) -> &mut Self {
        self.text(id.as_ref().map_or(&[][..], |id| id.as_bytes().as_slice()))
    }

    fn code(self) -> Vec<u8> {
        self.0.finalize().into_bytes().to_vec()
    }
}

/// What is wrong with the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Links and, as far as anybody can tell, their rows are gone; `from` to `to`, both included.
    Missing { from: i64, to: i64 },
    /// A row is gone, its link is there.
    RowMissing { seq: i64, id: Uuid },
    /// A row is not what was sealed, or its link is not.
    Changed { seq: i64, id: Uuid, at: i64, action: String },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { from, to } => {
                let rows = super::chain::rows(*from, *to);
                write!(f, "{rows} missing; what row {} says cannot be proven", to + 1)
            }
            Self::RowMissing { seq, id } => write!(f, "row {seq} is missing (id {id})"),
            Self::Changed { seq, id, at, action } => {
                let at = super::verify::time(*at);
                write!(f, "row {seq} is not what was written (id {id}, {action} at {at})")
            }
        }
    }
}

/// A walk along the chain, link by link.
pub(super) struct Walk<'k> {
    key: &'k ChainKey,
    seq: i64,
    /// Codes that the link before may have; none after a gap. A link that was changed has two: what
    /// stands there, and what should. The next link tells which of them it was made on, so that one
    /// changed link is not taken for two.
    before: Vec<Vec<u8>>,
}

impl<'k> Walk<'k> {
    /// Begins after the link `seq`, whose code is `mac`.
    pub(super) fn after(key: &'k ChainKey, seq: i64, mac: Vec<u8>) -> Self {
        Self { key, seq, before: vec![mac] }
    }

    /// Goes on to the next link and returns what is wrong there.
    pub(super) fn step(&mut self, link: &LinkRow) -> Vec<Fault> {
        let mut faults = Vec::new();
        if link.seq > self.seq + 1 {
            faults.push(Fault::Missing { from: self.seq + 1, to: link.seq - 1 });
            self.before.clear();
        }
        let place = Place { seq: link.seq, sealed_at: link.sealed_at };
        let mut next = vec![link.mac.clone()];
        match link.event() {
            None => faults.push(Fault::RowMissing { seq: link.seq, id: link.event_id }),
            Some(row) => {
                let codes: Vec<_> =
                    self.before.iter().map(|before| self.key.link(before, place, &row)).collect();
                let is_right = codes.contains(&link.mac);
                if !is_right && !codes.is_empty() {
                    let (id, at, action) = (link.event_id, row.at, row.action);
                    faults.push(Fault::Changed { seq: link.seq, id, at, action });
                    next.extend(codes);
                }
            }
        }
        self.seq = link.seq;
        self.before = next;
        faults
    }

    /// Returns the number of the last link that was passed.
    pub(super) fn seq(&self) -> i64 {
        self.seq
    }
}
