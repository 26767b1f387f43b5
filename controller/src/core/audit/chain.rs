//! THE sealer: links committed rows one after the other, and removes old ones from the front.
//!
//! It runs beside the requests, after their commits, and decides the order by itself: a row that was
//! committed late takes the next place like any other. Rows that nobody linked within [`LATE`] of
//! their time are never linked: whoever slips a row into the past is found.
//!
//! Whoever can write to the database can add a row for the present moment, which the sealer cannot
//! tell from one of the controller's own. What it prevents is changing what was said before.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tianqi_common::clock::{SharedClock, UnixMillis};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::head::{Head, HeadFile, Read};
use super::mac::{ChainKey, GENESIS, KEY_LENGTH, Place, Walk};
use super::store::{self, CheckpointRow, LastRow, LinkRow, NewLink};
use super::{Doer, Entry, Outcome, record_alone};
use crate::core::db::{Db, DbError};
use crate::core::epoch;
use crate::core::error;
use crate::core::event::Events;
use crate::core::seal::rotate::SealedColumn;
use crate::core::seal::{Seal, SealError};

/// How long after its time a row may be committed: longer than any transaction lasts.
const LATE: Duration = Duration::from_hours(1);
/// How far a look for new rows goes back; every [`FULL_LOOK`] it goes back by [`LATE`].
const RECENT: Duration = Duration::from_mins(2);
const FULL_LOOK: Duration = Duration::from_mins(1);
/// How long the sealer waits when nothing happens, and how long it lets rows gather when something
/// does.
const IDLE: Duration = Duration::from_secs(5);
const GATHER: Duration = Duration::from_millis(500);
/// Rows that are linked by one statement.
const BATCH: usize = 500;
/// Links that are read, or removed, at once.
pub(super) const PAGE: usize = 1_000;
/// The one row of `audit_keys`.
const KEY: Uuid = Uuid::from_u128(1);
const DAY: Duration = Duration::from_hours(24);

/// Why the chain could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The database refused.
    #[error("the audit cannot be read or written")]
    Db(#[from] DbError),
    /// The key does not open.
    #[error("the key of the audit's chain cannot be used")]
    Seal(#[from] SealError),
    /// There is a chain and no key.
    #[error("the key of the audit's chain is gone from audit_keys; put that row back")]
    KeyGone,
    /// The file with the chain's end cannot be used.
    #[error("the file with the end of the audit's chain cannot be used")]
    Head(#[from] io::Error),
    /// The process ends.
    #[error("the controller is ending")]
    Ending,
}

/// How far a look for new rows goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Minutes.
    Recent,
    /// As long as a row may be late.
    Full,
}

/// The chain of the audit. Cheap to clone; one clone works at a time.
#[derive(Clone, Debug)]
pub struct Chain {
    pub(super) db: Db,
    seal: Arc<Seal>,
    clock: Time,
    pub(super) head: HeadFile,
    turn: Arc<Semaphore>,
}

#[derive(Clone)]
struct Time(SharedClock);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}

impl Chain {
    /// Puts it together; nothing is read before it is used.
    #[must_use]
    pub fn new(db: Db, seal: Arc<Seal>, clock: SharedClock, data_dir: &Path) -> Self {
        let head = HeadFile::inside(data_dir);
        Self { db, seal, clock: Time(clock), head, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Links rows as they come, until `cancel`.
    pub async fn run(self, events: Events, cancel: CancellationToken) {
        let mut heard = events.listen();
        let (mut looked, mut is_failing) = (None::<Duration>, false);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = heard.recv() => {}
                () = tokio::time::sleep(IDLE) => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(GATHER) => {}
            }
            heard = events.listen();
            let now = self.clock.0.monotonic();
            let is_due = looked.is_none_or(|at| now.saturating_sub(at) >= FULL_LOOK);
            let look = if is_due { Look::Full } else { Look::Recent };
            match self.seal(look).await {
                Ok(_) => (is_failing, looked) = (false, if is_due { Some(now) } else { looked }),
                Err(error) if is_failing => {
                    tracing::debug!(error = %error::Chain(&error), "the audit is still not sealed");
                }
                Err(error) => {
                    is_failing = true;
                    tracing::error!(error = %error::Chain(&error), "the audit cannot be sealed for now");
                }
            }
        }
    }

    /// Links every committed row that has no link yet and returns how many there were.
    ///
    /// # Errors
    ///
    /// [`ChainError`]; the rows stay and are linked the next time.
    pub async fn seal(&self, look: Look) -> Result<u64, ChainError> {
        let _turn = self.turn().await?;
        let last = store::last(&self.db).await?;
        let mut head = self.settled(last.as_ref()).await?;
        let key = self.key(head.seq > 0).await?;
        let since = if head.is_whole { self.since(last.as_ref(), look) } else { None };
        let mut sealed = 0;
        loop {
            let rows = store::unsealed(&self.db, since, BATCH).await?;
            let sealed_at = self.now().0;
            let mut mac = hex::decode(&head.mac).unwrap_or_else(|_| GENESIS.to_vec());
            let mut links = Vec::with_capacity(rows.len());
            for row in &rows {
                head.seq += 1;
                mac = key.link(&mac, Place { seq: head.seq, sealed_at }, row);
                links.push(NewLink {
                    seq: head.seq,
                    event_id: row.id,
                    sealed_at,
                    mac: mac.clone(),
                });
            }
            if links.is_empty() && head.is_whole {
                return Ok(sealed);
            }
            if !links.is_empty() {
                store::insert_links(&self.db, &links).await?;
                store::make_durable(&self.db).await?;
            }
            head.mac = hex::encode(&mac);
            head.is_whole |= rows.len() < BATCH;
            self.head.write(&head)?;
            sealed += rows.len() as u64;
            if rows.len() < BATCH {
                return Ok(sealed);
            }
        }
    }

    /// Compares the end of the chain with what is known of it outside the database, and returns the
    /// head to go on from. What does not agree is written down outside before the chain grows over
    /// it.
    async fn settled(&self, last: Option<&LastRow>) -> Result<Head, ChainError> {
        let (read, now) = (self.head.read()?, self.now());
        let seen = self.seen(&read, last).await?;
        let mut head = match read.clone() {
            Read::Head(head) => head,
            Read::Absent | Read::Unreadable => Head::default(),
        };
        let incident = if head.is_restoring {
            let what = restored(head.seq, seen.seq);
            self.record_restore(&what).await?;
            tracing::warn!("{what}");
            head.note(now.0, what, false);
            true
        } else if let Some(what) = disagreement(&read, &seen) {
            tracing::error!("audit: {what}; run tianqi-controller audit verify");
            head.note(now.0, what, true);
            true
        } else {
            false
        };
        let is_first = seen.seq == 0;
        if incident {
            head.is_whole = !is_first;
        }
        head =
            Head { epoch: seen.epoch, seq: seen.seq, mac: seen.mac, is_restoring: false, ..head };
        // The file is there before the first link is: a chain without one has lost it.
        if incident || read == Read::Absent {
            self.head.write(&head)?;
        }
        Ok(head)
    }

    /// Reads what the database says of the chain's end.
    pub(super) async fn seen(
        &self,
        read: &Read,
        last: Option<&LastRow>,
    ) -> Result<Seen, ChainError> {
        let epoch = epoch::current(&self.db).await?;
        let (seq, mac) = match last {
            Some(last) => (last.seq, last.mac.clone()),
            None => match store::checkpoint(&self.db).await? {
                Some(checkpoint) => (checkpoint.seq, checkpoint.mac),
                None => (0, GENESIS.to_vec()),
            },
        };
        let at_head = match read {
            Read::Head(head) if head.seq == seq => Some(mac.clone()),
            Read::Head(head) => store::mac_at(&self.db, head.seq).await?,
            Read::Absent | Read::Unreadable => None,
        };
        let at_head = at_head.map(hex::encode);
        Ok(Seen { epoch, seq, mac: hex::encode(mac), at_head })
    }

    async fn record_restore(&self, what: &str) -> Result<(), DbError> {
        let entry = Entry {
            doer: &Doer::local(),
            action: "local:restored",
            target_kind: "database",
            target_id: String::new(),
            outcome: Outcome::Done,
            detail: serde_json::json!({ "chain": what }),
        };
        record_alone(&self.db, self.now(), &entry).await
    }

    /// Removes links, and their rows, that were written more than `days` ago, from the front of the
    /// chain, and returns how many. The newest link always stays, so that the chain goes on.
    ///
    /// A row that is not what was written is noted outside the database before it goes.
    ///
    /// # Errors
    ///
    /// [`ChainError`]; what was not removed is removed the next time.
    pub async fn forget_old(&self, days: u32) -> Result<u64, ChainError> {
        if days == 0 {
            return Ok(0);
        }
        let _turn = self.turn().await?;
        let limit = before(self.now(), DAY.saturating_mul(days));
        let mut removed = 0;
        loop {
            let Read::Head(mut head) = self.head.read()? else { return Ok(removed) };
            let key = self.key(true).await?;
            let (seq, mac) = match store::checkpoint(&self.db).await? {
                Some(checkpoint) => (checkpoint.seq, checkpoint.mac),
                None => (0, GENESIS.to_vec()),
            };
            let links = store::links_after(&self.db, seq, PAGE).await?;
            let is_old =
                |link: &&LinkRow| link.at.unwrap_or(link.sealed_at) < limit && link.seq < head.seq;
            let old: Vec<_> = links.iter().take_while(is_old).collect();
            let Some(newest) = old.last() else { return Ok(removed) };
            let mut walk = Walk::after(&key, seq, mac);
            let faults: Vec<_> = old.iter().flat_map(|link| walk.step(link)).collect();
            for fault in &faults {
                tracing::error!("audit: {fault}; retention removed it");
                head.note(self.now().0, format!("{fault}; retention removed it"), true);
            }
            if !faults.is_empty() {
                self.head.write(&head)?;
            }
            let made_at = self.now().0;
            let signature = key.checkpoint(newest.seq, &newest.mac, made_at);
            let checkpoint =
                CheckpointRow { seq: newest.seq, mac: newest.mac.clone(), made_at, signature };
            let mut tx = self.db.begin().await?;
            store::remove_front(&mut tx, checkpoint).await?;
            tx.commit().await?;
            removed += old.len() as u64;
        }
    }

    /// Says that an admin has looked at what happened to the chain: it stays written down, and is a
    /// fault no longer. Returns what it was.
    ///
    /// # Errors
    ///
    /// [`ChainError`].
    pub async fn accept(&self, doer: &Doer) -> Result<Vec<String>, ChainError> {
        let _turn = self.turn().await?;
        // What the sealer has not come across yet is accepted too.
        let mut head = self.settled(store::last(&self.db).await?.as_ref()).await?;
        let mut accepted = Vec::new();
        for incident in head.incidents.iter_mut().filter(|it| it.is_fault) {
            incident.is_fault = false;
            accepted.push(incident.what.clone());
        }
        if accepted.is_empty() {
            return Ok(accepted);
        }
        let entry = Entry {
            doer,
            action: "local:audit_accept",
            target_kind: "audit",
            target_id: String::new(),
            outcome: Outcome::Done,
            detail: serde_json::json!({ "accepted": accepted }),
        };
        record_alone(&self.db, self.now(), &entry).await?;
        self.head.write(&head)?;
        Ok(accepted)
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, ChainError> {
        self.turn.acquire().await.map_err(|_| ChainError::Ending)
    }

    /// Opens the key, or makes it where no chain has begun.
    pub(super) async fn key(&self, has_begun: bool) -> Result<ChainKey, ChainError> {
        if let Some(sealed) = store::sealed_key(&self.db, KEY).await? {
            let opened = self.seal.open(&bound_to(KEY), &sealed)?;
            let bytes = <[u8; KEY_LENGTH]>::try_from(opened.as_slice());
            let bytes = Zeroizing::new(bytes.map_err(|_| SealError::Broken)?);
            return Ok(ChainKey::new(&bytes));
        }
        if has_begun {
            return Err(ChainError::KeyGone);
        }
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        rand::rng().fill_bytes(bytes.as_mut());
        // A rotation of the master key waits until the key of the chain is stored.
        let _held = self.seal.hold();
        let sealed = self.seal.seal(&bound_to(KEY), bytes.as_ref())?;
        store::insert_key(&self.db, KEY, sealed, self.now().0).await?;
        Ok(ChainKey::new(&bytes))
    }

    /// Returns from when on a row without a link is new; nothing while the chain is empty. The time
    /// of the last link counts: what was written before it and is not in it by now came too late.
    pub(super) fn since(&self, last: Option<&LastRow>, look: Look) -> Option<i64> {
        let by = match look {
            Look::Recent => RECENT,
            Look::Full => LATE,
        };
        // A clock that was ahead and was put right must not make today's rows look late.
        last.map(|last| before(UnixMillis(last.sealed_at.min(self.now().0)), by))
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.clock.0.now()
    }
}

/// The chain's key.
pub const SEALED: SealedColumn =
    SealedColumn { table: "audit_keys", column: "sealed_key", bound_to };

/// The row that the key is bound to.
fn bound_to(id: Uuid) -> String {
    format!("audit_keys/{id}")
}

fn before(now: UnixMillis, by: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
}

/// What the database says of the chain's end.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub epoch: u64,
    /// The last link.
    pub seq: i64,
    /// Its code.
    pub mac: String,
    /// The code of the link that the head outside the database names.
    pub at_head: Option<String>,
}

/// Returns in which way the database does not end where the head outside of it says.
pub(super) fn disagreement(read: &Read, seen: &Seen) -> Option<String> {
    let head = match read {
        Read::Head(head) => head,
        Read::Absent if seen.seq == 0 => return None,
        Read::Absent => {
            return Some(format!(
                "the head outside the database was gone when the chain had {} rows: rows cut from its end before then are not noticed",
                seen.seq
            ));
        }
        Read::Unreadable => {
            return Some("the head outside the database could not be understood".to_owned());
        }
    };
    if head.epoch != seen.epoch {
        return Some(format!(
            "the head outside the database is of epoch {}, the database of epoch {}: another database was put in its place",
            head.epoch, seen.epoch
        ));
    }
    if head.seq == 0 || seen.at_head.as_ref() == Some(&head.mac) {
        return None;
    }
    if seen.seq < head.seq {
        return Some(format!("{} missing from the end of the chain", rows(seen.seq + 1, head.seq)));
    }
    Some(format!(
        "row {} is not the one that was sealed: the end of the chain was replaced",
        head.seq
    ))
}

/// Writes which rows are the subject of a sentence.
pub(super) fn rows(from: i64, to: i64) -> String {
    if from == to { format!("row {from} is") } else { format!("rows {from} to {to} are") }
}

fn restored(was: i64, is: i64) -> String {
    if is < was {
        let rows = rows(is + 1, was);
        format!("the database was restored from a copy: {rows} in the database that it replaced")
    } else {
        format!("the database was restored from a copy, which has {is} rows of the chain")
    }
}
