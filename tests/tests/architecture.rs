//! The rules of the layout, checked by reading source as text.
//!
//! A failure names the file, the line and the rule. Where a rule is wrong, change it here and say
//! why in the commit; each list of exceptions is meant to stay short.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file, and of a function.
const FILE_LIMIT: usize = 500;
const FUNCTION_LIMIT: usize = 80;

/// Files and functions that may be longer. Only ever shortened.
const LONG_FILES: &[&str] = &[];
const LONG_FUNCTIONS: &[&str] = &[];

/// What each layer of the controller may import besides itself. `app`, `serve` and `admin` are the
/// process around the rooms.
const CONTROLLER: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("config", &["core"]),
    ("authz", &["core", "config"]),
    ("link", &["core", "authz", "config"]),
    ("features", &["core", "authz", "config", "link"]),
    ("reconcile", &["core", "authz", "config", "link", "features"]),
    ("admin", &["core", "authz", "config", "link", "features", "reconcile", "serve"]),
    ("app", &["core", "authz", "config", "link", "features", "reconcile", "admin"]),
    ("serve", &["core", "config", "app", "admin"]),
    ("main", &["config", "app", "admin", "serve"]),
    ("lib", &[]),
];

/// The same for the agent: `streams`, `reconcile` and `telemetry` do not know each other.
const AGENT: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("gpu", &[]),
    ("docker", &["gpu"]),
    ("guest", &["docker"]),
    ("enroll", &["config"]),
    ("streams", &["docker", "gpu", "guest"]),
    ("reconcile", &["docker", "gpu"]),
    ("telemetry", &["docker", "gpu"]),
    ("link", &["docker", "gpu", "streams", "enroll", "config"]),
    ("inventory", &["docker", "gpu", "telemetry"]),
    ("doctor", &["docker", "gpu", "config", "enroll", "inventory", "telemetry"]),
    (
        "app",
        &[
            "config",
            "docker",
            "gpu",
            "guest",
            "enroll",
            "streams",
            "reconcile",
            "telemetry",
            "inventory",
            "doctor",
            "link",
        ],
    ),
    ("main", &["config", "app", "enroll", "doctor", "inventory"]),
    ("lib", &[]),
];

/// Rooms that import another room, with the reason. Only through `actions`.
const ROOM_TO_ROOM: &[(&str, &str, &str)] = &[
    ("quotas", "instances", "what an account uses is counted in one place, where instances are"),
    ("jumpbox", "instances", "whoever comes to an instance that stands still may start it"),
    ("users", "instances", "a leaver's instances are handed over as the account is deleted"),
];

/// Crates whose types stop at their door, and the doors.
const DOORS: &[(&str, &[&str])] = &[
    ("bollard", &["agent/src/docker/engine"]),
    ("nvml_wrapper", &["agent/src/gpu/nvml"]),
    ("quinn", &["agent/src/link", "agent/src/enroll", "controller/src/link"]),
    ("russh", &["controller/src/features/jumpbox", "controller/src/authz/ssh_key"]),
    ("sqlx", &["controller/src/core/db", "controller/src/admin/backup"]),
];

/// What `common` and `scheduler` may depend on.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("common", &["bytes", "postcard", "serde", "thiserror", "tokio", "uuid"]),
    ("controller/scheduler", &["serde", "thiserror", "tianqi-common"]),
];

/// Handlers that anybody may call, by file and name.
const PUBLIC_HANDLERS: &[&str] = &["controller/src/features/users/session.rs::log_in"];

/// Tables with two writers, and why.
const SHARED_TABLES: &[(&str, &[&str], &str)] = &[(
    "users",
    &["authz", "users"],
    "credentials are of authz, the rest of an account of the room",
)];

#[test]
fn layers_of_the_controller_import_only_what_is_below_them() {
    check_layers("controller/src", CONTROLLER);
}

#[test]
fn layers_of_the_agent_import_only_what_is_below_them() {
    check_layers("agent/src", AGENT);
}

#[test]
fn rooms_do_not_import_rooms() {
    let mut wrong = Vec::new();
    for source in sources("controller/src/features") {
        let Some(room) = room_of(&source.path) else { continue };
        for (number, line) in source.production() {
            for other in names_after(line, "crate::features::") {
                let is_type = other.starts_with(char::is_uppercase);
                let is_listed = ROOM_TO_ROOM.iter().any(|(from, to, _)| {
                    *from == room
                        && *to == other
                        && line.contains(&format!("features::{to}::actions"))
                });
                if !is_type && other != room && !is_listed {
                    wrong.push(format!("{}:{number}: {room} imports {other}", source.path));
                }
            }
        }
    }
    none(&wrong, "rooms do not import rooms (layout 3.4); a listed pair may, through actions");
}

#[test]
fn imports_are_written_so_that_a_line_scan_sees_them() {
    let mut wrong = Vec::new();
    for source in ["controller/src", "agent/src"].iter().flat_map(|folder| sources(folder)) {
        for (number, line) in source.lines() {
            if line.contains("use crate::{") || line.contains("super::super") {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none(&wrong, "write one `use crate::layer::…` for each layer, and no super::super");
}

#[test]
fn third_party_types_stop_at_their_door() {
    let mut wrong = Vec::new();
    let folders = ["common/src", "controller/src", "controller/scheduler/src", "agent/src"];
    for source in folders.iter().flat_map(|folder| sources(folder)) {
        for (number, line) in source.production() {
            for (name, doors) in DOORS {
                let is_door = doors.iter().any(|door| source.path.starts_with(door));
                if !is_door && is_path_into(line, name) {
                    wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    none(&wrong, "these crates are named only behind their door (DOORS)");
}

#[test]
fn each_table_has_one_writer() {
    let mut writers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources("controller/src") {
        let text = source.production().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        for verb in ["insert into ", "update ", "delete from "] {
            for table in names_after(&text, &format!("\"{verb}")) {
                writers.entry(table).or_default().insert(owner_of(&source.path));
            }
        }
    }
    assert!(!writers.is_empty(), "no statement was found: this test reads nothing");
    let shared = writers.iter().filter(|(table, owners)| {
        let may_share = |owner: &String| {
            let listed = SHARED_TABLES.iter().find(|(name, ..)| name == table);
            listed.is_some_and(|(_, allowed, _)| allowed.contains(&owner.as_str()))
        };
        owners.len() > 1 && !owners.iter().all(may_share)
    });
    let wrong: Vec<_> = shared.map(|(table, owners)| format!("{table}: {owners:?}")).collect();
    none(&wrong, "a table is written by the one room that owns it");
}

#[test]
fn the_audit_is_only_added_to_and_shortened_by_retention_alone() {
    let retention = "controller/src/core/audit/store.rs";
    let mut removals = 0;
    let mut wrong = Vec::new();
    for source in sources("controller/src") {
        for (number, line) in source.production() {
            let is_removal = line.contains("delete from audit_");
            removals += usize::from(is_removal);
            if line.contains("update audit_") || (is_removal && source.path != retention) {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_eq!(removals, 3, "retention removes rows, their links, and the checkpoint before");
    none(&wrong, "nothing changes a row of the audit, and retention alone removes some");
}

#[test]
fn handlers_and_verbs_hold_no_sql() {
    let free_of_sql = ["mod.rs", "routes.rs", "actions.rs", "model.rs", "lifecycle.rs", "tools.rs"];
    let mut wrong = Vec::new();
    for source in sources("controller/src/features") {
        let file = source.path.rsplit('/').next().unwrap_or_default();
        let is_store = source.path.contains("/store");
        for (number, line) in source.production() {
            let has = |verbs: &[&str]| verbs.iter().any(|verb| line.contains(&format!("\"{verb}")));
            let writes = has(&["insert into ", "update ", "delete from "]);
            let reads = has(&["select "]);
            if !is_store && (writes || (reads && free_of_sql.contains(&file))) {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none(&wrong, "a room writes in its store alone, and reads in no handler, verb or model");
}

#[test]
fn every_handler_says_who_may_call_it() {
    let mut wrong = Vec::new();
    for source in sources("controller/src/features") {
        let Some(chunks) = source.text.split_once("#[utoipa::path") else { continue };
        for chunk in chunks.1.split("#[utoipa::path") {
            let Some((_, signature)) = chunk.split_once("async fn ") else { continue };
            let signature = signature.split("{\n").next().unwrap_or(signature);
            let name = signature.split(['(', '<']).next().unwrap_or_default();
            let id = format!("{}::{name}", source.path);
            if !signature.contains("Grant<") && !PUBLIC_HANDLERS.contains(&id.as_str()) {
                wrong.push(id);
            }
        }
    }
    none(&wrong, "a handler takes a Grant, or is in PUBLIC_HANDLERS");
}

#[test]
fn files_and_functions_stay_short() {
    let mut wrong = Vec::new();
    for source in every_source() {
        let length = source.text.lines().count();
        if length > FILE_LIMIT && !LONG_FILES.contains(&source.path.as_str()) {
            wrong.push(format!("{}: {length} lines", source.path));
        }
        for (name, length) in source.functions() {
            let id = format!("{}::{name}", source.path);
            if length > FUNCTION_LIMIT && !LONG_FUNCTIONS.contains(&id.as_str()) {
                wrong.push(format!("{id}: {length} lines"));
            }
        }
    }
    none(&wrong, "files end at 500 lines and functions at 80");
}

#[test]
fn pure_crates_depend_on_nothing_else() {
    let mut wrong = Vec::new();
    for (folder, allowed) in ALLOWED_DEPENDENCIES {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        for line in section.lines().take_while(|line| !line.starts_with('[')) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with('#') && !allowed.contains(&name) {
                wrong.push(format!("{folder}/Cargo.toml: {name}"));
            }
        }
    }
    none(&wrong, "these crates have a fixed list of dependencies");
}

#[test]
fn every_path_named_in_a_readme_exists() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    let tops =
        ["controller/", "agent/", "common/", "tests/", "deploy/", "systemd/", "web/", ".ci/"];
    for readme in files(&root(), &|name| name.starts_with("README") && name.ends_with(".md")) {
        let folder = readme.parent().unwrap_or(Path::new("/")).to_owned();
        let text = read(&readme);
        for word in
            text.split(|c: char| c.is_whitespace() || "`()[]\"',|<>，。；（）、".contains(c))
        {
            let word = word.trim_end_matches(['.', ':', ';']).trim_start_matches("./");
            if !tops.iter().any(|top| word.starts_with(top)) {
                continue;
            }
            seen += 1;
            if !root().join(word).exists() && !folder.join(word).exists() {
                wrong.push(format!("{}: {word}", relative(&readme)));
            }
        }
    }
    assert!(seen > 0, "no path was found: this test reads nothing");
    none(&wrong, "paths named in a README exist");
}

#[test]
fn nothing_is_left_to_do_in_comments() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let mut wrong = Vec::new();
    for source in every_source() {
        for (number, line) in source.lines() {
            let words = line.split(|c: char| !c.is_alphanumeric());
            if words.into_iter().any(|word| marks.contains(&word)) {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none(&wrong, "open work is an issue, not a comment");
}

#[test]
fn only_the_test_that_needs_a_real_card_is_ignored() {
    let mut wrong = Vec::new();
    for source in every_source() {
        let is_allowed = source.path == "tests/tests/gpu.rs";
        for (number, line) in source.lines() {
            if line.trim_start().starts_with("#[ignore") && !is_allowed {
                wrong.push(format!("{}:{number}", source.path));
            }
        }
    }
    none(&wrong, "a test that does not run proves nothing");
}

fn check_layers(folder: &str, layers: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for source in sources(folder) {
        let inside = source.path.trim_start_matches(folder).trim_start_matches('/');
        let layer = inside.split(['/', '.']).next().unwrap_or_default();
        if layer == "bin" || source.is_test() {
            continue;
        }
        let Some((_, allowed)) = layers.iter().find(|(name, _)| *name == layer) else {
            wrong.push(format!("{}: {layer} is no known layer", source.path));
            continue;
        };
        let prefix = if layer == "main" { library_of(folder) } else { "crate::" };
        for (number, line) in source.production() {
            for used in names_after(line, prefix) {
                let is_layer = layers.iter().any(|(name, _)| *name == used);
                if is_layer && used != layer && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}:{number}: {layer} imports {used}", source.path));
                }
            }
        }
    }
    none(&wrong, "layers import only what is below them (layout 3.4)");
}

fn library_of(folder: &str) -> &'static str {
    if folder.starts_with("agent") { "tianqi_agent::" } else { "tianqi_controller::" }
}

/// A file of source, its path relative to the repository.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn is_test(&self) -> bool {
        let is_named_so = ["/tests.rs", "_tests.rs", "/testing.rs"];
        is_named_so.iter().any(|end| self.path.ends_with(end)) || self.path.contains("/tests/")
    }

    /// The lines that are neither comments nor tests; a test module stands at the end of its file.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let end = if self.is_test() { 0 } else { self.text[..tests].lines().count() };
        self.lines().take(end).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Name and length of each function; rustfmt puts the closing brace under the first line.
    fn functions(&self) -> Vec<(String, usize)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut found = Vec::new();
        for (start, line) in lines.iter().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            let Some(name) = function_name(line.trim_start()) else { continue };
            let (close, end_of_head) = (format!("{indent}}}"), format!("{indent})"));
            let rest = &lines[start..];
            let is_end = |line: &&str| {
                **line == close || (line.starts_with(&end_of_head) && line.ends_with(';'))
            };
            // A declaration in a trait ends with its head and has no length.
            let length = rest.iter().position(is_end).unwrap_or(rest.len());
            found.push((name.to_owned(), length + 1));
        }
        found
    }
}

/// Returns the name of the function that a line begins to define with a body.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line;
    for word in
        ["pub(crate) ", "pub(super) ", "pub ", "const ", "async ", "unsafe ", "extern \"C\" "]
    {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let name = rest.strip_prefix("fn ")?;
    let is_declaration = line.ends_with(';') || line.ends_with('}');
    if is_declaration { None } else { name.split(['(', '<']).next() }
}

fn sources(folder: &str) -> Vec<Source> {
    files(&root().join(folder), &|name| name.ends_with(".rs"))
        .into_iter()
        .map(|path| Source { path: relative(&path), text: read(&path) })
        .collect()
}

fn every_source() -> Vec<Source> {
    let found: Vec<_> =
        ["common", "controller", "agent", "tests"].iter().flat_map(|f| sources(f)).collect();
    assert!(found.len() > 20, "only {} files were found: this test reads nothing", found.len());
    found
}

fn files(folder: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_ours =
            !["target", "node_modules", "dist", ".git", ".tianqi"].contains(&name.as_str());
        if entry.file_type().unwrap().is_dir() && is_ours {
            found.extend(files(&path, is_wanted));
        } else if is_wanted(&name) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the identifiers that follow `prefix` in a text.
fn names_after(text: &str, prefix: &str) -> Vec<String> {
    text.match_indices(prefix)
        .map(|(at, _)| {
            let rest = &text[at + prefix.len()..];
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a line names something inside the crate `name`.
fn is_path_into(line: &str, name: &str) -> bool {
    line.match_indices(&format!("{name}::"))
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// Returns the part of the controller that a file belongs to: a room, or a layer.
fn owner_of(path: &str) -> String {
    let inside = path.trim_start_matches("controller/src/");
    let owner =
        room_of(path).unwrap_or_else(|| inside.split(['/', '.']).next().unwrap_or_default());
    owner.to_owned()
}

fn room_of(path: &str) -> Option<&str> {
    let (room, rest) = path.strip_prefix("controller/src/features/")?.split_once('/')?;
    (!rest.is_empty()).then_some(room)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn none(wrong: &[String], rule: &str) {
    let mut message = format!("{rule}:");
    for line in wrong {
        let _ = write!(message, "\n  {line}");
    }
    assert!(wrong.is_empty(), "{message}");
}
