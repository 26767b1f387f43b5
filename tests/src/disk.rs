//! Small disks under an agent's data folder or an engine's volumes, which a test may fill.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::cluster::Agent;
use crate::dockerd::Dockerd;

/// A filesystem of 64 MiB in place of an agent's data folder, with its files in it. It is unmounted
/// when dropped, with everything that was mounted on it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Stops the agent, puts the disk under it, and starts it again.
    ///
    /// # Panics
    ///
    /// When the disk cannot be mounted, as without root.
    #[must_use]
    pub fn under(agent: &mut Agent) -> Self {
        agent.process().stop();
        let path = agent.data_dir();
        let script = r#"
            set -e
            cp -a "$1" "$1.kept"
            mount -t tmpfs -o size=64m,mode=700 tianqi-test "$1"
            cp -a "$1.kept/." "$1"
        "#;
        run(Command::new("sh").args(["-c", script, "small-disk"]).arg(&path));
        agent.start();
        Self { path }
    }

    /// Leaves no byte free.
    ///
    /// # Panics
    ///
    /// When nothing could be written at all.
    pub fn fill(&self) {
        // Ends with "no space left", which is the point; the count keeps it from filling more than
        // that disk should it not be mounted.
        let script =
            r#"dd if=/dev/zero of="$1/filler" bs=4k count=20000 2>/dev/null; test -e "$1/filler""#;
        run(Command::new("sh").args(["-c", script, "fill"]).arg(&self.path));
    }

    /// Frees what was filled.
    ///
    /// # Panics
    ///
    /// When it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.path.join("filler")).expect("the disk was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A filesystem of 64 MiB in place of an engine's volumes, unmounted when dropped.
#[derive(Debug)]
pub struct SmallVolumes {
    path: PathBuf,
}

impl SmallVolumes {
    /// Puts the disk under a running engine that has no volume yet.
    ///
    /// # Panics
    ///
    /// When the disk cannot be mounted, as without root.
    #[must_use]
    pub fn under(engine: &Dockerd) -> Self {
        let path = engine.root().join("data/volumes");
        // The engine has laid a mount of its own over its folder, so this comes after its start.
        let script = r#"
            set -e
            mount -t tmpfs -o size=64m,mode=701 tianqi-test "$1"
            test "$(stat -f -c %T "$1")" = tmpfs
        "#;
        run(Command::new("sh").args(["-c", script, "small-volumes"]).arg(&path));
        Self { path }
    }

    /// Whether it is still there.
    ///
    /// # Panics
    ///
    /// When `mountpoint` is not installed.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        Command::new("mountpoint")
            .arg("-q")
            .arg(&self.path)
            .status()
            .expect("mountpoint runs")
            .success()
    }
}

impl Drop for SmallVolumes {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
