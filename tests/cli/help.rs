//! What the programs say of themselves.

use std::collections::BTreeSet;
use std::fs;

use bcache_tests::{cmd, man, paths};
use bcache_tools::cli::{self, bcache::GROUPS};

#[test]
fn every_command_stands_in_one_group_of_help_and_the_groups_are_those_of_the_manual_page() {
    let said = cmd::ours("bcache", ["--help"]).unwrap().stdout;
    let programs = cli::programs();
    let bcache = programs.iter().find(|program| program.get_name() == "bcache").unwrap();
    let names: BTreeSet<&str> =
        bcache.get_subcommands().filter(|command| !command.is_hide_set()).map(|one| one.get_name()).collect();
    let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), names);
    assert_eq!(grouped.len(), names.len(), "one stands in two groups");

    // In this order, each with the beginning of what it does.
    let mut rest = said.as_str();
    for (title, names) in GROUPS {
        rest = rest.split_once(&format!("\n{title}:\n")).unwrap_or_else(|| panic!("{title}\n{said}")).1;
        for name in names {
            let about = bcache.find_subcommand(name).unwrap().get_about().unwrap().to_string();
            let word = about.split(' ').next().unwrap();
            let line = format!("  {name:<13} {word}");
            rest = rest.split_once(&line).unwrap_or_else(|| panic!("{line}\n{said}")).1;
        }
    }
    assert!(rest.contains("\nOptions:\n") && rest.contains("--version"), "{said}");
    assert!(said.lines().all(|line| line.len() <= 100), "{said}");

    let page = fs::read_to_string(paths::repository().join("man").join(man::BY_HAND)).unwrap();
    for (title, _) in GROUPS {
        assert!(page.contains(&format!("\n.SS {title}\n")), "{title}");
    }
}

fn all(command: &clap::Command, to: &mut Vec<clap::Command>) {
    to.push(command.clone());
    command.get_subcommands().for_each(|child| all(child, to));
}

/// The first line of help says what a command does, and is not what the code says of a type.
#[test]
fn help_begins_with_what_a_command_does() {
    let mut commands = Vec::new();
    for program in cli::programs().iter().chain(&cli::typed_programs()) {
        all(program, &mut commands);
    }
    for command in commands {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let first = about.split(' ').next().unwrap();
        assert!(about.len() > 10 && about.len() <= 130, "{name}: {about:?}");
        assert!(first.starts_with(|c: char| c.is_ascii_uppercase()), "{name}: {about:?}");
        let noun = ["A", "An", "The", "What", "Who", "How", "Arguments", "Options"].contains(&first);
        let of_dump = about.starts_with("The superblock") || about.starts_with("The table");
        assert!(!noun || of_dump, "{name}: {about:?}");
        assert!(!about.ends_with('.') && !about.contains('\n'), "{name}: {about:?}");
    }
}
