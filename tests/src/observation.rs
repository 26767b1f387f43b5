//! What the simulation sees: the API's list, the database's grants, the engine's containers and
//! volumes, and the mounts of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use reqwest::Method;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use crate::client::{Client, text};
use crate::dockerd::Dockerd;

/// An instance as the API shows it.
#[derive(Clone, Debug)]
pub struct InstanceSeen {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: String,
    /// What should be.
    pub desired: String,
    /// Why, as a word.
    pub reason_code: String,
    /// Why, as a sentence.
    pub reason: String,
}

impl InstanceSeen {
    /// Whether it waits because others hold what it needs.
    #[must_use]
    pub fn waits_for_capacity(&self) -> bool {
        self.phase == "pending" && self.reason_code == "no_capacity"
    }
}

/// A container of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Docker's id.
    pub id: String,
    /// Whose it is, by its label.
    pub instance: String,
    /// Whether its process runs.
    pub is_running: bool,
}

/// Something on the node that belongs to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remain {
    /// A container.
    Container(String),
    /// A volume.
    Volume(String),
    /// The mount of a slice's region.
    Region(String),
}

impl Remain {
    /// Returns whose it is.
    #[must_use]
    pub fn instance(&self) -> &str {
        match self {
            Self::Container(id) | Self::Volume(id) | Self::Region(id) => id,
        }
    }
}

impl fmt::Display for Remain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(id) => write!(f, "a container of instance {id}"),
            Self::Volume(id) => write!(f, "a volume of instance {id}"),
            Self::Region(id) => write!(f, "the region of instance {id}"),
        }
    }
}

/// What a node has and what of it is granted.
#[derive(Clone, Debug)]
pub struct NodeUse {
    has: [i64; 3],
    granted: [i64; 3],
}

impl NodeUse {
    /// Says what is granted beyond what there is; nothing when all is well.
    #[must_use]
    pub fn excess(&self) -> Option<String> {
        let fits = self.has.iter().zip(&self.granted).all(|(has, granted)| granted <= has);
        (!fits).then(|| format!("node has {:?}, granted {:?}", self.has, self.granted))
    }
}

/// What a card has and what of it is granted.
#[derive(Clone, Debug)]
pub struct CardUse {
    uuid: String,
    memory_mib: i64,
    granted_mib: i64,
    cores: i64,
    shares: i64,
    max_shares: i64,
    wholes: i64,
}

impl CardUse {
    /// Says what is granted beyond what there is; nothing when all is well.
    #[must_use]
    pub fn excess(&self) -> Option<String> {
        let fits = self.granted_mib <= self.memory_mib
            && self.cores <= 100
            && self.shares <= self.max_shares.max(1)
            && (self.wholes == 0 || self.shares == 1);
        (!fits).then(|| format!("card {}: {self:?}", self.uuid))
    }
}

/// Everything at one moment, as far as moments can be had.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The API's list, by id.
    pub instances: BTreeMap<String, InstanceSeen>,
    /// The engine's containers; none while it is down.
    pub containers: Vec<Container>,
    /// Instances whose process runs without a grant.
    pub unbacked: Vec<String>,
    /// Grants of instances that are gone.
    pub stray_grants: i64,
    /// Nodes by capacity.
    pub nodes: Vec<NodeUse>,
    /// Cards by capacity.
    pub cards: Vec<CardUse>,
    /// What is on the node, by instance.
    pub remains: Vec<Remain>,
}

/// Where to look.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    /// The admin's session.
    pub admin: &'a Client,
    /// The controller's SQLite file.
    pub database: &'a Path,
    /// The engine, when it runs.
    pub engine: Option<&'a Dockerd>,
    /// The agent's data folder.
    pub agent: &'a Path,
}

impl Places<'_> {
    /// Looks.
    ///
    /// # Panics
    ///
    /// When the controller, its database or the engine does not answer.
    pub async fn look(&self) -> Observation {
        let before = self.engine.map(containers).unwrap_or_default();
        let granted = self.database().await;
        let containers = self.engine.map(containers).unwrap_or_default();
        // Only what ran all the time counts: a grant is released after the end of its process.
        let ran = containers.iter().filter(|it| it.is_running && before.contains(it));
        let unbacked = ran.map(|it| it.instance.clone());
        let unbacked = unbacked.filter(|id| !granted.holders.contains(id)).collect();
        let mut remains: Vec<Remain> = regions(self.agent);
        remains.extend(containers.iter().map(|it| Remain::Container(it.instance.clone())));
        remains
            .extend(self.engine.map(volumes).unwrap_or_default().into_iter().map(Remain::Volume));
        Observation {
            instances: instances(self.admin).await,
            containers,
            unbacked,
            stray_grants: granted.strays,
            nodes: granted.nodes,
            cards: granted.cards,
            remains,
        }
    }

    async fn database(&self) -> Granted {
        let options = SqliteConnectOptions::new().filename(self.database).read_only(true);
        let mut connection = options.connect().await.expect("the database opens");
        // One transaction sees one moment.
        sqlx::query("begin").execute(&mut connection).await.expect("a transaction");
        let granted = Granted {
            holders: holders(&mut connection).await,
            strays: strays(&mut connection).await,
            nodes: nodes(&mut connection).await,
            cards: cards(&mut connection).await,
        };
        let _ = connection.close().await;
        granted
    }
}

struct Granted {
    holders: BTreeSet<String>,
    strays: i64,
    nodes: Vec<NodeUse>,
    cards: Vec<CardUse>,
}

async fn holders(connection: &mut SqliteConnection) -> BTreeSet<String> {
    let rows = sqlx::query(
        "select n.instance_id as id from node_grants n join instances i on i.id = n.instance_id \
         where n.cpu_millicores > 0 and i.deleted_at is null",
    );
    let rows = rows.fetch_all(connection).await.expect("grants");
    rows.iter().map(|row| row.get::<uuid::Uuid, _>("id").to_string()).collect()
}

async fn strays(connection: &mut SqliteConnection) -> i64 {
    let row = sqlx::query(
        "select (select count(*) from node_grants g left join instances i on i.id = g.instance_id \
         where i.id is null or i.deleted_at is not null) + \
         (select count(*) from gpu_grants g left join instances i on i.id = g.instance_id \
         where i.id is null or i.deleted_at is not null) as strays",
    );
    row.fetch_one(connection).await.expect("grants").get("strays")
}

async fn nodes(connection: &mut SqliteConnection) -> Vec<NodeUse> {
    let rows = sqlx::query(
        "select n.cpu_millicores, n.memory_mib, n.disk_gib, \
         coalesce(sum(g.cpu_millicores), 0) as cpu, coalesce(sum(g.memory_mib), 0) as memory, \
         coalesce(sum(g.disk_gib), 0) as disk \
         from nodes n left join node_grants g on g.node_id = n.id group by n.id",
    );
    let rows = rows.fetch_all(connection).await.expect("nodes");
    let of = |row: &sqlx::sqlite::SqliteRow, names: [&str; 3]| names.map(|name| row.get(name));
    rows.iter()
        .map(|row| NodeUse {
            has: of(row, ["cpu_millicores", "memory_mib", "disk_gib"]),
            granted: of(row, ["cpu", "memory", "disk"]),
        })
        .collect()
}

async fn cards(connection: &mut SqliteConnection) -> Vec<CardUse> {
    let rows = sqlx::query(
        "select c.uuid, c.memory_total_mib, c.max_shares, count(g.instance_id) as shares, \
         coalesce(sum(g.memory_mib), 0) as memory, coalesce(sum(g.cores), 0) as cores, \
         coalesce(sum(g.exclusive), 0) as wholes \
         from node_gpus c left join gpu_grants g on g.gpu_uuid = c.uuid group by c.uuid",
    );
    let rows = rows.fetch_all(connection).await.expect("cards");
    rows.iter()
        .map(|row| CardUse {
            uuid: row.get("uuid"),
            memory_mib: row.get("memory_total_mib"),
            granted_mib: row.get("memory"),
            cores: row.get("cores"),
            shares: row.get("shares"),
            max_shares: row.get("max_shares"),
            wholes: row.get("wholes"),
        })
        .collect()
}

async fn instances(admin: &Client) -> BTreeMap<String, InstanceSeen> {
    let (status, page) = admin.try_call(Method::GET, "/instances?page_size=100", None).await;
    assert!(status.is_success(), "the list answered {status}: {page}");
    let items = page["items"].as_array().expect("items of the page");
    assert!(items.len() < 100, "the simulation keeps fewer instances");
    items
        .iter()
        .map(|item| {
            let seen = InstanceSeen {
                name: text(item, "name"),
                phase: text(item, "phase"),
                desired: text(item, "desired"),
                reason_code: text(item, "reason_code"),
                reason: text(item, "reason"),
            };
            (text(item, "id"), seen)
        })
        .collect()
}

/// Returns the engine's containers that have our label.
pub fn containers(engine: &Dockerd) -> Vec<Container> {
    let format = "{{.ID}} {{.State}} {{.Label \"tianqi.instance\"}}";
    let filter = "label=tianqi.instance";
    let listed =
        engine.docker(&["ps", "--all", "--no-trunc", "--filter", filter, "--format", format]);
    let containers = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (id, state) = (words.next()?.to_owned(), words.next()?);
        Some(Container { id, is_running: state == "running", instance: words.next()?.to_owned() })
    });
    containers.collect()
}

/// Returns whose volumes there are; a volume that says no instance stands for itself.
fn volumes(engine: &Dockerd) -> Vec<String> {
    let format = "{{.Label \"tianqi.instance\"}} {{.Name}}";
    let listed = engine.docker(&["volume", "ls", "--format", format]);
    let owners = listed.lines().filter_map(|line| line.split_whitespace().next());
    owners.map(str::to_owned).collect()
}

/// Returns whose regions are mounted under an agent's data folder.
fn regions(agent: &Path) -> Vec<Remain> {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let under = format!("{}/regions/", agent.display());
    let ids = mounts.lines().filter_map(|line| {
        let path = line.split(' ').nth(1)?.strip_prefix(&under)?;
        path.split('/').next()
    });
    ids.map(|id| Remain::Region(id.to_owned())).collect()
}
