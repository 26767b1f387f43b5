//! The menu: what somebody sees who names no instance.

mod line;
mod view;

use std::collections::VecDeque;

use tianqi_common::id::InstanceId;
use tianqi_common::wire::stream::PtySize;

use super::channel::{self, Ends};
use super::guide::Place;
use super::intake::{Piece, Taker};
use super::model::{Target, size};
use super::ready;
use super::setup::{Kind, Start};
use super::store::{self, MenuRow};
use super::target;
use super::texts::{Texts, fill};
use crate::authz::policy::{InstancesSsh, Permission as _};
use crate::authz::{Actor, Reach};
use crate::core::error::Result;
use line::LineEditor;
use view::{Choice, Frame, Menu};

pub(super) use line::Key;

/// Bytes that may be typed ahead; what comes then waits in the channel.
const AHEAD_MOST: usize = 64 << 10;
const CTRL_C: u8 = 0x03;

/// Reads lines from whoever sits at a terminal. Bytes behind a line stay for what comes next.
#[derive(Debug)]
pub(super) struct Prompt {
    editor: LineEditor,
    waiting: VecDeque<u8>,
    size: Option<PtySize>,
}

impl Prompt {
    /// Reads from a terminal of this size, or from none.
    pub(super) fn new(size: Option<PtySize>) -> Self {
        Self { editor: LineEditor::default(), waiting: VecDeque::new(), size }
    }

    /// The terminal's size now; nothing when there is none.
    pub(super) fn size(&self) -> Option<PtySize> {
        self.size
    }

    /// Waits for a line, an interrupt, or the end of input. May be dropped while it waits.
    pub(super) async fn line(&mut self, ends: &Ends) -> Key {
        loop {
            let mut echo = Vec::new();
            let mut key = None;
            while let Some(byte) = self.waiting.pop_front() {
                key = self.editor.feed(byte, &mut echo);
                if key.is_some() {
                    break;
                }
            }
            ends.out.show(echo).await;
            if let Some(key) = key {
                return key;
            }
            match ends.taker.next().await {
                Piece::Data(bytes) => {
                    ends.connection.mark_use(true);
                    self.waiting.extend(bytes);
                }
                Piece::Resize(size) => self.size = self.size.map(|_| size),
                Piece::Signal(_) => {
                    self.editor.clear();
                    return Key::Interrupt;
                }
                Piece::End | Piece::Closed => return Key::End,
            }
        }
    }

    /// Waits until somebody presses Ctrl-C or goes away. What is typed meanwhile stays for what comes
    /// next. May be dropped while it waits.
    pub(super) async fn interrupted(&mut self, ends: &Ends) {
        while self.waiting.len() < AHEAD_MOST {
            match ends.taker.next().await {
                Piece::Data(bytes) if bytes.contains(&CTRL_C) => {
                    self.waiting.clear();
                    return;
                }
                Piece::Data(bytes) => self.waiting.extend(bytes),
                Piece::Resize(size) => self.size = self.size.map(|_| size),
                Piece::Signal(_) | Piece::End | Piece::Closed => return,
            }
        }
        std::future::pending().await
    }

    /// Puts what was typed ahead back for the program that comes next.
    pub(super) fn give_back(&mut self, taker: &Taker) {
        self.editor.clear();
        taker.put_back(self.waiting.make_contiguous());
        self.waiting.clear();
    }
}

/// Shows the menu until somebody leaves it.
///
/// # Errors
///
/// When the instances cannot be read, or the session has ended.
pub(super) async fn run(
    ends: &Ends,
    actor: &Actor,
    start: Start,
    texts: &'static Texts,
) -> Result<i32> {
    let mut prompt = Prompt::new(start.term.as_ref().map(|term| term.size));
    let mut menu = Menu::default();
    let mut is_stale = true;
    loop {
        if is_stale {
            menu.rows = rows(ends, actor).await?;
            draw(ends, actor, &menu, &prompt, texts).await;
        }
        ends.out.show(texts.prompt).await;
        let line = match prompt.line(ends).await {
            Key::Line(line) => line,
            Key::Interrupt => {
                is_stale = false;
                continue;
            }
            Key::End => String::from("q"),
        };
        is_stale = match menu.choose(&line, window(&prompt)) {
            Choice::Quit => {
                ends.out.say(texts.goodbye).await;
                return Ok(0);
            }
            Choice::Refresh => true,
            Choice::Show => {
                draw(ends, actor, &menu, &prompt, texts).await;
                false
            }
            Choice::NoMatch(text) => {
                ends.out.say(&fill(texts.no_match, &[&text])).await;
                false
            }
            Choice::Enter(row) => {
                if let Err(problem) = visit(ends, &row, &start, &mut prompt, texts).await {
                    ends.out.say(&texts.problem(&problem)).await;
                }
                true
            }
        };
    }
}

async fn rows(ends: &Ends, actor: &Actor) -> Result<Vec<MenuRow>> {
    let owner = (!sees_all(actor)).then_some(actor.id);
    target::present(&ends.connection).await?;
    Ok(store::menu(&ends.connection.ctx().db, owner).await?)
}

fn sees_all(actor: &Actor) -> bool {
    actor.role.reach(InstancesSsh::NAME) == Reach::All
}

fn window(prompt: &Prompt) -> PtySize {
    prompt.size().unwrap_or_else(|| size(0, 0))
}

async fn draw(ends: &Ends, actor: &Actor, menu: &Menu, prompt: &Prompt, texts: &'static Texts) {
    let rules = &ends.connection.ctx().config.jumpbox;
    let hint = rules
        .public_address
        .as_deref()
        .and_then(Place::public)
        .map(|place| fill(texts.hint, &[&place.option("-p"), &actor.name, &place.host]));
    let frame = Frame {
        texts,
        account: &actor.name,
        shows_owner: sees_all(actor),
        hint: hint.unwrap_or_default(),
        size: window(prompt),
    };
    ends.out.show(menu.draw(&frame)).await;
}

/// Enters one instance and comes back.
async fn visit(
    ends: &Ends,
    row: &MenuRow,
    start: &Start,
    prompt: &mut Prompt,
    texts: &'static Texts,
) -> Result<()> {
    let target = Target::Id(InstanceId(row.id));
    let entry = target::entry(&ends.connection, &target).await?;
    if !ready::ready(ends, &entry, prompt, texts).await? {
        return Ok(());
    }
    prompt.give_back(&ends.taker);
    let entry = target::entry(&ends.connection, &target).await?;
    let mut start = Start { kind: Kind::Shell, ..start.clone() };
    if let Some(term) = &mut start.term {
        term.size = window(prompt);
    }
    channel::enter(ends, &entry, start, texts).await?;
    prompt.size = ends.taker.size().or(prompt.size);
    ends.out.say(&format!("\r\n{}", texts.back)).await;
    Ok(())
}
