//! Fetches images that nodes lack: one pull at a time for each node and image.

use std::collections::BTreeSet;
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::stream::{Pull, PullFrame, RegistryCredentials, StreamRefusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::core::db::{Db, DbError, args, row};
use crate::core::seal::Seal;
use crate::features::Clock;
use crate::features::instances::change::Change;
use crate::features::instances::lifecycle::{Event, Next, next};
use crate::features::instances::store::{self, Instance, Why};
use crate::link::LinkError;
use crate::reconcile::{Agents, Input};

/// How often a registry is asked before the instances that wait are told that it failed.
const ATTEMPTS: u32 = 3;
/// How long after a failure it is asked again; the wait doubles.
const WAIT: Duration = Duration::from_secs(2);
/// Progress is passed on at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Words of an answer that asking again does not change.
const FINAL: &[&str] = &[
    "not found",
    "manifest unknown",
    "denied",
    "unauthorized",
    "invalid reference",
    "no such image",
    "no basic auth credentials",
];

/// How a pull goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullNews {
    /// It goes on.
    Progress {
        /// Bytes fetched.
        done_bytes: u64,
        /// Bytes to fetch; 0 while unknown.
        total_bytes: u64,
        /// Docker's own words.
        status: String,
    },
    /// The image is on the node.
    Done,
    /// The registry or the engine said no, in its own words.
    Failed(String),
    /// The agent could not be reached; its next report leads to another pull.
    Lost,
}

/// Pulls that go on now.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    running: BTreeSet<(NodeId, String)>,
    /// Ends with the loop: the next one starts again what its reports ask for.
    tasks: JoinSet<()>,
}

impl Pulls {
    /// Starts a pull unless it goes on already. Its news come back through `news`, which waits when
    /// the loop is behind.
    pub(crate) fn start<A: Agents>(
        &mut self,
        agents: &A,
        node: NodeId,
        pull: Pull,
        clock: Clock,
        news: mpsc::Sender<Input>,
    ) {
        if !self.running.insert((node, pull.image.clone())) {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        tracing::info!(node.id = %node, "fetching image {} on node {node}", pull.image);
        let agents = agents.clone();
        self.tasks.spawn(async move {
            let image = pull.image.clone();
            let last = attempts(&agents, node, pull, &clock, &news).await;
            // The loop has ended when nobody takes the news.
            let _ = news.send(Input::Pull { node, image, news: last }).await;
        });
    }

    /// Whether an image is being fetched.
    pub(crate) fn is_running(&self, node: NodeId, image: &str) -> bool {
        self.running.contains(&(node, image.to_owned()))
    }

    /// A pull ended.
    pub(crate) fn ended(&mut self, node: NodeId, image: &str) {
        self.running.remove(&(node, image.to_owned()));
    }
}

async fn attempts<A: Agents>(
    agents: &A,
    node: NodeId,
    pull: Pull,
    clock: &Clock,
    news: &mpsc::Sender<Input>,
) -> PullNews {
    let mut wait = WAIT;
    for attempt in 1.. {
        let last = once(agents, node, pull.clone(), clock, news).await;
        let PullNews::Failed(message) = &last else { return last };
        let words = message.to_lowercase();
        if attempt >= ATTEMPTS || FINAL.iter().any(|word| words.contains(word)) {
            tracing::warn!(node.id = %node, error = %message, "image {} cannot be fetched on node {node}", pull.image);
            return last;
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2);
    }
    PullNews::Lost
}

async fn once<A: Agents>(
    agents: &A,
    node: NodeId,
    pull: Pull,
    clock: &Clock,
    news: &mpsc::Sender<Input>,
) -> PullNews {
    let image = pull.image.clone();
    let mut stream = match agents.pull(node, pull).await {
        Ok(stream) => stream,
        Err(LinkError::Refused { code: StreamRefusal::Docker, message }) => {
            return PullNews::Failed(message);
        }
        Err(error) => {
            tracing::debug!(node.id = %node, %error, "a pull could not be opened");
            return PullNews::Lost;
        }
    };
    let mut told = None;
    loop {
        match stream.reader.next::<PullFrame>().await {
            Ok(Some(PullFrame::Done)) => return PullNews::Done,
            Ok(Some(PullFrame::Failed { message })) => return PullNews::Failed(message),
            Ok(Some(PullFrame::Progress { done_bytes, total_bytes, status })) => {
                let now = clock.monotonic();
                let is_due = told.is_none_or(|told| now.saturating_sub(told) >= PROGRESS_EVERY);
                if is_due {
                    told = Some(now);
                    let progress = PullNews::Progress { done_bytes, total_bytes, status };
                    let input = Input::Pull { node, image: image.clone(), news: progress };
                    if news.send(input).await.is_err() {
                        return PullNews::Lost;
                    }
                }
            }
            Ok(None) => return PullNews::Lost,
            Err(error) => {
                tracing::debug!(node.id = %node, %error, "a pull was cut off");
                return PullNews::Lost;
            }
        }
    }
}

row! {
    struct CredentialsRow {
        id: Uuid,
        registry_username: Option<String>,
        sealed_registry_password: Option<Vec<u8>>,
    }
}

/// Reads what an instance's image needs to be fetched.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn request(
    db: &Db,
    seal: &Seal,
    instance: InstanceId,
    image: String,
) -> Result<Pull, DbError> {
    const SQL: &str = "select m.id, m.registry_username, m.sealed_registry_password \
         from instances i join images m on m.id = i.image_id where i.id = $1 and m.address = $2";
    let row: Option<CredentialsRow> = db.first(SQL, args![instance, image.as_str()]).await?;
    let credentials = row.and_then(|row| {
        let (username, sealed) = (row.registry_username?, row.sealed_registry_password?);
        match seal.open(&format!("images/{}/registry_password", row.id), &sealed) {
            Ok(password) => {
                let password = String::from_utf8_lossy(&password).into_owned();
                Some(RegistryCredentials { username, password })
            }
            Err(error) => {
                tracing::error!(%error, "the registry password of image {} cannot be opened; fetching without it", row.id);
                None
            }
        }
    });
    Ok(Pull { image, credentials })
}

/// Writes how a pull goes to the instances that wait for it. Returns those that changed.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn tell(
    db: &Db,
    node: NodeId,
    image: &str,
    news: &PullNews,
    now: UnixMillis,
) -> Result<Vec<InstanceId>, DbError> {
    let mut changed = Vec::new();
    for it in store::on_node(db, node).await? {
        let is_waiting = it.image_address == image && it.why.code == "image_pulling";
        let Some(change) = is_waiting.then(|| change(&it, news, now)).flatten() else { continue };
        let mut tx = db.begin().await?;
        if change.concerns_node() {
            store::touch_nodes(&mut tx, &BTreeSet::from([node])).await?;
        }
        if change.write(&mut tx, now).await? {
            tx.commit().await?;
            changed.push(it.id);
        }
    }
    Ok(changed)
}

fn change(it: &Instance, news: &PullNews, now: UnixMillis) -> Option<Change> {
    match news {
        PullNews::Lost => None,
        PullNews::Done => {
            let text = format!("the image {} is on its node", it.image_address);
            let why = Why::new("creating", "its container is being made or started");
            Some(Change::to(it, it.state, why, false, now).noting("image_pulled", text))
        }
        PullNews::Progress { done_bytes, total_bytes, status } => {
            let mut why = it.why.clone();
            why.text = progress_text(&it.image_address, *done_bytes, *total_bytes, status);
            let detail = serde_json::json!({
                "done_bytes": done_bytes, "total_bytes": total_bytes, "status": status,
            });
            why.detail = detail.to_string();
            (why != it.why).then(|| Change::to(it, it.state, why, false, now))
        }
        PullNews::Failed(message) => {
            let Next::To(state) = next(it.state, Event::PullFailed) else { return None };
            let text = format!("the image {} cannot be fetched: {message}", it.image_address);
            let why = Why::new("image_pull_failed", text.clone());
            Some(Change::to(it, state, why, false, now).noting("failed", text))
        }
    }
}

fn progress_text(image: &str, done: u64, total: u64, status: &str) -> String {
    const MIB: u64 = 1 << 20;
    if total == 0 {
        return format!("its node fetches the image {image}: {status}");
    }
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
    format!(
        "its node fetches the image {image}: {percent} % of {} MiB, {status}",
        total.div_ceil(MIB)
    )
}
