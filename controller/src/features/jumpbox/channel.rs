//! A session channel: the menu, a shell, a command, or files.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::access::{self, Face};
use super::connection::Connection;
use super::intake::Taker;
use super::menu;
use super::menu::Prompt;
use super::model::Target;
use super::out::Out;
use super::pump::End;
use super::ready;
use super::setup::{Kind, Start};
use super::target::{self, Entry};
use super::texts::{Language, Texts, fill};
use crate::core::error::{Problem, Result};

/// How long a channel may stand open with nothing started.
const START: Duration = Duration::from_secs(60);
/// What SSH servers answer when it is not the program that failed.
pub(super) const FAILED: i32 = 255;

/// Both directions of a channel, and the connection that it is of.
pub(super) struct Ends {
    /// The connection.
    pub connection: Arc<Connection>,
    /// To the client.
    pub out: Out,
    /// From the client.
    pub taker: Taker,
}

/// Serves one session channel from its opening to its close.
pub(super) async fn run(ends: Ends, start: oneshot::Receiver<Start>) {
    let started = tokio::select! {
        started = tokio::time::timeout(START, start) => started,
        () = ends.connection.cut.cancelled() => return,
    };
    let Ok(Ok(start)) = started else {
        ends.out.close().await;
        return;
    };
    if start.term.is_some() {
        ends.out.is_terminal();
    }
    let texts = Language::of_env(&start.env).texts();
    let code = match serve(&ends, start, texts).await {
        Ok(code) => code,
        Err(problem) => {
            ends.out.say(&texts.problem(&problem)).await;
            FAILED
        }
    };
    ends.out.exit(code).await;
}

async fn serve(ends: &Ends, start: Start, texts: &'static Texts) -> Result<i32> {
    let actor = target::present(&ends.connection).await?;
    let target = ends.connection.who().and_then(|who| who.target.clone());
    if let Some(target) = target {
        return straight_in(ends, &target, start, texts).await;
    }
    match (&start.kind, &start.term) {
        (Kind::Shell, Some(_)) => menu::run(ends, &actor, start, texts).await,
        (Kind::Shell, None) => {
            ends.out.say(&fill(texts.no_terminal, &[&actor.name])).await;
            Ok(FAILED)
        }
        (Kind::Exec(line), _) => {
            let own = match Target::parse(line.trim()) {
                target @ Target::Own(_) => target::entry(&ends.connection, &target).await,
                Target::Id(_) | Target::Of { .. } | Target::Nothing => Err(nameless()),
            };
            match own {
                Ok(entry) => {
                    let target = Target::Id(entry.resource().id);
                    let start = Start { kind: Kind::Shell, ..start };
                    straight_in(ends, &target, start, texts).await
                }
                Err(problem) if problem.code == "no_such_instance" => {
                    ends.out.say(&fill(texts.name_an_instance, &[&actor.name])).await;
                    Ok(FAILED)
                }
                Err(problem) => Err(problem),
            }
        }
        (Kind::Sftp, _) => {
            ends.out.say(&fill(texts.name_an_instance, &[&actor.name])).await;
            Ok(FAILED)
        }
    }
}

fn nameless() -> Problem {
    Problem::not_found("no_such_instance", "there is no such instance")
}

/// Enters one instance. Whoever has a terminal is asked whether to start it when it stands still.
async fn straight_in(
    ends: &Ends,
    target: &Target,
    start: Start,
    texts: &'static Texts,
) -> Result<i32> {
    let entry = target::entry(&ends.connection, target).await?;
    let mut prompt = Prompt::new(start.term.as_ref().map(|term| term.size));
    if !ready::ready(ends, &entry, &mut prompt, texts).await? {
        return Ok(FAILED);
    }
    prompt.give_back(&ends.taker);
    let mut start = start;
    if let (Some(term), Some(size)) = (&mut start.term, prompt.size()) {
        term.size = size;
    }
    // Where it is may have changed while somebody thought about starting it.
    let entry = target::entry(&ends.connection, target).await?;
    enter(ends, &entry, start, texts).await
}

/// Runs what was asked for in an instance, and returns the code for the client.
pub(super) async fn enter(
    ends: &Ends,
    entry: &Entry,
    start: Start,
    texts: &'static Texts,
) -> Result<i32> {
    let face = match start.kind {
        Kind::Shell => Face::Program { line: None, term: start.term, env: start.env },
        Kind::Exec(line) => Face::Program { line: Some(line), term: start.term, env: start.env },
        Kind::Sftp => Face::Sftp,
    };
    let end = access::open(ends, entry, &face).await?.carry(ends, entry).await;
    Ok(match end {
        End::Exit(code) => code,
        // scp takes anything but 0 for a failure, so a server of files that is done says 0.
        End::Ended => 0,
        End::Failed(message) => {
            ends.out.say(&fill(texts.failed, &[&message])).await;
            FAILED
        }
        End::NodeLost => {
            ends.out.say(texts.node_lost).await;
            FAILED
        }
        End::Refused(problem) => {
            ends.out.say(&texts.problem(&problem)).await;
            FAILED
        }
        End::ClientLeft | End::Stuck => FAILED,
    })
}
