//! Texts that people give: how long, and which characters.

use super::error::{Problem, Result};

/// Checks a text of one line: `min` to `max` characters, none of them a control character.
///
/// # Errors
///
/// `bad_field` (422) naming the field and what to write.
pub fn line(field: &str, text: &str, min: usize, max: usize) -> Result<()> {
    let length = text.chars().count();
    if (min..=max).contains(&length) && !text.contains(char::is_control) && text.trim() == text {
        return Ok(());
    }
    let detail = format!(
        "{field} has {min} to {max} characters on one line, without spaces around them; {length} were given"
    );
    Err(Problem::invalid("bad_field", detail))
}

/// Checks a text of any number of lines: at most `max` characters, no control character but newline
/// and tab.
///
/// # Errors
///
/// `bad_field` (422) naming the field and what to write.
pub fn block(field: &str, text: &str, max: usize) -> Result<()> {
    let length = text.chars().count();
    let is_odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if length <= max && !text.contains(is_odd) {
        return Ok(());
    }
    let detail = format!(
        "{field} has at most {max} characters and no control characters; {length} were given"
    );
    Err(Problem::invalid("bad_field", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_counted_in_characters_and_holds_no_control_character() {
        assert!(line("name", "训练镜像", 1, 4).is_ok());
        for bad in ["", "abcde", "a\nb", " a", "a\0"] {
            assert!(line("name", bad, 1, 4).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_block_may_have_lines() {
        assert!(block("remark", "one\n\ttwo", 10).is_ok());
        assert!(block("remark", "", 10).is_ok());
        assert!(block("remark", "a\u{1b}[2J", 10).is_err());
        assert!(block("remark", "12345678901", 10).is_err());
    }
}
