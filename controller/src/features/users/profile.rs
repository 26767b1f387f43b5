//! What an account says of its owner: which texts are allowed.

use super::model::PatchMe;
use crate::authz::account::Account;
use crate::core::error::{Problem, Result};
use crate::core::text;

/// Longest name for people, in characters.
const DISPLAY_NAME_MAX: usize = 100;
/// Longest address for mail, in characters: what all three databases hold in an indexed column.
const EMAIL_MAX: usize = 190;
/// Longest telephone number, in characters.
const PHONE_MAX: usize = 32;
/// Fewest digits of a telephone number.
const PHONE_DIGITS: usize = 3;

/// Returns `old` with what `patch` changes, checked.
///
/// # Errors
///
/// `bad_field` (422) naming the field and what to write.
pub(super) fn changed(old: &Account, patch: PatchMe) -> Result<Account> {
    let mut new = Account {
        display_name: patch.display_name.over_required("display_name", old.display_name.clone())?,
        email: patch.email.over_required("email", old.email.clone())?,
        phone: patch.phone.over_required("phone", old.phone.clone())?,
        avatar_color: patch.avatar_color.over_required("avatar_color", old.avatar_color.clone())?,
        ..old.clone()
    };
    check(&mut new)?;
    Ok(new)
}

/// Checks what an account says of its owner, and writes the colour in small letters.
///
/// # Errors
///
/// `bad_field` (422) naming the field and what to write.
pub(super) fn check(account: &mut Account) -> Result<()> {
    text::line("display_name", &account.display_name, 0, DISPLAY_NAME_MAX)?;
    text::line("email", &account.email, 0, EMAIL_MAX)?;
    text::line("phone", &account.phone, 0, PHONE_MAX)?;
    let refuse = |detail: &str| Err(Problem::invalid("bad_field", detail));
    if !account.email.is_empty() && !is_email(&account.email) {
        return refuse("email: write an address such as alice@example.org, or nothing");
    }
    if !account.phone.is_empty() && !is_phone(&account.phone) {
        return refuse("phone: write digits, spaces and + - . ( ), or nothing");
    }
    account.avatar_color = account.avatar_color.to_ascii_lowercase();
    if !account.avatar_color.is_empty() && !is_color(&account.avatar_color) {
        return refuse(
            "avatar_color: write # and six hexadecimal digits, such as #1890ff, or nothing",
        );
    }
    Ok(())
}

/// Whether it looks like an address; whether mail arrives there only sending some would tell.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let is_plain = !text.chars().any(|c| c.is_whitespace() || "<>()[],;:\\\"".contains(c));
    let is_domain = !domain.split('.').any(str::is_empty);
    is_plain && is_domain && !local.is_empty() && !local.contains('@')
}

fn is_phone(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    let is_allowed = |c: char| c.is_ascii_digit() || " +-.()".contains(c);
    digits >= PHONE_DIGITS && text.chars().all(is_allowed)
}

fn is_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or_default();
    digits.len() == 6 && digits.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_numbers_and_colours_are_told_from_other_texts() {
        for good in ["alice@example.org", "a.b+c@x", "名@例子.中国"] {
            assert!(is_email(good), "{good}");
        }
        for bad in ["alice", "@x", "a@", "a@b@c", "a b@c", "a@.x", "a@x..y", "<a@x>"] {
            assert!(!is_email(bad), "{bad}");
        }
        assert!(is_phone("+86 (10) 1234-5678") && is_phone("110"));
        assert!(!is_phone("12") && !is_phone("call me") && !is_phone("+ - ()"));
        assert!(is_color("#1890ff"));
        assert!(
            !is_color("#1890fg") && !is_color("1890ff") && !is_color("#189") && !is_color("red")
        );
    }
}
