//! The terminal that a command was typed into: raw while a program in an instance uses it.

use std::io::{IsTerminal, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tianqi_common::wire::stream::PtySize;

/// Whether both ends of the program are a terminal.
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Returns the size of the terminal, or 80 × 24 when it does not tell.
pub fn size() -> PtySize {
    match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            PtySize { cols: size.ws_col, rows: size.ws_row }
        }
        _ => PtySize { cols: 80, rows: 24 },
    }
}

/// Keeps the terminal in raw mode until it is dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Begins raw mode.
    ///
    /// # Errors
    ///
    /// When standard input is not a terminal.
    pub fn begin() -> std::io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone when this fails, and then there is nothing to put back.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}
