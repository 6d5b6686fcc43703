//! Packages of several distributions: what their own tools say, and that all have the same files.
//!
//! How far each is tried here: Debian's is made by cargo-deb and read by lintian; the rpm is made by rpmbuild of Debian,
//! and installed in an empty root, without its dependencies and scripts; Arch's is made by makepkg of Debian, from
//! programs that are there; the flake is read by Nix, but nothing is built, for nixpkgs would have to be fetched.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use bcache_tests::package::{make, programs};
use bcache_tests::{cmd, paths};

/// What `packaging/install` needs besides programs.
const PARTS: [&str; 7] = ["packaging", "udev", "man", "completions", "README.md", "CHANGELOG.md", "LICENSE"];

/// A copy of the repository, as far as packages need it.
fn tree(to: &Path) {
    fs::create_dir_all(to).unwrap();
    let parts = PARTS.iter().map(|part| paths::repository().join(part));
    cmd::done(Command::new("cp").arg("-r").args(parts).arg(to)).unwrap();
}

/// Files below a directory, as paths that begin with a slash.
fn files(top: &Path) -> BTreeSet<String> {
    let said =
        cmd::done(Command::new("find").arg(top).args(["!", "-type", "d", "-printf", "/%P\n"])).unwrap();
    said.lines().map(str::to_owned).collect()
}

fn install(top: &Path, settings: &[&str]) -> BTreeSet<String> {
    let mut install = Command::new(paths::repository().join("packaging/install"));
    install.arg(top).arg(format!("programs={}", programs().unwrap().display())).args(settings);
    cmd::done(&mut install).unwrap();
    files(top)
}

#[test]
#[ignore = "lintian, cargo-deb"]
fn lintian_has_neither_errors_nor_warnings() {
    let dir = paths::scratch().unwrap();
    let package = make(dir.path()).unwrap();
    let said = cmd::run(Command::new("lintian").args(["--fail-on", "error,warning"]).arg(&package)).unwrap();
    assert!(said.code == 0 && said.stdout.is_empty(), "{said:?}");
}

#[test]
#[ignore = "cargo-deb"]
fn other_packages_have_what_the_debian_package_has() {
    let dir = paths::scratch().unwrap();
    let package = make(dir.path()).unwrap();
    let unpacked = dir.path().join("unpacked");
    cmd::done(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked)).unwrap();
    // Debian compresses, and has places of its own for what there is to say about licence and changes.
    let plain = |files: BTreeSet<String>| -> BTreeSet<String> {
        let kept = files.iter().filter(|file| !file.starts_with("/usr/share/doc/"));
        kept.map(|file| file.trim_end_matches(".gz").to_owned()).collect()
    };
    let theirs = install(&dir.path().join("installed"), &["zshdir=/usr/share/zsh/vendor-completions"]);
    assert_eq!(plain(theirs), plain(files(&unpacked)));
}

#[test]
#[ignore = "runs a script"]
fn what_is_installed_elsewhere_refers_to_programs_there() {
    let dir = paths::scratch().unwrap();
    let top = dir.path().join("installed");
    let list = install(&top, &["prefix=/opt/ubcache", "sbindir=/opt/ubcache/bin"]);
    assert!(list.iter().all(|file| file.starts_with("/opt/ubcache/")), "{list:?}");
    let mut referring = 0;
    for file in list.iter().filter(|file| file.starts_with("/opt/ubcache/lib/")) {
        let text = fs::read_to_string(top.join(file.trim_start_matches('/'))).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(!line.contains("/usr/sbin/bcache"), "{file}: {line}");
            referring += usize::from(line.contains("/opt/ubcache/bin/bcache"));
        }
    }
    assert!(referring >= 8, "{referring}");
}

#[test]
#[ignore = "rpm"]
fn an_rpm_has_rules_and_units_in_fedoras_places() {
    let dir = paths::scratch().unwrap();
    let at = |name: &str| dir.path().join(name);
    tree(&at("ubcache-0.1.0"));
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(dir.path())
        .args(["-czf", "ubcache-0.1.0.tar.gz", "ubcache-0.1.0"])
        .current_dir(dir.path());
    cmd::done(&mut tar).unwrap();
    let mut build = Command::new("rpmbuild");
    build.arg("-bb").arg(paths::repository().join("packaging/ubcache.spec"));
    for (name, value) in [
        ("_topdir", at("top")),
        ("_sourcedir", dir.path().to_owned()),
        ("_rpmdir", at("rpms")),
        ("_tmppath", at("tmp")),
        ("programs", programs().unwrap()),
        // As Fedora has it: Debian's rpm says /usr/bin/../sbin nowhere else.
        ("_sbindir", "/usr/sbin".into()),
        ("_binary_payload", "w1.gzdio".into()),
    ] {
        build.arg("--define").arg(format!("{name} {}", value.display()));
    }
    fs::create_dir(at("tmp")).unwrap();
    cmd::done(&mut build).unwrap();
    let rpms = files(&at("rpms"));
    let [rpm] = rpms.iter().collect::<Vec<_>>().try_into().unwrap();
    let rpm = at("rpms").join(rpm.trim_start_matches('/'));
    let root = at("root");
    let mut install = Command::new("rpm");
    install.arg("--root").arg(&root).args(["--nodeps", "--noscripts", "--install"]).arg(&rpm);
    cmd::done(&mut install).unwrap();
    for file in [
        "usr/sbin/bcache",
        "usr/sbin/fsck.bcache",
        "usr/lib/udev/rules.d/69-bcache.rules",
        "usr/lib/udev/probe-bcache",
        "usr/lib/systemd/system/bcache@.service",
        "usr/lib/systemd/system/bcache.target",
        "usr/lib/systemd/system-shutdown/bcache",
        "usr/lib/dracut/modules.d/90bcache/module-setup.sh",
        "usr/share/man/man8/bcache.8",
        "usr/share/zsh/site-functions/_bcache",
    ] {
        assert!(root.join(file).symlink_metadata().is_ok(), "{file}");
    }
    let said = cmd::done(Command::new("rpm").args(["-qp", "--provides"]).arg(&rpm)).unwrap();
    assert!(said.contains("bcache-tools = 1.1\n"), "{said}");
    let shown = cmd::done(Command::new(root.join("usr/sbin/bcache")).arg("version")).unwrap();
    assert!(shown.contains("1.1"), "{shown}");
}

#[test]
#[ignore = "makepkg, root"]
fn makepkg_makes_a_package_for_arch() {
    let dir = paths::scratch().unwrap();
    tree(&dir.path().join("tree"));
    cmd::done(Command::new("chown").args(["-R", "nobody"]).arg(dir.path())).unwrap();
    // makepkg wants not to be root; the way to here may be closed to others.
    let mut makepkg = Command::new("setpriv");
    makepkg.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    makepkg.args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "makepkg", "--nodeps"]);
    makepkg.current_dir(dir.path().join("tree/packaging")).env("programs", programs().unwrap());
    for place in ["BUILDDIR", "PKGDEST", "HOME"] {
        makepkg.env(place, dir.path());
    }
    makepkg.env("PKGEXT", ".pkg.tar");
    cmd::done(&mut makepkg).unwrap();
    let made = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let package = made.into_iter().find(|path| path.extension().is_some_and(|end| end == "tar")).unwrap();
    let list = cmd::done(Command::new("tar").arg("-tf").arg(&package)).unwrap();
    for file in [
        ".PKGINFO",
        "usr/bin/bcache",
        "usr/bin/fsck.bcache",
        "usr/lib/udev/rules.d/69-bcache.rules",
        "usr/lib/initcpio/install/bcache",
        "usr/lib/systemd/system/bcache.target",
    ] {
        assert!(list.lines().any(|line| line == file), "{file}\n{list}");
    }
    assert!(!list.contains("usr/sbin"), "{list}");
    let rules =
        Command::new("tar").arg("-xOf").arg(&package).arg("usr/lib/udev/rules.d/69-bcache.rules").output();
    let rules = String::from_utf8(rules.unwrap().stdout).unwrap();
    assert!(rules.contains("/usr/bin/bcache-register") && !rules.contains("/usr/sbin/bcache"), "{rules}");
}

#[test]
#[ignore = "nix-bin"]
fn nix_reads_the_flake() {
    let flake = paths::repository().join("flake.nix");
    let text = cmd::done(Command::new("nix-instantiate").arg("--parse").arg(&flake)).unwrap();
    assert!(text.contains("buildRustPackage") && text.contains("nixosModules"), "{text}");
}

#[test]
#[ignore = "shellcheck"]
fn shellcheck_has_nothing_to_say_of_what_is_installed() {
    let top = paths::repository();
    let list = [
        "packaging/install",
        "tools/debian/postinst",
        "tools/debian/postrm",
        "tools/debian/prerm",
        "udev/compat/bcache-register",
        "udev/compat/probe-bcache",
        "udev/dracut/90bcache/module-setup.sh",
        "udev/initramfs-tools/hook",
        "udev/mkinitcpio/install",
        "udev/system-shutdown",
        "udev/system-sleep",
    ];
    // What a distribution's own functions are is not known here.
    let mut check = Command::new("shellcheck");
    let said = cmd::run(check.args(["--exclude", "SC1091"]).args(list).current_dir(top)).unwrap();
    assert!(said.code == 0, "{}", said.stdout);
}
