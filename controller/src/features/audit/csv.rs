//! Rows as comma-separated values (RFC 4180) that a spreadsheet may open.
//!
//! The text is UTF-8 and begins with a byte order mark: without it Excel takes Chinese names for
//! something else. Programs read it as `utf-8-sig`. A cell that a spreadsheet would take for a formula
//! gets an apostrophe before it.

use super::store::AuditRow;
use crate::core::timestamp::Timestamp;

/// The mark, and the names of the columns.
pub(super) const HEAD: &str = "\u{feff}id,at,actor_id,actor_name,actor_kind,via,action,target_kind,\
     target_id,outcome,remote_address,request_id,detail\r\n";

/// Characters that begin a formula, or a cell of their own, in one spreadsheet or another.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Returns the line of one event.
pub(super) fn line(row: &AuditRow) -> String {
    let cells = [
        row.id.to_string(),
        Timestamp::from_stored(row.at).to_string(),
        row.actor_id.map(|id| id.to_string()).unwrap_or_default(),
        cell(&row.actor_name),
        cell(&row.actor_kind),
        cell(&row.via),
        cell(&row.action),
        cell(&row.target_kind),
        cell(&row.target_id),
        cell(&row.outcome),
        cell(&row.remote_address),
        cell(&row.request_id),
        cell(&row.detail),
    ];
    format!("{}\r\n", cells.join(","))
}

fn cell(text: &str) -> String {
    // A formula may also hide behind blanks, which some programs cut.
    let is_formula = text.trim_start_matches([' ', '\n']).starts_with(FORMULA);
    let mark = if is_formula { "'" } else { "" };
    format!("\"{mark}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_looks_like_a_formula_is_text() {
        for formula in ["=1+1", "+1", "-1", "@sum(a1)", "\t=1", "\r=1", " =1", "\n@x"] {
            assert!(cell(formula).starts_with("\"'"), "{formula:?}");
        }
        assert_eq!(cell("a=1"), "\"a=1\"");
    }

    #[test]
    fn quotes_commas_and_line_ends_stay_inside_their_cell() {
        assert_eq!(cell("a \"b\", c\r\nd 名"), "\"a \"\"b\"\", c\r\nd 名\"");
    }
}
