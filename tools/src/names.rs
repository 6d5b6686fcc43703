//! Which name a device will have, told before it has it.

use std::path::{Path, PathBuf};

use bcache_format::superblock::{Label, Superblock};

use crate::scan::{self, Found};
use crate::target::{self, Target};
use crate::{dm, expose};

/// What is unexpected about the name of a backing device with a label, a line each: nothing if it will be called so.
/// `formatted` are the devices whose old superblocks are about to go.
#[must_use]
pub fn notes(label: &Label, path: &Path, formatted: &[&Target]) -> Vec<String> {
    let text = label.to_text();
    if text.is_empty() {
        return Vec::new();
    }
    let others = others(formatted);
    told(&text, path, &others, is_taken).into_iter().collect()
}

/// Backing devices of the machine besides those.
fn others(formatted: &[&Target]) -> Vec<(PathBuf, String)> {
    let goes = |found: &Found| {
        let same =
            |target: &&Target| target::identity(target.path()).ok() == target::identity(&found.path).ok();
        formatted.iter().any(same)
    };
    let backing = |superblock: &Superblock| superblock.backing().is_some();
    let all = scan::all().into_iter().filter(|found| backing(&found.superblock) && !goes(found));
    all.map(|found| (found.path, found.superblock.label.to_text())).collect()
}

fn told(
    label: &str,
    path: &Path,
    others: &[(PathBuf, String)],
    is_taken: impl Fn(&str) -> bool,
) -> Option<String> {
    let numbered = || {
        let name = expose::numbered().find(|name| !is_taken(name)).unwrap_or_default();
        format!("{} will be /dev/mapper/{name}", path.display())
    };
    let Some(name) = dm::name_from_label(label) else {
        return Some(format!(
            "the label {label:?} makes no name (letters, digits and +-.:=@_ do), so {}",
            numbered()
        ));
    };
    if let Some((other, _)) = others.iter().find(|(_, other)| other == label) {
        return Some(format!("{} is labelled {label:?} as well; beside it {}", other.display(), numbered()));
    }
    is_taken(name).then(|| format!("/dev/mapper/{name} is there already, so {}", numbered()))
}

/// Whether a device cannot be called so.
fn is_taken(name: &str) -> bool {
    let of_kernel = name.starts_with("bcache") && Path::new("/sys/block").join(name).exists();
    of_kernel
        || Path::new("/dev/mapper").join(name).symlink_metadata().is_ok()
        || dm::describe(name).is_ok_and(|it| it.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_label_from_being_the_name_is_told() {
        let others = [(PathBuf::from("/dev/sdc"), "films".to_owned())];
        let said = |label: &str| {
            told(label, Path::new("/dev/sdb"), &others, |name| ["bcache0", "vg-lv"].contains(&name))
        };
        assert_eq!(said("data"), None);
        assert_eq!(
            said("vg-lv").unwrap(),
            "/dev/mapper/vg-lv is there already, so /dev/sdb will be /dev/mapper/bcache1"
        );
        assert_eq!(
            said("films").unwrap(),
            "/dev/sdc is labelled \"films\" as well; beside it /dev/sdb will be /dev/mapper/bcache1"
        );
        for label in ["control", "a b", "a/b", "x\n\u{1b}[2J"] {
            let said = said(label).unwrap();
            assert!(said.contains("makes no name") && said.ends_with("/dev/mapper/bcache1"), "{said}");
            assert!(!said.contains(['\n', '\u{1b}']), "{said:?}");
        }
    }
}
