//! The manual pages in `man/` and the scripts in `completions/` say what the programs say.

use std::fs;

use bcache_tests::{completions, man, paths};

#[test]
fn the_pages_are_those_that_cargo_man_writes() {
    let dir = paths::repository().join("man");
    let mut found: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.retain(|name| name.ends_with(".8") || name.ends_with(".7"));
    found.retain(|name| name != man::BY_HAND);
    found.sort();
    let pages = man::pages().unwrap();
    assert_eq!(found, pages.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "run `cargo man`");
    for (name, text) in pages {
        let written = fs::read_to_string(dir.join(&name)).unwrap();
        assert!(written == text, "{name} is out of date: run `cargo man`");
    }
}

/// Readers look for these, in this order.
const SECTIONS: [&str; 8] =
    ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES", "FILES", "\"SEE ALSO\""];

#[test]
fn each_page_of_a_command_has_the_sections_that_readers_look_for() {
    let by_hand = fs::read_to_string(paths::repository().join("man").join(man::BY_HAND)).unwrap();
    let mut pages = man::pages().unwrap();
    pages.push((man::BY_HAND.to_owned(), by_hand));
    for (name, text) in pages.iter().filter(|(name, _)| name.ends_with(".8")) {
        let places: Vec<Option<usize>> =
            SECTIONS.iter().map(|section| text.find(&format!("\n.SH {section}\n"))).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{name}: {places:?}");
    }
}

#[test]
fn the_completions_are_those_that_cargo_man_writes() {
    let dir = paths::repository().join("completions");
    for (name, text) in completions::scripts().unwrap() {
        let written = fs::read_to_string(dir.join(&name)).unwrap_or_default();
        assert!(written == text, "completions/{name} is out of date: run `cargo man`");
    }
}

#[test]
fn the_page_by_hand_names_every_command() {
    let page = fs::read_to_string(paths::repository().join("man").join(man::BY_HAND)).unwrap();
    let bcache =
        bcache_tools::cli::programs().into_iter().find(|program| program.get_name() == "bcache").unwrap();
    for command in bcache.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        assert!(page.contains(&format!("\\fB{name}")), "{name} is missing");
    }
}
