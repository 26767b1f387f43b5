//! `scp`: the far side of the old copy protocol, which `scp -O` and old clients speak.
//!
//! The client starts `scp -t PATH` here to send and `scp -f PATH…` to receive. Both sides take
//! turns: a line that says what comes (`C` a file, `D` a directory, `E` its end, `T` times), then
//! one byte that says whether it may (0), and after 1 or 2 a message.

mod receive;
mod record;
mod send;
mod wire;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use self::wire::{Stop, Wire};
use crate::{BAD_USAGE, complain};

const USAGE: &str = "usage: tianqi-guest scp -t [-r] [-p] [-d] PATH | -f [-r] [-p] PATH…";

/// What the client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Options {
    to: bool,
    from: bool,
    is_recursive: bool,
    keeps_times: bool,
    wants_directory: bool,
}

/// Copies one way. Returns 0 when everything was copied, 1 when something was not.
pub(crate) fn run(arguments: &[OsString]) -> u8 {
    let Some((options, paths)) = parse(arguments) else {
        complain(USAGE);
        return BAD_USAGE;
    };
    let mut wire = Wire::new();
    let done = match paths.as_slice() {
        [target] if options.to && !options.from => receive::receive(&mut wire, options, target),
        [_, ..] if options.from && !options.to => send::send(&mut wire, options, &paths),
        _ => {
            complain(USAGE);
            return BAD_USAGE;
        }
    };
    match done {
        Ok(()) if wire.has_failed() => 1,
        Ok(()) => 0,
        Err(Stop::Protocol(what)) => {
            // The other side is not known to listen; the exit code says it too.
            let _ = wire.refuse(&format!("protocol error: {what}"));
            1
        }
        Err(Stop::Lost | Stop::Told) => 1,
    }
}

/// Reads options as getopt(3) does: combined letters, and a path after `--` whatever it begins with.
fn parse(arguments: &[OsString]) -> Option<(Options, Vec<PathBuf>)> {
    let mut options = Options::default();
    let mut paths = Vec::new();
    let mut may_be_options = true;
    for argument in arguments {
        match argument.as_bytes() {
            b"--" if may_be_options => may_be_options = false,
            [b'-', letters @ ..] if may_be_options && !letters.is_empty() => {
                for letter in letters {
                    options.set(*letter)?;
                }
            }
            _ => {
                may_be_options = false;
                paths.push(PathBuf::from(argument));
            }
        }
    }
    Some((options, paths))
}

impl Options {
    fn set(&mut self, letter: u8) -> Option<()> {
        match letter {
            b't' => self.to = true,
            b'f' => self.from = true,
            b'r' => self.is_recursive = true,
            b'p' => self.keeps_times = true,
            b'd' => self.wants_directory = true,
            // Talk and quiet are the client's matter.
            b'v' | b'q' => {}
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<(Options, Vec<PathBuf>)> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn parse_takes_combined_letters_and_paths_that_look_like_options() {
        let (options, paths) = parsed(&["-vrp", "-t", "-d", "--", "-x"]).unwrap();

        assert!(options.to && options.is_recursive && options.keeps_times);
        assert!(options.wants_directory && !options.from);
        assert_eq!(paths, [PathBuf::from("-x")]);
        assert_eq!(parsed(&["-f", "a", "-b"]).unwrap().1.len(), 2);
        assert!(parsed(&["-z", "a"]).is_none());
    }
}
