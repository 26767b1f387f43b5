//! Everything that a controller keeps, as bytes, to look for what must not be in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

/// Words that must not be found anywhere, each with what it is.
#[derive(Clone, Debug, Default)]
pub struct Planted(Vec<(String, String)>);

impl Planted {
    /// Remembers a secret.
    ///
    /// # Panics
    ///
    /// When it is so short that it would be found by chance.
    pub fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= 12, "{what} is too short to look for");
        self.0.push((what.to_owned(), secret.to_owned()));
    }

    /// Remembers a PEM by its lines, which are what would be found of it.
    pub fn add_pem(&mut self, what: &str, pem: &str) {
        for line in pem.lines().filter(|line| !line.starts_with('-') && line.len() >= 12) {
            self.add(what, line);
        }
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Makes ready to look for them: as they are, in hexadecimal, and in base64.
    ///
    /// # Panics
    ///
    /// When there are none.
    #[must_use]
    pub fn search(&self) -> Search {
        assert!(!self.0.is_empty(), "nothing to look for");
        let mut forms = Vec::new();
        for (what, secret) in &self.0 {
            let plain = secret.as_bytes();
            let mut add = |form: String| forms.push((what.clone(), form));
            add(secret.clone());
            add(hex::encode(plain));
            add(hex::encode_upper(plain));
            base64_of(plain).into_iter().for_each(add);
        }
        let finder = AhoCorasick::new(forms.iter().map(|(_, form)| form)).expect("words");
        Search { finder, what: forms.into_iter().map(|(what, _)| what).collect() }
    }
}

/// A search for planted words.
#[derive(Debug)]
pub struct Search {
    finder: AhoCorasick,
    what: Vec<String>,
}

impl Search {
    /// Returns what is found in `bytes`.
    #[must_use]
    pub fn found_in(&self, bytes: &[u8]) -> BTreeSet<String> {
        let found = self.finder.find_overlapping_iter(bytes);
        found.map(|found| self.what[found.pattern().as_usize()].clone()).collect()
    }
}

/// Returns what of `secret` is the same in base64 wherever it stands in a longer text: for each of
/// the three places in a group, the characters that depend on the secret alone, in both alphabets.
fn base64_of(secret: &[u8]) -> Vec<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut forms = Vec::new();
    for shift in 0..3 {
        let bits: Vec<u8> = std::iter::repeat_n(0, shift)
            .chain(secret.iter().copied())
            .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
            .collect();
        let whole = bits.chunks_exact(6).skip((shift * 8).div_ceil(6));
        let text: String = whole
            .map(|six| six.iter().fold(0_usize, |sum, bit| sum << 1 | usize::from(*bit)))
            .map(|at| char::from(ALPHABET[at]))
            .collect();
        forms.push(text.replace('+', "-").replace('/', "_"));
        forms.push(text);
    }
    forms
}

/// Returns every value of every table of a SQLite database, blobs as they are. Values that stand on
/// several pages of the file are whole here, which they are not in the file.
pub async fn tables(file: &Path) -> Vec<(String, Vec<u8>)> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db = options.connect().await.expect("the database opens");
    let names = "select name from sqlite_master where type = 'table'";
    let names = column(&mut db, names.to_owned()).await;
    assert!(names.len() > 10, "{} tables", names.len());
    let mut dump = Vec::new();
    for name in names {
        let table = String::from_utf8(name).expect("a name");
        let columns = format!("select name from pragma_table_info('{table}')");
        for name in column(&mut db, columns).await {
            let name = String::from_utf8(name).expect("a name");
            let sql = format!(
                "select cast(\"{name}\" as blob) from \"{table}\" where \"{name}\" is not null"
            );
            let values = column(&mut db, sql).await;
            dump.extend(values.into_iter().map(|value| (format!("{table}.{name}"), value)));
        }
    }
    dump
}

async fn column(db: &mut SqliteConnection, sql: String) -> Vec<Vec<u8>> {
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(db).await.expect("a column");
    rows.into_iter().map(|row| row.try_get_unchecked(0).expect("bytes")).collect()
}

/// Returns every file under `folder` but those whose name is in `except`.
pub fn files(folder: &Path, except: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            found.extend(files(&path, except));
        } else if kind.is_file() && !except.iter().any(|name| entry.file_name() == *name) {
            // A file may go away meanwhile.
            let bytes = fs::read(&path).unwrap_or_default();
            found.push((path, bytes));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_and_at_every_place() {
        let mut planted = Planted::default();
        planted.add("word", "correct-horse?>");
        // In base64 at each place of a group, in hexadecimal of both sizes.
        for text in [
            "a correct-horse?> b",
            "636F72726563742D686F7273653F3E",
            "61636f72726563742d686f7273653f3e61",
            "Y29ycmVjdC1ob3JzZT8+",
            "YWNvcnJlY3QtaG9yc2U/Pg==",
            "YWFjb3JyZWN0LWhvcnNlPz4=",
            "Y29ycmVjdC1ob3JzZT8-",
        ] {
            let found = planted.search().found_in(text.as_bytes());
            assert_eq!(found, BTreeSet::from(["word".to_owned()]), "{text}");
        }
        assert!(planted.search().found_in(b"correct-horse").is_empty());
    }
}
