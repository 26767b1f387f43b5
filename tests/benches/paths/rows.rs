//! Many rows at once, put into the SQLite database of a controller that does not run.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, Row, SqliteConnection};

/// Opens the database in a controller's data folder.
pub async fn open(data_dir: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(data_dir.join("tianqi.db"));
    SqliteConnection::connect_with(&options.foreign_keys(true)).await.expect("the database opens")
}

/// Makes nodes `bench-1` to `bench-COUNT` that are online, with 128 cores, 1 TiB and 8 cards each.
pub async fn nodes(db: &mut SqliteConnection, count: u32) {
    const NODES: &str = "insert into nodes (id, name, region, public_ip, private_ip, ssh_port, \
         ssh_user, remark, listed, cordoned, docker_status, docker_reason, agent_program, \
         boot_started_at, online, offline_reason, clock_skew_ms, cpu_millicores, memory_mib, \
         disk_gib, observed_epoch, observed_generation, created_at, updated_at) \
         with recursive n(i) as (select 1 union all select i + 1 from n where i < COUNT) \
         select randomblob(16), 'bench-' || i, '', '', '', 22, 'root', '', 1, 0, 'connected', '', \
         '', 0, 1, '', 0, 128000, 1048576, 8000, 0, 0, 0, 0 from n";
    const CARDS: &str = "insert into node_gpus (uuid, node_id, card_index, model, \
         memory_total_mib, memory_reserved_mib, pci_bus_id, simulated, present, sick, mig_enabled, \
         mode, max_shares, updated_at) \
         with recursive c(i) as (select 0 union all select i + 1 from c where i < 7) \
         select 'GPU-' || hex(nodes.id) || '-' || i, nodes.id, i, 'NVIDIA L40', 46068, 0, \
         '00000000:0' || i || ':00.0', 0, 1, '', 0, 'shared', 10, 0 from nodes, c";
    run(db, &NODES.replace("COUNT", &count.to_string())).await;
    run(db, CARDS).await;
}

/// Copies the one instance that there is `count` times and removes it. Each copy has its own id,
/// names and time; `changes` are other columns and the SQL of their values, in which `i` counts
/// from 1.
pub async fn instances(db: &mut SqliteConnection, count: u32, changes: &[(&str, &str)]) {
    let all = sqlx::query("select name from pragma_table_info('instances')").fetch_all(&mut *db);
    let columns: Vec<String> =
        all.await.expect("columns").iter().map(|row| row.get("name")).collect();
    let value = |column: &String| {
        let changed = changes.iter().find(|(name, _)| name == column);
        match (changed, column.as_str()) {
            (Some((_, value)), _) => (*value).to_owned(),
            (None, "id") => "randomblob(16)".to_owned(),
            (None, "name" | "live_name" | "container_name") => format!("t.{column} || '-' || i"),
            (None, "created_at" | "queued_at") => format!("t.{column} + i"),
            (None, _) => format!("t.{column}"),
        }
    };
    let values: Vec<String> = columns.iter().map(value).collect();
    let sql = format!(
        "insert into instances ({}) \
         with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) \
         select {} from (select * from instances limit 1) t, n",
        columns.join(", "),
        values.join(", ")
    );
    let template = "create temp table template as select id from instances";
    run(db, template).await;
    run(db, &sql).await;
    run(db, "delete from instances where id in (select id from template)").await;
}

/// Runs one statement.
pub async fn run(db: &mut SqliteConnection, sql: &str) {
    db.execute(AssertSqlSafe(sql)).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
