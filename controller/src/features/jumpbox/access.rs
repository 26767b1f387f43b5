//! Opening a stream into an instance, with the audit's two rows around it.

use serde_json::{Value, json};
use tianqi_common::wire::stream::{Command, Dial, Exec, Sftp, Shell, StreamOpen};

use super::channel::Ends;
use super::connection::missing_row;
use super::model::Term;
use super::pump::{self, Carried, End};
use super::target::Entry;
use crate::authz::policy::{InstancesSsh, Permission as _};
use crate::authz::watch::{self, Needs};
use crate::core::audit::{Access, Ending};
use crate::core::error::{Problem, Result};
use crate::link::WorkStream;

/// What is opened.
#[derive(Debug)]
pub(super) enum Face {
    /// A shell, or a command line, with or without a terminal.
    Program {
        /// The command line; nothing for a shell.
        line: Option<String>,
        /// The terminal.
        term: Option<Term>,
        /// Variables.
        env: Vec<(String, String)>,
    },
    /// Files.
    Sftp,
    /// A connection to this address and port, as seen from inside.
    Forward(String, u16),
}

impl Face {
    fn name(&self) -> &'static str {
        match self {
            Self::Program { line: None, .. } => "ssh:shell",
            Self::Program { line: Some(_), .. } => "ssh:exec",
            Self::Sftp => "ssh:sftp",
            Self::Forward(..) => "ssh:forward",
        }
    }

    /// What the audit says of it. Command lines stay out, as everywhere: they hold secrets.
    fn detail(&self) -> Value {
        match self {
            Self::Program { term: Some(term), .. } => {
                json!({ "terminal": true, "cols": term.size.cols, "rows": term.size.rows })
            }
            Self::Program { term: None, .. } => json!({ "terminal": false }),
            Self::Sftp => json!({}),
            Self::Forward(host, port) => json!({ "host": host, "port": port }),
        }
    }

    fn open(&self, entry: &Entry) -> StreamOpen {
        let instance = entry.resource().id;
        match self {
            Self::Program { line, term, env } => {
                let mut env = env.clone();
                env.extend(term.iter().map(|term| ("TERM".to_owned(), term.name.clone())));
                let command = match line {
                    None => Command::Shell(Shell::Bash),
                    Some(line) => Command::Line(line.clone()),
                };
                let pty = term.as_ref().map(|term| term.size);
                StreamOpen::Exec(Exec { instance, command, pty, env })
            }
            Self::Sftp => StreamOpen::Sftp(Sftp { instance }),
            Self::Forward(host, port) => {
                StreamOpen::Tcp(Dial { instance, host: host.clone(), port: *port })
            }
        }
    }
}

/// A stream that is open and written down.
#[derive(Debug)]
pub(super) struct Open {
    work: WorkStream,
    access: Access,
    kind: Carrying,
}

/// What is carried.
#[derive(Clone, Copy, Debug)]
enum Carrying {
    Program { has_terminal: bool },
    Server,
    Connection,
}

/// Opens what `face` says.
///
/// # Errors
///
/// Why it could not be opened; that is written down too.
pub(super) async fn open(ends: &Ends, entry: &Entry, face: &Face) -> Result<Open> {
    let ctx = ends.connection.ctx();
    let names = (InstancesSsh::NAME, face.name());
    let (doer, instance) = (entry.actor().doer(), entry.resource().id);
    let access = Access::begin(&ctx.db, &ctx.clock.0, doer, names, instance);
    match ctx.link.open(entry, face.open(entry)).await.map_err(Problem::from) {
        Ok(work) => {
            access.opened(face.detail()).await?;
            let kind = match face {
                Face::Program { term, .. } => Carrying::Program { has_terminal: term.is_some() },
                Face::Sftp => Carrying::Server,
                Face::Forward(..) => Carrying::Connection,
            };
            Ok(Open { work, access, kind })
        }
        Err(problem) => {
            access.refused(problem.code).await?;
            Err(problem)
        }
    }
}

impl Open {
    /// Carries bytes until one side ends, and writes down how.
    pub(super) async fn carry(self, ends: &Ends, entry: &Entry) -> End {
        let connection = &ends.connection;
        // The right is looked at anew as the wait for its end begins, so nothing is missed between.
        let (mut heard, in_use) = (connection.ctx().events.listen(), connection.in_use());
        let authz = &connection.ctx().authz;
        let right = watch::ended(authz, entry, Needs::Running, &in_use, &mut heard);
        let before = ends.out.bytes();
        let Carried { end, bytes_in } = match self.kind {
            Carrying::Program { has_terminal } => {
                pump::program(self.work, ends, has_terminal, right).await
            }
            Carrying::Server => pump::server(self.work, ends, right).await,
            Carrying::Connection => pump::connection(self.work, ends, right).await,
        };
        let ending = Ending {
            reason: end.word().to_owned(),
            exit_code: end.exit_code(),
            bytes_in,
            bytes_out: ends.out.bytes().saturating_sub(before),
        };
        if let Err(error) = self.access.closed(ending).await {
            missing_row(&error);
        }
        end
    }
}
