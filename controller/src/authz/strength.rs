//! Which passwords somebody may set: long enough, not among the commonest, not the account's name.
//!
//! How common a password is comes from zxcvbn: lists of leaked passwords, words and names, and the
//! patterns that people vary them by. It estimates how many guesses a patient guesser needs.

use zxcvbn::{Score, zxcvbn};

use crate::core::error::{Problem, Result};
use crate::core::secret::Secret;

/// Most bytes of a password; more would only cost time.
pub const PASSWORD_MAX: usize = 1_024;
/// A name of so many letters counts as contained; shorter ones stand in too many words.
const NAME_MIN: usize = 3;

/// Checks a password that somebody wants to set for the account called `name`.
///
/// # Errors
///
/// `weak_password` (422) saying what is asked for.
pub fn check(password: &Secret, name: &str, min_length: u32) -> Result<()> {
    let text = password.expose();
    let (chars, bytes) = (text.chars().count(), text.len());
    let weak = |detail: String| Err(Problem::invalid("weak_password", detail));
    if u32::try_from(chars).is_ok_and(|chars| chars < min_length) {
        return weak(format!("the password has {chars} characters; give at least {min_length}"));
    }
    if bytes > PASSWORD_MAX {
        return weak(format!("the password has {bytes} bytes; at most {PASSWORD_MAX} are allowed"));
    }
    if name.chars().count() >= NAME_MIN && text.to_lowercase().contains(&name.to_lowercase()) {
        return weak(format!("the password contains the account's name, {name}; choose another"));
    }
    let estimate = zxcvbn(text, &[name, "tianqi"]);
    if estimate.score() >= Score::Two {
        return Ok(());
    }
    let warning = estimate.feedback().and_then(zxcvbn::feedback::Feedback::warning);
    let because = warning.map(|warning| format!(" ({warning})")).unwrap_or_default();
    weak(format!(
        "the password is one of the first that anybody would guess{because}; three or four unrelated words make a good one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(password: &str, name: &str) -> Option<String> {
        let problem = check(&Secret::new(password.to_owned()), name, 10).err()?;
        assert_eq!(problem.code, "weak_password");
        Some(problem.detail)
    }

    #[test]
    fn short_and_endless_passwords_are_refused_with_their_length() {
        assert_eq!(refused("密码锁头云端显卡训练", "alice"), None);
        assert!(refused("123456789", "alice").unwrap().contains("9 characters"));
        assert!(refused(&"x".repeat(PASSWORD_MAX + 1), "alice").unwrap().contains("1025 bytes"));
    }

    #[test]
    fn the_commonest_passwords_are_refused_whatever_their_length() {
        for common in [
            "1234567890",
            "qwertyuiop",
            "password123",
            "Password123",
            "p@ssw0rd123",
            "1q2w3e4r5t",
            "iloveyou12",
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "abcdefghijkl",
            "tianqi1234",
        ] {
            let detail = refused(common, "alice");
            assert!(detail.is_some_and(|it| it.contains("guess")), "{common} was taken");
        }
    }

    #[test]
    fn a_password_with_the_accounts_name_in_it_is_refused() {
        let detail = refused("Xk9-ALICE-vm2q", "alice").unwrap();

        assert!(detail.contains("account's name"), "{detail}");
        assert_eq!(refused("Xk9-ALICE-vm2q", "bob"), None);
        assert_eq!(refused("correct horse battery", "or"), None, "two letters stand in any word");
    }

    #[test]
    fn ordinary_good_passwords_are_taken() {
        for good in
            ["correct horse battery", "a-long-enough-password", "Kq7#vexs2Lmz", "another password"]
        {
            assert_eq!(refused(good, "alice"), None, "{good}");
        }
    }
}
