//! A line that somebody types, key by key. Pure: bytes in, what to show and what was meant out.

/// Most bytes of a line; more are not taken.
const MOST: usize = 256;

/// What a key made of the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Enter.
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D on an empty line.
    End,
}

/// Where an escape sequence stands: arrows and other keys that mean nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After `ESC [` or `ESC O`, until its last byte.
    Inside,
}

/// A line being typed.
#[derive(Debug, Default)]
pub(super) struct LineEditor {
    text: String,
    /// Bytes of a character that is not whole yet.
    partial: Vec<u8>,
    escape: Escape,
    /// Whether the last byte was a carriage return, whose line feed means nothing more.
    was_return: bool,
}

impl LineEditor {
    /// Takes one byte. What is to be shown for it is added to `echo`.
    pub(super) fn feed(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<Key> {
        let was_return = std::mem::replace(&mut self.was_return, byte == b'\r');
        if self.is_escaped(byte) {
            return None;
        }
        match byte {
            b'\n' if was_return => None,
            b'\r' | b'\n' => {
                self.partial.clear();
                echo.extend_from_slice(b"\r\n");
                Some(Key::Line(std::mem::take(&mut self.text)))
            }
            0x03 => {
                self.clear();
                echo.extend_from_slice(b"^C\r\n");
                Some(Key::Interrupt)
            }
            0x04 => (self.text.is_empty()).then(|| {
                echo.extend_from_slice(b"\r\n");
                Key::End
            }),
            0x08 | 0x7f => {
                self.rub_out(echo);
                None
            }
            0x15 => {
                while !self.text.is_empty() {
                    self.rub_out(echo);
                }
                self.clear();
                None
            }
            0x00..=0x1f => None,
            _ => {
                self.add(byte, echo);
                None
            }
        }
    }

    /// Forgets what was typed.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.partial.clear();
    }

    fn is_escaped(&mut self, byte: u8) -> bool {
        let (next, is_escaped) = match (self.escape, byte) {
            (_, 0x1b) => (Escape::Begun, true),
            (Escape::None, _) => (Escape::None, false),
            // A control key is never swallowed: somebody may press Ctrl-C after a lone ESC.
            (Escape::Begun | Escape::Inside, 0x00..=0x1f) => (Escape::None, false),
            (Escape::Begun, b'[' | b'O') => (Escape::Inside, true),
            (Escape::Begun, _) => (Escape::None, true),
            (Escape::Inside, 0x40..=0x7e) => (Escape::None, true),
            (Escape::Inside, _) => (Escape::Inside, true),
        };
        self.escape = next;
        is_escaped
    }

    fn add(&mut self, byte: u8, echo: &mut Vec<u8>) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(character) if self.text.len() + character.len() <= MOST => {
                self.text.push_str(character);
                echo.extend_from_slice(character.as_bytes());
                self.partial.clear();
            }
            Ok(_) => {
                echo.push(0x07);
                self.partial.clear();
            }
            // More bytes may make it whole; a sequence that nothing can make whole is dropped.
            Err(error) if error.error_len().is_none() && self.partial.len() < 4 => {}
            Err(_) => self.partial.clear(),
        }
    }

    fn rub_out(&mut self, echo: &mut Vec<u8>) {
        self.partial.clear();
        if let Some(gone) = self.text.pop() {
            for _ in 0..width(gone) {
                echo.extend_from_slice(b"\x08 \x08");
            }
        }
    }
}

/// Columns that a character takes in a terminal: two for those of East Asia.
pub(super) fn width(character: char) -> usize {
    match u32::from(character) {
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Types bytes; returns the keys, with how many bytes had been typed by then, and what was shown.
    fn type_in(bytes: &[u8]) -> (Vec<(usize, Key)>, String) {
        let (mut editor, mut echo, mut keys) = (LineEditor::default(), Vec::new(), Vec::new());
        for (i, byte) in bytes.iter().enumerate() {
            keys.extend(editor.feed(*byte, &mut echo).map(|key| (i + 1, key)));
        }
        (keys, String::from_utf8(echo).unwrap())
    }

    fn line(bytes: &[u8]) -> String {
        match type_in(bytes).0.as_slice() {
            [(_, Key::Line(line))] => line.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_do_what_people_expect() {
        for (typed, meant) in [
            (&b"12\r"[..], "12"),
            (b"12\n", "12"),
            (b"12\r\n", "12"),
            (b"1x\x7f2\r", "12"),
            (b"1x\x082\r", "12"),
            (b"\x7f\x7f12\r", "12"),
            (b"wrong\x1512\r", "12"),
            (b"\x1b[A1\x1b[1;5C\x1bOP2\x1b[3~\r", "12"),
            (b"\x1bx12\r", "12"),
            (b"1\x002\x01\r", "12"),
            (b"a\xff\xfeb\r", "ab"),
            (b"\x0412\r", "12"),
            ("训练\r".as_bytes(), "训练"),
            ("训练\x7f\r".as_bytes(), "训"),
            (b"\xe8\xae\r", ""),
        ] {
            let keys = type_in(typed).0;
            let Some((_, Key::Line(line))) = keys.last() else { panic!("{typed:?}: {keys:?}") };
            assert_eq!(line, meant, "{typed:?}");
        }
    }

    #[test]
    fn a_line_is_shown_as_it_is_typed_and_rubbed_out_by_width() {
        assert_eq!(type_in(b"ab\x7f").1, "ab\x08 \x08");
        assert_eq!(type_in("训\x7f".as_bytes()).1, "训\x08 \x08\x08 \x08");
        assert_eq!(type_in(b"ab\x15").1, "ab\x08 \x08\x08 \x08");
    }

    #[test]
    fn control_keys_end_and_interrupt_also_inside_an_escape() {
        assert_eq!(type_in(b"ab\x03").0, [(3, Key::Interrupt)]);
        assert_eq!(type_in(b"\x1b[\x03").0, [(3, Key::Interrupt)]);
        assert_eq!(type_in(b"\x04").0, [(1, Key::End)]);
        assert_eq!(type_in(b"a\x04").0, []);
        assert_eq!(line(b"\x1b\r"), "");
    }

    #[test]
    fn bytes_behind_a_line_are_not_eaten() {
        let (keys, _) = type_in(b"1\rls -l\r");

        assert_eq!(keys.first(), Some(&(2, Key::Line("1".to_owned()))));
    }

    #[test]
    fn a_line_has_an_end() {
        let typed = [&vec![b'x'; 100_000][..], b"\r"].concat();

        assert_eq!(line(&typed).len(), MOST);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it_and_what_is_shown_is_text(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let (mut editor, mut echo) = (LineEditor::default(), Vec::new());
            for byte in bytes {
                editor.feed(byte, &mut echo);
                prop_assert!(editor.text.len() <= MOST && editor.partial.len() <= 4);
            }
            prop_assert!(String::from_utf8(echo).is_ok());
        }
    }
}
