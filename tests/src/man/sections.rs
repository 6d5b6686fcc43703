//! What a command line does not know of itself: how it ends, which files it uses, and which pages say more.

use std::fmt::Write as _;

/// How a command may end besides what every command does.
const ENDS: &[(&str, &[(&str, &str)])] = &[
    (
        "bcache-fsck",
        &[
            ("0", "nothing was found"),
            ("1", "what was found is repaired"),
            ("4", "something is left; 5 after a repair"),
            (
                "8",
                "the check did not work, the devices are not those of one set or not whole, or the repair is refused",
            ),
            ("16", "the command line makes no sense"),
            ("32", "canceled; 36 at the question, so that something is left"),
        ],
    ),
    ("bcache-doctor", &[("1", "something wants to be looked at"), ("8", "a device could not be looked at")]),
    ("bcache-export", &[("1", "something is missing from what was written, and was named"), INPUT]),
    ("bcache-salvage", &[("1", "something is lost, or could not be told, and was named"), INPUT]),
    ("bcache-flush", &[("1", "something is left in the cache, and was named"), INPUT]),
    ("bcache-map", &[INPUT]),
    ("bcache-undo", &[INPUT]),
    ("bcache-image", &[INPUT]),
    ("bcache-restore", &[INPUT]),
    ("bcache-backup", &[INPUT]),
];

const INPUT: (&str, &str) =
    ("8", "an input is no device of bcache's, or not the file that it should be; nothing was written");

/// Files, by the commands that use them.
const FILES: &[(&[&str], &str, &str)] = &[
    (
        &[
            "bcache-attach",
            "bcache-detach",
            "bcache-engine",
            "bcache-forget",
            "bcache-get",
            "bcache-metrics",
            "bcache-register",
            "bcache-reload",
            "bcache-resize",
            "bcache-set",
            "bcache-set-cachemode",
            "bcache-set-label",
            "bcache-status",
            "bcache-stop",
            "bcache-unregister",
            "bcache-upgrade",
            "bcache-volume",
            "bcache-volume-create",
            "bcache-volume-remove",
        ],
        "/run/bcache",
        "sockets of the running engines, and what they keep for their successors",
    ),
    (
        &["bcache-engine", "bcache-reload", "bcache-set", "bcache-register"],
        "/etc/bcache/bcache.conf",
        "settings that last; see bcache.conf(5)",
    ),
    (
        &["bcache-fsck", "bcache-undo"],
        "/var/log",
        "where what a repair overwrites is kept, unless --undo says where",
    ),
    (
        &[
            "bcache-backup",
            "bcache-doctor",
            "bcache-dump",
            "bcache-dump-btree",
            "bcache-dump-extents",
            "bcache-dump-journal",
            "bcache-dump-prios",
            "bcache-dump-super",
            "bcache-dump-uuids",
            "bcache-export",
            "bcache-flush",
            "bcache-fsck",
            "bcache-image",
            "bcache-map",
            "bcache-restore",
            "bcache-salvage",
            "bcache-serve",
            "bcache-super-show",
            "make-bcache",
            "bcache-make",
        ],
        "DEV",
        "a block device, or a file that has what would be on one",
    ),
    (
        &["bcache-show", "bcache-tree", "bcache-status"],
        "/sys/fs/bcache",
        "what the kernel's own bcache has in use",
    ),
    (&["bcache-show", "bcache-tree"], "/run/bcache", "sockets of the running engines"),
    (&["bcache-version"], "/usr/sbin/bcache", "the program"),
    (
        &["bcache-metrics"],
        "/usr/share/ubcache/alerts.yml, /usr/share/ubcache/board.json",
        "alerts for Prometheus and a board for Grafana",
    ),
    (
        &["bcache-completions"],
        "/usr/share/bash-completion/completions, /usr/share/zsh/vendor-completions, /usr/share/fish/vendor_completions.d",
        "where the package puts these scripts",
    ),
    (
        &["bcache-volume", "bcache-volume-create", "bcache-volume-remove"],
        "/dev/mapper",
        "where volumes appear",
    ),
];

/// Pages that say more, besides bcache(8).
const MORE: &[(&str, &str)] = &[
    ("bcache-fsck", "bcache-findings(7), bcache-undo(8), bcache-salvage(8), bcache-doctor(8), fsck(8)"),
    ("bcache-undo", "bcache-fsck(8)"),
    ("bcache-doctor", "bcache-fsck(8), bcache-salvage(8)"),
    ("bcache-salvage", "bcache-fsck(8), bcache-export(8), bcache-doctor(8)"),
    ("bcache-export", "bcache-salvage(8), bcache-flush(8), bcache-map(8)"),
    ("bcache-flush", "bcache-export(8), bcache-fsck(8)"),
    ("bcache-map", "bcache-export(8), bcache-format(5)"),
    ("bcache-image", "bcache-restore(8)"),
    ("bcache-backup", "bcache-restore(8)"),
    ("bcache-restore", "bcache-backup(8), bcache-image(8)"),
    ("bcache-metrics", "bcache-status(8)"),
    ("bcache-set", "bcache-get(8), bcache-settings(7), bcache.conf(5)"),
    ("bcache-get", "bcache-set(8), bcache-settings(7)"),
    ("bcache-reload", "bcache.conf(5), bcache-set(8)"),
    ("bcache-serve", "bcache-engine(8), bcache-settings(7), qemu-img(1)"),
    ("bcache-engine", "bcache-register(8), bcache-stop(8), bcache-upgrade(8), dmsetup(8)"),
    ("bcache-register", "bcache-engine(8), bcache-unregister(8), udev(7)"),
    ("bcache-make", "make-bcache(8), bcache-register(8), bcache-format(5)"),
    ("make-bcache", "bcache-make(8), bcache-register(8), bcache-format(5)"),
    ("bcache-super-show", "bcache-show(8), bcache-format(5)"),
    ("bcache-show", "bcache-super-show(8), bcache-status(8), bcache-format(5)"),
];

/// The sections behind the options of the page `name`, whose command line has `help` below its options.
pub fn behind(name: &str, help: &str) -> String {
    let mut page = exit_status(name);
    page += &examples(help);
    let files: Vec<_> = FILES.iter().filter(|(users, ..)| users.contains(&name)).collect();
    if !files.is_empty() {
        page += ".SH FILES\n";
        for (_, file, what) in files {
            let _ = writeln!(page, ".TP\n\\fI{file}\\fR\n{}", escaped(what));
        }
    }
    page + &see_also(name)
}

fn exit_status(name: &str) -> String {
    let own = ENDS.iter().find(|(command, _)| *command == name).map_or(&[][..], |(_, ends)| ends);
    let all = [
        ("0", "all went well"),
        ("1", "it did not; one line says what, where, and what to do"),
        ("2", "the command line makes no sense"),
    ];
    // fsck(8) has its own numbers for everything.
    let common =
        all.into_iter().filter(|(code, _)| name != "bcache-fsck" && !own.iter().any(|(own, _)| own == code));
    let mut ends: Vec<(&str, &str)> = common.chain(own.iter().copied()).collect();
    ends.sort_by_key(|(code, _)| code.parse::<u32>().unwrap_or(u32::MAX));
    let mut page = ".SH \"EXIT STATUS\"\n".to_owned();
    for (code, what) in ends {
        let _ = writeln!(page, ".TP\n{code}\n{}", escaped(what));
    }
    page
}

/// Examples are what follows a line that says so, to the first empty line; what else there is are notes.
fn examples(help: &str) -> String {
    let (mut examples, mut notes, mut inside) = (String::new(), String::new(), false);
    for line in help.lines() {
        if line.starts_with("Example") {
            inside = true;
        } else if inside && line.starts_with("  ") {
            let _ = writeln!(examples, "{}", escaped(line.trim_start_matches("  ")));
        } else {
            inside = false;
            let _ = writeln!(notes, "{}", if line.is_empty() { ".PP".to_owned() } else { escaped(line) });
        }
    }
    let mut page = String::new();
    if !examples.is_empty() {
        let _ = write!(page, ".SH EXAMPLES\n.nf\n{examples}.fi\n");
    }
    let notes = notes.trim_start_matches(".PP\n").trim_end_matches(".PP\n");
    if !notes.is_empty() {
        let _ = write!(page, ".SH NOTES\n{notes}");
    }
    page
}

fn see_also(name: &str) -> String {
    let more = MORE.iter().find(|(page, _)| *page == name).map(|(_, more)| *more);
    // A command of a command: the one above it.
    let parent = ["bcache-dump-", "bcache-volume-"].iter().find(|prefix| name.starts_with(*prefix));
    let parent = parent.map(|prefix| format!("{}(8)", prefix.trim_end_matches('-')));
    let pages = more.map(str::to_owned).or(parent);
    let pages = pages.map(|pages| format!(", {}", escaped(&pages))).unwrap_or_default();
    format!(".SH \"SEE ALSO\"\nbcache(8){pages}\n")
}

/// A line that is text, whatever it begins with.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
