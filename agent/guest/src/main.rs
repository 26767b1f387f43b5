//! `tianqi-guest`: Tianqi's own program in every instance.
//!
//! Bound read-only into every container at `/.tianqi/guest`, static, so that it runs in any image.
//!
//! | verb | what it is |
//! |---|---|
//! | `hold` | the first process of a container whose image has nothing to run |
//! | `init -- PROGRAM …` | the first process: runs the image's program, passes signals on, reaps orphans |
//! | `serve` | dials the agent and serves its streams: terminals, programs, connections, files |
//! | `sftp` | an SFTP server on standard input and output |
//! | `scp -t\|-f …` | the far side of an old `scp`, for images without one |
//! | `tcp HOST PORT` | a connection on standard input and output, where `serve` cannot run |
//!
//! The container's user owns every process of it and may do with them what they like.

mod home;
mod pid1;
mod scp;
mod serve;
mod sftp;
mod stdio;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

const USAGE: &str = "usage: tianqi-guest hold | init -- PROGRAM [ARGUMENT…] | serve | sftp | \
    scp -t|-f PATH… | tcp HOST PORT | version";

const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut rest = arguments.into_iter();
    let code = match rest.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("hold") => pid1::hold(),
        Some("init") => {
            let argv: Vec<OsString> = match rest.next() {
                Some(dashes) if dashes == "--" => rest.collect(),
                first => first.into_iter().chain(rest).collect(),
            };
            pid1::init(&argv)
        }
        Some("serve") => serve::run(),
        Some("tcp") => tcp(&rest.collect::<Vec<_>>()),
        Some("sftp") => sftp::run(),
        Some("scp") => scp::run(&rest.collect::<Vec<_>>()),
        Some("version") => {
            say(&format!("tianqi-guest {}", env!("CARGO_PKG_VERSION")));
            0
        }
        _ => {
            complain(USAGE);
            BAD_USAGE
        }
    };
    ExitCode::from(code)
}

/// Carries bytes between a TCP server and standard input and output.
fn tcp(arguments: &[OsString]) -> u8 {
    let words: Vec<_> = arguments.iter().filter_map(|word| word.to_str()).collect();
    if let [host, port] = words.as_slice()
        && let Ok(port) = port.parse()
    {
        return serve::tcp_on_stdio(host, port);
    }
    complain(USAGE);
    BAD_USAGE
}

fn say(line: &str) {
    // Nobody may be reading; there is nothing better to do about it.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "tianqi-guest: {line}");
}
