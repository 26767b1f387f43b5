//! Which program answers to a shell or a command line in an image that may have one shell or none.

use crate::wire::stream::{Command, Shell};

/// The shells a person may ask for, with where they are looked for, the usual place first.
pub const SHELLS: [[&str; 3]; 2] = [
    ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"],
    ["/bin/sh", "/usr/bin/sh", "/busybox/sh"],
];

/// What a person is told when an image has no shell at all.
pub const NO_SHELL: &str = "the image has neither bash nor sh; run a program of it instead";

/// Returns the program and arguments for `command`, given the paths of [`SHELLS`] that the image
/// has; nothing when it takes a shell and there is none.
#[must_use]
pub fn argv(command: &Command, found: &[&str]) -> Option<Vec<String>> {
    let (shell, line) = match command {
        Command::Argv(argv) => return Some(argv.clone()),
        Command::Shell(shell) => (*shell, None),
        Command::Line(line) => (Shell::Bash, Some(line.as_str())),
    };
    let is_bash = |path: &&&str| path.ends_with("/bash");
    let bash = found.iter().find(is_bash);
    let sh = found.iter().find(|path| !is_bash(path));
    let (program, login) = match (shell, bash, sh) {
        (Shell::Bash, Some(bash), _) | (Shell::Sh, Some(bash), None) => (*bash, Some("-l")),
        (_, _, Some(sh)) => (*sh, None),
        (_, None, None) => return None,
    };
    let arguments = match line {
        Some(line) => vec!["-c", line],
        None => login.into_iter().collect(),
    };
    Some(std::iter::once(program).chain(arguments).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command, found: &[&str]) -> Option<String> {
        argv(command, found).map(|argv| argv.join(" "))
    }

    #[test]
    fn a_shell_that_is_missing_gives_way_to_the_other() {
        let (bash, sh) = ("/bin/bash", "/bin/sh");
        let shell = Command::Shell;

        assert_eq!(words(&shell(Shell::Bash), &[bash, sh]).as_deref(), Some("/bin/bash -l"));
        assert_eq!(words(&shell(Shell::Bash), &[sh]).as_deref(), Some("/bin/sh"));
        assert_eq!(words(&shell(Shell::Sh), &[bash, sh]).as_deref(), Some("/bin/sh"));
        assert_eq!(words(&shell(Shell::Sh), &[bash]).as_deref(), Some("/bin/bash -l"));
        assert_eq!(words(&shell(Shell::Sh), &[]), None);
    }

    #[test]
    fn a_line_goes_to_a_shell_and_a_program_does_not() {
        let line = Command::Line("echo 'a b'".to_owned());
        let program = Command::Argv(vec!["echo".to_owned(), "a b".to_owned()]);

        assert_eq!(words(&line, &["/bin/sh"]).as_deref(), Some("/bin/sh -c echo 'a b'"));
        assert_eq!(words(&line, &[]), None);
        assert_eq!(words(&program, &[]).as_deref(), Some("echo a b"));
    }
}
