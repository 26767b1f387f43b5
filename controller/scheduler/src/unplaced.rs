//! What a refusal says: why nothing fits, counted over the nodes.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use tianqi_common::id::NodeId;

use crate::feasible::{Cards, Fleet, Node, check, valid};
use crate::model::Request;
use crate::reason::Reason;
use crate::snapshot::Snapshot;

/// Nodes named per reason.
const EXAMPLES: usize = 3;

/// One node and why it is refused. Serialises with the sentence (`message`) and what would help
/// (`remedy`) beside the reason.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Refusal", 5)?;
        fields.serialize_field("node", &self.node)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("reason", &self.reason)?;
        fields.serialize_field("message", &self.reason.to_string())?;
        fields.serialize_field("remedy", &self.reason.remedy())?;
        fields.end()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// How many nodes are refused for one kind of reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// [`Reason::code`].
    pub code: String,
    /// Nodes refused for it.
    pub nodes: u32,
    /// The nodes nearest to fitting, at most three.
    pub examples: Vec<Refusal>,
}

/// Why no node takes a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// One sentence for people.
    pub summary: String,
    /// Nodes looked at.
    pub nodes: u32,
    /// One entry per reason, the most frequent first.
    pub reasons: Vec<ReasonCount>,
}

/// No node takes a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Unplaced {
    /// No listed node could ever hold it, even empty, healthy and connected. Waiting does not
    /// help. The reasons are those of the empty fleet.
    #[error("{}", .0.summary)]
    Impossible(Shortfall),
    /// A listed node could hold it, but not now.
    #[error("{}", .0.summary)]
    Busy(Shortfall),
}

impl Unplaced {
    /// Returns the counted reasons.
    #[must_use]
    pub fn shortfall(&self) -> &Shortfall {
        match self {
            Self::Impossible(shortfall) | Self::Busy(shortfall) => shortfall,
        }
    }

    /// Returns whether waiting cannot help.
    #[must_use]
    pub fn is_impossible(&self) -> bool {
        matches!(self, Self::Impossible(_))
    }
}

/// Says why `request` fits nowhere; the caller has seen that it does not.
pub(crate) fn unplaced(snapshot: &Snapshot, request: &Request) -> Unplaced {
    let could_fit = |node: &Node| check(node, request, Fleet::Ideal, Cards::All).is_ok();
    if snapshot.entries().any(could_fit) {
        Unplaced::Busy(shortfall(snapshot, request, Fleet::Now))
    } else {
        Unplaced::Impossible(shortfall(snapshot, request, Fleet::Ideal))
    }
}

fn shortfall(snapshot: &Snapshot, request: &Request, fleet: Fleet) -> Shortfall {
    let mut tally = Tally::default();
    for node in snapshot.entries() {
        if let Err(reason) = check(node, request, fleet, Cards::All) {
            tally.add(node, reason);
        }
    }
    tally.finish(request, fleet)
}

/// Counts reasons while nodes are looked at.
#[derive(Default)]
pub(crate) struct Tally {
    nodes: u32,
    counts: BTreeMap<&'static str, (u32, Vec<Refusal>)>,
}

impl Tally {
    /// Counts one refused node. Nodes come in id order.
    pub(crate) fn add(&mut self, node: &Node, reason: Reason) {
        self.nodes = self.nodes.saturating_add(1);
        let (nodes, examples) = self.counts.entry(reason.code()).or_default();
        *nodes = nodes.saturating_add(1);
        let gap = reason.gap();
        let place = examples.partition_point(|nearer| nearer.reason.gap() <= gap);
        if place < EXAMPLES {
            let (id, name) = (node.capacity.id, node.capacity.name.clone());
            examples.insert(place, Refusal { node: id, name, reason });
            examples.truncate(EXAMPLES);
        }
    }

    /// Returns the counts with a sentence.
    pub(crate) fn finish(self, request: &Request, fleet: Fleet) -> Shortfall {
        let mut reasons: Vec<ReasonCount> = self
            .counts
            .into_iter()
            .map(|(code, (nodes, examples))| ReasonCount { code: code.into(), nodes, examples })
            .collect();
        reasons.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.code.cmp(&b.code)));
        let summary = summary(&reasons, request, fleet);
        Shortfall { summary, nodes: self.nodes, reasons }
    }
}

fn summary(reasons: &[ReasonCount], request: &Request, fleet: Fleet) -> String {
    let first = |count: &ReasonCount| count.examples.first().cloned();
    if let Err(invalid) = valid(request) {
        return invalid.to_string();
    }
    if reasons.is_empty() {
        return "there is no node; join one and list it".into();
    }
    let others = || reasons.iter().filter(|count| count.code != "not_named");
    let Some(common) = others().next() else {
        return "the named node is not known".into();
    };
    if request.node.is_some() {
        let refusal = first(common).map(|refusal| refusal.to_string()).unwrap_or_default();
        let when = if fleet == Fleet::Ideal { "even empty" } else { "now" };
        return format!("the named node does not fit {when}: {refusal}");
    }
    let parts: Vec<String> = others().map(part).collect();
    let head = match fleet {
        Fleet::Now => "no node fits now",
        Fleet::Ideal => "no listed node could ever hold this, even empty",
    };
    format!("{head}: {}", parts.join("; "))
}

/// Says how many nodes have one reason, and which is nearest to fitting.
fn part(count: &ReasonCount) -> String {
    let nodes = if count.nodes == 1 { "1 node".into() } else { format!("{} nodes", count.nodes) };
    let Some(nearest) = count.examples.first() else { return nodes };
    if count.nodes == 1 { nearest.to_string() } else { format!("{nodes}, such as {nearest}") }
}
