//! russh's callbacks. Each answers at once: nothing here waits for anything but the login itself, so
//! that no channel holds up another.

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::ssh_key::Algorithm;
use russh::keys::{HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, Pty, Sig};
use tokio::sync::oneshot;

use super::channel::{self, Ends};
use super::connection::{Connection, Place};
use super::forward;
use super::intake::{Intake, Taker, intake};
use super::model::Login;
use super::out::Out;
use super::settings;
use super::setup::{Kind, Setup, Start};
use crate::authz::Actor;
use crate::core::error::Result as Outcome;
use crate::core::secret::Secret;

/// Longest name of a signal.
const SIGNAL_MAX: usize = 16;
/// What a password is asked with.
const PASSWORD: &str = "Password: ";

/// One client's connection.
pub(super) struct Client {
    connection: Arc<Connection>,
    channels: HashMap<ChannelId, Open>,
}

/// A channel as the callbacks see it.
struct Open {
    setup: Setup,
    intake: Intake,
    begin: Option<oneshot::Sender<Start>>,
}

/// What a new channel's task needs.
struct Opened {
    place: Place,
    out: Out,
    taker: Taker,
    start: oneshot::Receiver<Start>,
}

impl Drop for Client {
    fn drop(&mut self) {
        for open in self.channels.values() {
            open.intake.close();
        }
        self.connection.cut.cancel();
    }
}

impl Client {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, channels: HashMap::new() }
    }

    fn decide(&self, login: Login, outcome: Outcome<Actor>) -> Auth {
        match outcome {
            Ok(actor) => {
                self.connection.enter(actor, login.target);
                Auth::Accept
            }
            Err(problem) => {
                tracing::debug!(code = problem.code, "SSH login refused");
                refuse()
            }
        }
    }

    async fn by_password(&self, user: &str, password: String) -> Auth {
        let (login, password) = (Login::parse(user), Secret::new(password));
        let (authz, visitor) = (&self.connection.ctx().authz, self.connection.visitor());
        let outcome = authz.ssh_password(&visitor, &login.account, &password).await;
        self.decide(login, outcome)
    }

    /// Takes a new channel in; nothing when there are too many.
    fn open(&mut self, channel: Channel<Msg>) -> Option<Opened> {
        self.channels.retain(|_, open| !open.intake.is_closed());
        let place = self.connection.place()?;
        let id = channel.id();
        // What a client sends comes through the callbacks; russh's own queue would stall when full.
        let (_, half) = channel.split();
        let (intake, taker) = intake(self.connection.flow.clone());
        let (begin, start) = oneshot::channel();
        let open = Open { setup: Setup::default(), intake, begin: Some(begin) };
        self.channels.insert(id, open);
        Some(Opened { place, out: Out::new(half), taker, start })
    }

    /// Begins what was asked for, or says that it cannot be.
    fn begin(
        &mut self,
        id: ChannelId,
        kind: Option<Kind>,
        session: &mut Session,
    ) -> Result<(), Error> {
        let begun = self.channels.get_mut(&id).is_some_and(|open| {
            let start = kind.and_then(|kind| open.setup.start(kind));
            let begin = start.and_then(|start| Some((open.begin.take()?, start)));
            begin.is_some_and(|(begin, start)| begin.send(start).is_ok())
        });
        answer(id, begun, session)
    }

    fn take_in(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let Some(open) = self.channels.get(&id) else { return Ok(()) };
        if open.intake.data(data).is_err() {
            tracing::debug!("an SSH client ignores its window; the channel is closed");
            open.intake.close();
            self.channels.remove(&id);
            session.close(id)?;
        }
        Ok(())
    }
}

/// Refuses, and lets the next try be of any kind.
fn refuse() -> Auth {
    Auth::Reject { proceed_with_methods: Some(settings::methods()), partial_success: false }
}

fn answer(id: ChannelId, is_granted: bool, session: &mut Session) -> Result<(), Error> {
    if is_granted { session.channel_success(id) } else { session.channel_failure(id) }
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Whether a key may sign like this: SHA-1 and DSA may not.
fn is_modern(algorithm: &Algorithm) -> bool {
    !matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

fn signal_name(signal: Sig) -> Option<String> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => {
            let is_name = !name.is_empty()
                && name.len() <= SIGNAL_MAX
                && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
            return is_name.then_some(name);
        }
    };
    Some(name.to_owned())
}

impl Handler for Client {
    type Error = Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Error> {
        // The outer connection has proved who it is; which name is said inside plays no part.
        Ok(if self.connection.is_inner() { Auth::Accept } else { refuse() })
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        Ok(self.by_password(user, password.to_owned()).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Error> {
        let Some(mut response) = response else {
            return Ok(Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![(PASSWORD.into(), false)].into(),
            });
        };
        let typed = response.next().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        match typed {
            Some(password) => Ok(self.by_password(user, password).await),
            None => Ok(refuse()),
        }
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Error> {
        let login = Login::parse(user);
        let authz = &self.connection.ctx().authz;
        let known = authz.knows_ssh_key(&login.account, &fingerprint(offer.public_key)).await;
        let is_known = known.unwrap_or_default() && is_modern(offer.algorithm);
        Ok(if is_known { Auth::Accept } else { refuse() })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Error> {
        if !is_modern(key.algorithm) {
            return Ok(refuse());
        }
        let login = Login::parse(user);
        let (authz, visitor) = (&self.connection.ctx().authz, self.connection.visitor());
        let outcome = authz.ssh_key(&visitor, &login.account, &fingerprint(key.public_key)).await;
        Ok(self.decide(login, outcome))
    }

    async fn authentication_banner(&mut self) -> Result<Option<String>, Error> {
        let banner = &self.connection.ctx().config.jumpbox.banner;
        let is_shown = !banner.is_empty() && !self.connection.is_inner();
        Ok(is_shown.then(|| format!("{}\r\n", banner.trim_end())))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        let Some(Opened { place, out, taker, start }) = self.open(channel) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let ends = Ends { connection: self.connection.clone(), out, taker };
        self.connection.tasks.spawn(async move {
            channel::run(ends, start).await;
            drop(place);
        });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        let Some(Opened { place, out, taker, .. }) = self.open(channel) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let ends = Ends { connection: self.connection.clone(), out, taker };
        let host = host_to_connect.to_owned();
        self.connection.tasks.spawn(async move {
            forward::run(ends, reply, host, port_to_connect).await;
            drop(place);
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        col_width: u32,
        row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        let open = self.channels.get_mut(&channel);
        let is_granted = open.is_some_and(|open| open.setup.pty(term, col_width, row_height));
        answer(channel, is_granted, session)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        variable_name: &str,
        variable_value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        let open = self.channels.get_mut(&channel);
        let is_taken = open.is_some_and(|open| open.setup.env(variable_name, variable_value));
        answer(channel, is_taken, session)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Error> {
        self.begin(channel, Some(Kind::Shell), session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        let line = std::str::from_utf8(data).ok();
        self.begin(channel, line.map(|line| Kind::Exec(line.to_owned())), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        self.begin(channel, (name == "sftp").then_some(Kind::Sftp), session)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        col_width: u32,
        row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(open) = self.channels.get_mut(&channel)
            && let Some(size) = open.setup.resize(col_width, row_height)
        {
            open.intake.resize(size);
        }
        session.channel_success(channel)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(open) = self.channels.get(&channel)
            && let Some(name) = signal_name(signal)
        {
            open.intake.signal(name);
        }
        Ok(())
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _x11_auth_protocol: &str,
        _x11_auth_cookie: &str,
        _x11_screen_number: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        self.take_in(channel, data, session)
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(open) = self.channels.get(&channel) {
            open.intake.end();
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(open) = self.channels.remove(&channel) {
            open.intake.close();
        }
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        self.connection.flow.window()
    }
}
