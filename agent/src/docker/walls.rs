//! Walls around the instances' bridge: no way to the node itself, to cloud metadata, or to each
//! other. Docker keeps containers of one bridge apart when told so; the rest is two chains of our
//! own, replaced whole, jumped to from `INPUT` and from `DOCKER-USER` or `FORWARD`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NetworkFacts;

/// Longest time for one call of a firewall program.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds that it may wait for others who change rules.
const LOCK_WAIT: &str = "10";

/// Keeps the instances of a network walled in.
pub trait NetworkGuard: Send + Sync + 'static {
    /// Makes the walls stand; answers why they do not. Called often.
    fn enforce<'a>(&'a self, network: &'a NetworkFacts) -> BoxFuture<'a, Result<(), String>>;
}

/// Walls by `iptables` and `ip6tables`, on this machine.
#[derive(Debug, Default)]
pub struct Iptables;

impl NetworkGuard for Iptables {
    fn enforce<'a>(&'a self, network: &'a NetworkFacts) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if network.bridge.is_empty() || network.bridge.len() > 15 {
                return Err(format!("{:?} is not the name of a bridge", network.bridge));
            }
            wall(Family { command: "iptables", metadata: Some("169.254.0.0/16") }, &network.bridge)
                .await?;
            if Path::new("/proc/net/if_inet6").exists() {
                wall(Family { command: "ip6tables", metadata: None }, &network.bridge).await?;
            }
            if !network.isolated {
                return Err(format!(
                    "docker's network on {} stands without enable_icc=false; remove it while no \
                     instance uses it and tianqi makes it anew",
                    network.bridge
                ));
            }
            bridged_traffic_is_filtered().await
        })
    }
}

#[derive(Clone, Copy)]
struct Family {
    command: &'static str,
    metadata: Option<&'static str>,
}

async fn wall(family: Family, bridge: &str) -> Result<(), String> {
    let (inward, across) = (format!("TIANQI-IN-{bridge}"), format!("TIANQI-FW-{bridge}"));
    let restore = format!("{}-restore", family.command);
    run(&restore, &["-w", LOCK_WAIT, "--noflush"], &rules(family, bridge)).await?;
    // Docker leaves DOCKER-USER alone and asks it first; without Docker's chains FORWARD serves.
    let has_user_chain =
        run(family.command, &["-w", LOCK_WAIT, "-n", "-L", "DOCKER-USER"], "").await.is_ok();
    let forward = if has_user_chain { "DOCKER-USER" } else { "FORWARD" };
    for (from, to) in [("INPUT", inward.as_str()), (forward, across.as_str())] {
        let rule = [from, "-i", bridge, "-j", to];
        let with = |verb| [&["-w", LOCK_WAIT, verb][..], &rule[..]].concat();
        if run(family.command, &with("-C"), "").await.is_err() {
            run(family.command, &with("-I"), "").await?;
        }
    }
    Ok(())
}

/// Both chains in the words of `iptables-restore`, which replaces them at once.
fn rules(family: Family, bridge: &str) -> String {
    let (inward, across) = (format!("TIANQI-IN-{bridge}"), format!("TIANQI-FW-{bridge}"));
    let metadata = family
        .metadata
        .map(|range| format!("-A {across} -d {range} -j DROP\n"))
        .unwrap_or_default();
    format!(
        "*filter\n:{inward} - [0:0]\n:{across} - [0:0]\n\
         -A {inward} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
         -A {inward} -j DROP\n\
         {metadata}-A {across} -o {bridge} -j DROP\nCOMMIT\n"
    )
}

/// Frames between two ports of one bridge only meet iptables when the kernel is told so. Docker
/// tells it, but anybody can take it back.
async fn bridged_traffic_is_filtered() -> Result<(), String> {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    match tokio::fs::read_to_string(SWITCH).await {
        Ok(value) if value.trim() == "1" => Ok(()),
        Ok(_) => Err(format!("instances of this node can reach each other: {SWITCH} is off")),
        Err(error) => {
            Err(format!("instances of this node can reach each other: {SWITCH}: {error}"))
        }
    }
}

async fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&error))?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that takes no input may have closed it; its exit code tells.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| failed(&"no answer in time"))?
        .map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(&said.lines().next().unwrap_or("it failed without a word")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_drop_the_node_the_metadata_service_and_the_neighbours() {
        let v4 = Family { command: "iptables", metadata: Some("169.254.0.0/16") };
        let rules = rules(v4, "tianqi0");
        let lines: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A")).collect();
        assert_eq!(
            lines,
            [
                "-A TIANQI-IN-tianqi0 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
                "-A TIANQI-IN-tianqi0 -j DROP",
                "-A TIANQI-FW-tianqi0 -d 169.254.0.0/16 -j DROP",
                "-A TIANQI-FW-tianqi0 -o tianqi0 -j DROP",
            ]
        );
    }
}
