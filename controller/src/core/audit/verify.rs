//! Whether the audit is what was written: row by row, and its two ends.

use tianqi_common::clock::UnixMillis;

use super::chain::{Chain, ChainError, Look, PAGE, disagreement};
use super::head::Read;
use super::mac::{ChainKey, GENESIS, Walk};
use super::store::{self, CheckpointRow};
use crate::core::timestamp::Timestamp;

/// Faults that are told one by one; of more, how many there are.
const TOLD: usize = 50;
/// How often a walk that retention overtook begins again.
const ATTEMPTS: u32 = 5;

/// What verifying found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether nothing is wrong.
    pub is_fine: bool,
    /// The same for people, in lines.
    pub text: String,
}

/// What a walk found.
#[derive(Default)]
struct Found {
    rows: i64,
    first: Option<(i64, i64)>,
    last: Option<(i64, i64)>,
    faults: Vec<String>,
}

impl Chain {
    /// Checks every link and its row, both ends of the chain, and that no row stands beside it.
    /// Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ChainError`] when it cannot be read; that is not a finding.
    pub async fn verify(&self) -> Result<Report, ChainError> {
        // The head is read first: the chain may grow meanwhile, and then it is longer than the head.
        let head = self.head.read()?;
        let last = store::last(&self.db).await?;
        let seen = self.seen(&head, last.as_ref()).await?;
        if seen.seq == 0 && head == Read::Absent {
            return self.empty().await;
        }
        let key = self.key(true).await?;
        let mut attempt = 0;
        let (checkpoint, mut found) = loop {
            let checkpoint = store::checkpoint(&self.db).await?;
            let found = walk(self, &key, checkpoint.as_ref()).await?;
            attempt += 1;
            if store::checkpoint(&self.db).await? == checkpoint || attempt == ATTEMPTS {
                break (checkpoint, found);
            }
        };
        let mut notes = Vec::new();
        if let Read::Head(head) = &head {
            for incident in &head.incidents {
                let told = format!("{}: {}", time(incident.at), incident.what);
                if incident.is_fault { found.faults.push(told) } else { notes.push(told) }
            }
            if head.is_restoring {
                notes.push("a restore is on its way".to_owned());
            }
        }
        let is_restoring = matches!(&head, Read::Head(head) if head.is_restoring);
        found.faults.extend(disagreement(&head, &seen).filter(|_| !is_restoring));
        let is_whole = !matches!(&head, Read::Head(head) if !head.is_whole);
        let since = self.since(last.as_ref(), Look::Full).filter(|_| is_whole).unwrap_or(i64::MIN);
        for row in store::unsealed_before(&self.db, since, TOLD).await? {
            let (id, action, at) = (row.id, &row.action, time(row.at));
            found.faults.push(format!("a row was slipped in (id {id}, {action} at {at})"));
        }
        let unsealed = store::count_unsealed(&self.db, since).await?;
        Ok(report(&found, checkpoint.as_ref(), &notes, unsealed))
    }

    async fn empty(&self) -> Result<Report, ChainError> {
        let unsealed = store::count_unsealed(&self.db, i64::MIN).await?;
        Ok(report(&Found::default(), None, &[], unsealed))
    }
}

async fn walk(
    chain: &Chain,
    key: &ChainKey,
    checkpoint: Option<&CheckpointRow>,
) -> Result<Found, ChainError> {
    let mut found = Found::default();
    let (seq, mac) = match checkpoint {
        Some(it) => {
            if key.checkpoint(it.seq, &it.mac, it.made_at) != it.signature {
                let fault = format!("the checkpoint at row {} is not the controller's own", it.seq);
                found.faults.push(fault);
            }
            (it.seq, it.mac.clone())
        }
        None => (0, GENESIS.to_vec()),
    };
    let mut walk = Walk::after(key, seq, mac);
    loop {
        let links = store::links_after(&chain.db, walk.seq(), PAGE).await?;
        for link in &links {
            let faults = walk.step(link);
            found.faults.extend(faults.iter().map(ToString::to_string));
            let place = (link.seq, link.at.unwrap_or(link.sealed_at));
            found.first.get_or_insert(place);
            found.last = Some(place);
            found.rows += 1;
        }
        if links.len() < PAGE {
            return Ok(found);
        }
    }
}

fn report(
    found: &Found,
    checkpoint: Option<&CheckpointRow>,
    notes: &[String],
    unsealed: i64,
) -> Report {
    let mut lines = vec![format!("{} rows checked", found.rows)];
    if let (Some((first, from)), Some((last, to))) = (found.first, found.last) {
        let (from, to) = (time(from), time(to));
        lines.push(format!("from row {first} of {from} to row {last} of {to}"));
    }
    if let Some(it) = checkpoint {
        let (seq, at) = (it.seq, time(it.made_at));
        lines.push(format!("checkpoint: retention removed the rows up to {seq}, last on {at}"));
    }
    if unsealed > 0 {
        lines.push(format!("{unsealed} newest rows are not sealed yet and were not checked"));
    }
    lines.extend(notes.iter().map(|note| format!("note: {note}")));
    lines.extend(found.faults.iter().take(TOLD).map(|fault| format!("WRONG: {fault}")));
    if found.faults.len() > TOLD {
        lines.push(format!("WRONG: and {} more", found.faults.len() - TOLD));
    }
    let is_fine = found.faults.is_empty();
    let verdict = if is_fine { "the audit is as it was written" } else { "the audit is not whole" };
    lines.push(verdict.to_owned());
    Report { is_fine, text: lines.join("\n") }
}

/// Writes a time as the API does.
pub(super) fn time(ms: i64) -> String {
    Timestamp::from(UnixMillis(ms)).to_string()
}
