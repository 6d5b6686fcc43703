//! The manual pages in `man/` say what the programs say.

use std::fs;

use bcache_tests::{man, paths};

#[test]
fn the_pages_are_those_that_cargo_man_writes() {
    let dir = paths::repository().join("man");
    let mut found: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.retain(|name| name.ends_with(".8") || name.ends_with(".7"));
    found.sort();
    let pages = man::pages().unwrap();
    assert_eq!(found, pages.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "run `cargo man`");
    for (name, text) in pages {
        let written = fs::read_to_string(dir.join(&name)).unwrap();
        assert!(written == text, "{name} is out of date: run `cargo man`");
    }
}
