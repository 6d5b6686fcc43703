//! What checkers of files that we ship say, each a Debian package: nothing.

mod monitoring;
mod packages;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bcache_tests::paths;

/// What a checker says, on both outputs, and whether it is content.
fn said(command: &mut Command) -> (String, bool) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

fn manual_pages() -> Vec<PathBuf> {
    let dir = fs::read_dir(paths::repository().join("man")).unwrap();
    let mut pages: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.len() > 40, "{} pages", pages.len());
    pages
}

#[test]
#[ignore = "mandoc"]
fn mandoc_has_nothing_to_say_of_manual_pages() {
    let (text, content) = said(Command::new("mandoc").arg("-Tlint").args(manual_pages()));
    assert!(content && text.is_empty(), "{text}");
}

#[test]
#[ignore = "man-db, groff-base"]
fn man_shows_manual_pages_without_a_warning() {
    let mut all = String::new();
    for page in manual_pages() {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(&page);
        man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80");
        let output = man.output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 500, "{}", page.display());
        all += &String::from_utf8_lossy(&output.stderr);
    }
    assert_eq!(all, "");
}
