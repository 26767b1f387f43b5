//! The menu as lines of text, and what a typed line means in it. Pure.

use tianqi_common::wire::stream::PtySize;

use super::line::width;
use crate::features::jumpbox::store::MenuRow;
use crate::features::jumpbox::texts::{Texts, fill};

/// Lines besides the rows: heading, columns, filter and page, help, hint, prompt.
const FRAME: usize = 8;
/// Fewest rows on a page, however small the window.
const ROWS_MIN: usize = 3;
/// Characters of a container's id that are shown, as Docker does.
const SHORT_ID: usize = 12;
/// Widest column.
const COLUMN_MAX: usize = 40;

/// The menu's state.
#[derive(Debug, Default)]
pub(super) struct Menu {
    /// Every row.
    pub rows: Vec<MenuRow>,
    /// What names must hold to be shown; empty for all.
    pub filter: String,
    /// Which page is shown, from 0.
    pub page: usize,
}

/// What a typed line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Enter this one.
    Enter(MenuRow),
    /// Show the page anew, as it is now.
    Show,
    /// Read the rows anew.
    Refresh,
    /// Leave.
    Quit,
    /// Nothing is called so.
    NoMatch(String),
}

/// How the page is to be drawn.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// In which words.
    pub texts: &'a Texts,
    /// Who looks.
    pub account: &'a str,
    /// Whether rows of several owners may be there.
    pub shows_owner: bool,
    /// The line that says how to come straight in; empty for none.
    pub hint: String,
    /// The window.
    pub size: PtySize,
}

impl Menu {
    /// Rows that pass the filter, with their numbers. A row keeps its number whatever is filtered.
    fn shown(&self) -> Vec<(usize, &MenuRow)> {
        let wanted = self.filter.to_lowercase();
        let fits = |row: &MenuRow| {
            let owned = format!("{}/{}", row.owner, row.name);
            owned.to_lowercase().contains(&wanted)
        };
        let rows = self.rows.iter().enumerate().map(|(i, row)| (i + 1, row));
        rows.filter(|(_, row)| fits(row)).collect()
    }

    fn pages(&self, size: PtySize) -> usize {
        self.shown().len().div_ceil(per_page(size)).max(1)
    }

    /// Finds out what a line means, and remembers filter and page.
    pub(super) fn choose(&mut self, line: &str, size: PtySize) -> Choice {
        let line = line.trim();
        match line {
            "q" | "Q" | "exit" | "quit" => return Choice::Quit,
            "r" | "R" => {
                self.filter.clear();
                self.page = 0;
                return Choice::Refresh;
            }
            "" => {
                let pages = self.pages(size);
                self.page = if self.page + 1 < pages { self.page + 1 } else { 0 };
                return Choice::Show;
            }
            _ => {}
        }
        if let Some(row) = self.named(line) {
            return Choice::Enter(row.clone());
        }
        let before = std::mem::replace(&mut self.filter, line.to_owned());
        if self.shown().is_empty() {
            self.filter = before;
            return Choice::NoMatch(line.to_owned());
        }
        self.page = 0;
        Choice::Show
    }

    /// The row that a number or a name stands for. A name that is a number is reached by its number,
    /// a name of several owners by `owner/name`.
    fn named(&self, line: &str) -> Option<&MenuRow> {
        if let Ok(number) = line.parse::<usize>() {
            return number.checked_sub(1).and_then(|index| self.rows.get(index));
        }
        let mut found = self.rows.iter().filter(|row| match line.split_once('/') {
            None => row.name == line,
            Some((owner, name)) => row.owner == owner && row.name == name,
        });
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Draws the page.
    pub(super) fn draw(&self, frame: &Frame<'_>) -> String {
        let texts = frame.texts;
        let mut lines = vec![format!("\x1b[1m{}\x1b[0m", fill(texts.heading, &[frame.account]))];
        let shown = self.shown();
        let per_page = per_page(frame.size);
        if shown.is_empty() {
            lines.push(texts.none.to_owned());
        } else {
            let mut table = vec![texts.columns.map(str::to_owned).to_vec()];
            let page = shown.iter().skip(self.page * per_page).take(per_page);
            table.extend(page.map(|(number, row)| cells(*number, row, texts)));
            lines.extend(columns(table, frame));
        }
        let pages = self.pages(frame.size);
        let mut notes = Vec::new();
        if !self.filter.is_empty() {
            notes.push(fill(texts.filter, &[&self.filter]));
        }
        if pages > 1 {
            let (page, pages) = ((self.page + 1).to_string(), pages.to_string());
            notes.push(fill(texts.page, &[&page, &pages]));
        }
        if !notes.is_empty() {
            lines.push(notes.join(" · "));
        }
        lines.push(texts.help.to_owned());
        if !frame.hint.is_empty() {
            lines.push(frame.hint.clone());
        }
        format!("\r\n{}\r\n", lines.join("\r\n"))
    }
}

fn per_page(size: PtySize) -> usize {
    usize::from(size.rows).saturating_sub(FRAME).max(ROWS_MIN)
}

fn cells(number: usize, row: &MenuRow, texts: &Texts) -> Vec<String> {
    let id: String = row.container_id.as_deref().unwrap_or("-").chars().take(SHORT_ID).collect();
    let node = row.node.as_deref().unwrap_or("-");
    vec![
        number.to_string(),
        plain(&row.name),
        plain(&id),
        plain(node),
        texts.phase(&row.phase),
        plain(&row.owner),
    ]
}

/// Leaves out what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(COLUMN_MAX).collect()
}

fn columns(mut table: Vec<Vec<String>>, frame: &Frame<'_>) -> Vec<String> {
    let count = if frame.shows_owner { 6 } else { 5 };
    for row in &mut table {
        row.truncate(count);
    }
    let widths: Vec<usize> = (0..count)
        .map(|i| table.iter().filter_map(|row| row.get(i)).map(|it| columns_of(it)).max())
        .map(Option::unwrap_or_default)
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            format!("{cell}{}", " ".repeat(width.saturating_sub(columns_of(cell))))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

fn columns_of(text: &str) -> usize {
    text.chars().map(width).sum()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
