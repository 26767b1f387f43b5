//! What the menu shows, and what a line means in it.

use super::*;
use crate::features::jumpbox::texts::Language;

const WINDOW: PtySize = PtySize { cols: 80, rows: 24 };

fn row(owner: &str, name: &str) -> MenuRow {
    MenuRow {
        id: uuid::Uuid::now_v7(),
        name: name.to_owned(),
        container_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        node: Some("node-1".to_owned()),
        phase: "running".to_owned(),
        owner: owner.to_owned(),
    }
}

fn menu(names: &[(&str, &str)]) -> Menu {
    let rows = names.iter().map(|(owner, name)| row(owner, name)).collect();
    Menu { rows, ..Menu::default() }
}

fn frame(texts: &'static Texts, size: PtySize, shows_owner: bool) -> Frame<'static> {
    Frame { texts, account: "alice", shows_owner, hint: String::new(), size }
}

fn entered(menu: &mut Menu, line: &str) -> Option<String> {
    match menu.choose(line, WINDOW) {
        Choice::Enter(row) => Some(format!("{}/{}", row.owner, row.name)),
        Choice::Show | Choice::Refresh | Choice::Quit | Choice::NoMatch(_) => None,
    }
}

#[test]
fn numbers_begin_at_one_and_names_are_exact() {
    let mut menu = menu(&[("alice", "train-7"), ("alice", "train-70"), ("bob", "web")]);

    for (line, expected) in [
        ("1", Some("alice/train-7")),
        ("3", Some("bob/web")),
        (" 2 ", Some("alice/train-70")),
        ("train-7", Some("alice/train-7")),
        ("bob/web", Some("bob/web")),
        ("web", Some("bob/web")),
        ("0", None),
        ("4", None),
        ("99999999999999999999999", None),
        ("alice/web", None),
    ] {
        assert_eq!(entered(&mut menu, line).as_deref(), expected, "{line}");
    }
}

#[test]
fn a_name_of_two_owners_filters_until_it_is_said_whose() {
    let mut menu = menu(&[("alice", "web"), ("bob", "web"), ("bob", "db")]);

    assert_eq!(menu.choose("web", WINDOW), Choice::Show);
    assert_eq!(menu.shown().len(), 2);
    assert_eq!(entered(&mut menu, "bob/web").as_deref(), Some("bob/web"));
    assert_eq!(entered(&mut menu, "3").as_deref(), Some("bob/db"), "numbers stay");
    assert_eq!(menu.choose("nothing", WINDOW), Choice::NoMatch("nothing".to_owned()));
    assert_eq!(menu.filter, "web", "a filter that finds nothing is not kept");
    assert_eq!(menu.choose("r", WINDOW), Choice::Refresh);
    assert_eq!(menu.shown().len(), 3);
    assert_eq!(menu.choose("q", WINDOW), Choice::Quit);
}

#[test]
fn more_rows_than_the_window_has_are_paged_through() {
    let names: Vec<String> = (0..40).map(|i| format!("i-{i:02}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| ("alice", name.as_str())).collect();
    let mut menu = menu(&pairs);
    let texts = Language::English.texts();

    let first = menu.draw(&frame(texts, WINDOW, false));
    assert!(first.contains("i-00") && first.contains("i-15") && !first.contains("i-16"), "{first}");
    assert!(first.contains("page 1 of 3"));
    assert!(first.lines().count() < usize::from(WINDOW.rows), "it fits: {first}");
    menu.choose("", WINDOW);
    assert!(menu.draw(&frame(texts, WINDOW, false)).contains("i-16"));
    menu.choose("", WINDOW);
    menu.choose("", WINDOW);
    assert_eq!(menu.page, 0, "after the last page comes the first");
    let tiny = PtySize { cols: 1, rows: 1 };
    assert!(menu.draw(&frame(texts, tiny, false)).contains("i-02"));
}

#[test]
fn a_row_says_number_name_short_id_node_phase_and_to_admins_the_owner() {
    let mut menu = menu(&[("alice", "train-7"), ("bob", "a")]);
    menu.rows[1].container_id = None;
    menu.rows[1].node = None;
    menu.rows[1].phase = "exited".to_owned();

    let english = menu.draw(&frame(Language::English.texts(), WINDOW, true));
    let chinese = menu.draw(&frame(Language::Chinese.texts(), WINDOW, false));

    assert!(english.contains("1    train-7  0123456789ab  node-1  running  alice"), "{english}");
    assert!(english.contains("2    a        -             -       stopped  bob"), "{english}");
    assert!(chinese.contains("1     train-7  0123456789ab  node-1  运行中"), "{chinese}");
    assert!(!chinese.contains("alice\r\n"), "{chinese}");
}

#[test]
fn names_cannot_steer_the_terminal() {
    let mut menu = menu(&[("alice", "x")]);
    menu.rows[0].node = Some("\u{1b}[2Jnode\u{7}".to_owned());

    let drawn = menu.draw(&frame(Language::English.texts(), WINDOW, false));

    assert!(drawn.contains("[2Jnode") && !drawn.contains("\u{1b}[2J"), "{drawn:?}");
}
