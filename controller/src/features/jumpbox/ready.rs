//! Bringing an instance up for somebody who wants to enter it.

use std::time::Duration;

use tianqi_common::id::InstanceId;

use super::channel::Ends;
use super::menu::{Key, Prompt};
use super::store;
use super::target::Entry;
use super::texts::{Texts, fill};
use crate::authz::Grant;
use crate::authz::policy::InstancesWrite;
use crate::authz::resource::{InstanceRef, Resource as _};
use crate::core::error::Result;
use crate::features::instances::actions::{self, Verb};

/// How often the phase is read while somebody waits.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait; an image may have to be fetched first.
const LONGEST: Duration = Duration::from_mins(15);

/// Where an instance stands for somebody at its door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    NodeOffline,
    Coming,
    Shut,
    Going,
}

impl Door {
    fn of(phase: &str, is_node_connected: bool) -> Self {
        match phase {
            // An engine that does not answer ends nothing that runs, and a guest needs none.
            "running" | "unknown" if is_node_connected => Self::Open,
            "running" | "unknown" => Self::NodeOffline,
            "pending" | "creating" => Self::Coming,
            "deleting" => Self::Going,
            _ => Self::Shut,
        }
    }
}

/// Returns whether the instance runs and can be entered. It says why not, and offers to start it to
/// whoever sits at a terminal.
///
/// # Errors
///
/// `no_such_instance` (404), and what starting it answers.
pub(super) async fn ready(
    ends: &Ends,
    entry: &Entry,
    prompt: &mut Prompt,
    texts: &Texts,
) -> Result<bool> {
    let (phase, door) = look(ends, entry.resource().id).await?;
    match door {
        Door::Open => Ok(true),
        Door::NodeOffline => {
            ends.out.say(texts.node_offline).await;
            Ok(false)
        }
        Door::Going => {
            ends.out.say(texts.deleting).await;
            Ok(false)
        }
        Door::Coming if prompt.size().is_some() => wait(ends, entry, prompt, texts).await,
        Door::Coming | Door::Shut => {
            let name = entry.resource().name.as_str();
            ends.out.say(&fill(texts.not_running, &[name, &texts.phase(&phase)])).await;
            if prompt.size().is_none() || !is_wanted(ends, prompt, texts).await {
                return Ok(false);
            }
            let grant: Grant<InstanceRef, InstancesWrite> =
                Grant::decide(entry.actor().clone(), entry.resource().clone())?;
            actions::steer(ends.connection.ctx(), &grant, Verb::Start).await?;
            ends.out.say(texts.starting).await;
            wait(ends, entry, prompt, texts).await
        }
    }
}

async fn look(ends: &Ends, id: InstanceId) -> Result<(String, Door)> {
    let ctx = ends.connection.ctx();
    let phase = store::phase(&ctx.db, id).await?.ok_or_else(InstanceRef::missing)?;
    let instance = InstanceRef::find(&ctx.db, Some(&id.to_string())).await?;
    let is_connected = instance.node.is_some_and(|node| ctx.link.is_connected(node));
    let door = Door::of(&phase, is_connected);
    Ok((phase, door))
}

async fn is_wanted(ends: &Ends, prompt: &mut Prompt, texts: &Texts) -> bool {
    loop {
        ends.out.show(texts.ask_start).await;
        match prompt.line(ends).await {
            Key::Line(line) => match line.trim().to_lowercase().as_str() {
                "y" | "yes" | "是" => return true,
                "n" | "no" | "q" | "" | "否" => return false,
                _ => {}
            },
            Key::Interrupt | Key::End => return false,
        }
    }
}

/// Waits until it runs, and says how it goes on.
async fn wait(ends: &Ends, entry: &Entry, prompt: &mut Prompt, texts: &Texts) -> Result<bool> {
    let id = entry.resource().id;
    let mut told = String::new();
    let waited = tokio::time::timeout(LONGEST, async {
        loop {
            let (phase, door) = look(ends, id).await?;
            match door {
                Door::Open => return Ok(Some(true)),
                Door::Coming | Door::NodeOffline if phase == told => {}
                Door::Coming | Door::NodeOffline => {
                    ends.out.say(&fill(texts.waiting, &[&texts.phase(&phase)])).await;
                    told = phase;
                }
                Door::Shut if phase == "stopping" => {}
                Door::Shut | Door::Going => {
                    let name = entry.resource().name.as_str();
                    let text = fill(texts.not_running, &[name, &texts.phase(&phase)]);
                    ends.out.say(&text).await;
                    return Ok(Some(false));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = prompt.interrupted(ends) => return Ok(None),
            }
        }
    });
    match waited.await {
        Ok(Ok(Some(is_ready))) => Ok(is_ready),
        Ok(Err(problem)) => Err(problem),
        Ok(Ok(None)) | Err(_) => {
            ends.out.say(texts.still_waiting).await;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::jumpbox::texts::PHASES;

    #[test]
    fn every_phase_opens_the_right_door() {
        let doors = PHASES.map(|phase| Door::of(phase, true));

        assert_eq!(
            doors,
            [
                Door::Coming,
                Door::Coming,
                Door::Open,
                Door::Shut,
                Door::Shut,
                Door::Shut,
                Door::Going,
                Door::Open,
            ]
        );
        for phase in ["running", "unknown"] {
            assert_eq!(Door::of(phase, false), Door::NodeOffline);
        }
    }
}
