//! What shape the code has: modules that need each other in a circle, long functions, functions of many arguments, long
//! files. The code is as rustfmt leaves it, so lines tell what is what.
//!
//! A directory and its files are one thing: that a file names something of the `mod.rs` above it closes no circle. Nor
//! does `CacheSet`, which all modules of a running set add to; `set/mod.rs` says which of its methods are where.

use crate::paths::repository;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Lines of a function.
const LINES_MAX: usize = 60;
/// Arguments of a function besides `self`.
const ARGUMENTS_MAX: usize = 5;
/// Lines of a file without its unit tests. One that is longer says why in its head.
const FILE_LINES_MAX: usize = 400;
/// How such a reason begins.
const REASON: &str = "//! Long because ";
/// What all may name.
const KNOWN_TO_ALL: &str = "CacheSet";

/// Functions that may be long, or have many arguments.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Lists: a line for each thing, in an order that matters or is looked up.
    ("tools/src/daemon/confine.rs", "allowed"),
    ("tools/src/cli/metrics.rs", "node_exporter"),
    ("tools/src/cli/status.rs", "text_of"),
    ("tools/src/cli/doctor.rs", "tell_backing"),
    // One rule after the other, each of which needs what those before it found.
    ("engine/src/fsck/check/backings.rs", "against_cache"),
    ("engine/src/fsck/check/extents.rs", "pass"),
    ("engine/src/fsck/check/journal.rs", "pass"),
    ("engine/src/fsck/evidence.rs", "recover"),
    ("engine/src/fsck/lost.rs", "buckets"),
    ("engine/src/fsck/view/descend.rs", "descend"),
    // Steps of a program from its command line to its exit code.
    ("tools/src/cli/flush.rs", "run"),
    ("tools/src/cli/fsck.rs", "run"),
    ("tools/src/cli/fsck.rs", "repair_now"),
    ("tools/src/cli/dump/btree.rs", "print_node"),
    ("tools/src/cli/salvage.rs", "report"),
    ("tools/src/cli/salvage.rs", "image"),
    ("tools/src/cli/serve.rs", "clients"),
    ("tools/src/daemon/attach.rs", "leave"),
    ("tools/src/daemon/front.rs", "create"),
    ("tools/src/daemon/front.rs", "another"),
    ("tools/src/devices.rs", "open_for"),
    ("engine/src/fsck/repair/mod.rs", "rewrite"),
    ("engine/src/fsck/view/devices.rs", "read_into"),
];

/// A module by its path in the crate; the crate itself is the empty one.
type Module = Vec<String>;

/// A crate's source: of each module its file and its text, without comments, strings and unit tests.
struct Source {
    text: BTreeMap<Module, String>,
    /// What a module gives on under a name: where it is.
    given_on: BTreeMap<(Module, String), Vec<String>>,
}

/// Files of a crate that are not tests, from the top of the repository.
fn files(krate: &str) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        let mut entries: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !["tests", "rules"].contains(&&*name) {
                walk(&path, found);
            } else if name.ends_with(".rs")
                && !["tests.rs", "proptests.rs", "rules.rs", "sim_bugs.rs"].contains(&&*name)
            {
                found.push(path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&repository().join(krate).join("src"), &mut found);
    found
}

/// A file's text up to its unit tests.
fn code_of(file: &str) -> String {
    let text = std::fs::read_to_string(repository().join(file)).unwrap();
    let end = text.find("\n#[cfg(test)]\nmod tests {").map_or(text.len(), |at| at + 1);
    text[..end].to_owned()
}

/// Without comments and what is in strings.
fn bare(text: &str) -> String {
    let mut bare = String::new();
    for line in text.lines() {
        let mut in_string = false;
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' if in_string => drop(chars.next()),
                '"' => in_string = !in_string,
                '/' if !in_string && chars.peek() == Some(&'/') => break,
                _ if !in_string => bare.push(c),
                _ => {}
            }
        }
        bare.push('\n');
    }
    bare
}

/// Whether a line begins a `use`.
fn is_import(line: &str) -> bool {
    line.starts_with("use ") || (line.starts_with("pub") && line.contains(" use "))
}

/// The paths in the tree of a `use`.
fn unfold(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else { return vec![tree.to_owned()] };
    let (prefix, inner) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| unfold(&format!("{prefix}{}", part.trim()))).collect()
}

impl Source {
    fn of(krate: &str) -> Self {
        let src = format!("{krate}/src/");
        let mut text = BTreeMap::new();
        for file in files(krate) {
            let path = file[src.len()..].trim_end_matches(".rs");
            let mut module: Module = path.split('/').map(str::to_owned).collect();
            if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
                module.pop();
            }
            text.insert(module, bare(&code_of(&file)));
        }
        let mut source = Self { text, given_on: BTreeMap::new() };
        for module in source.text.keys().cloned().collect::<Vec<_>>() {
            for (public, path, name) in source.uses(&module) {
                if public {
                    source.given_on.insert((module.clone(), name), path);
                }
            }
        }
        source
    }

    /// Whether it is public, the path from the crate, and the name, of everything a module imports from its crate.
    fn uses(&self, module: &Module) -> Vec<(bool, Vec<String>, String)> {
        let mut found = Vec::new();
        for statement in self.text[module].split(';') {
            let flat = statement.split_whitespace().collect::<Vec<_>>().join(" ");
            let Some(at) = flat.find("use ").filter(|at| *at == 0 || flat[..*at].ends_with(' ')) else {
                continue;
            };
            for path in unfold(&flat[at + 4..]) {
                let (path, name) = path.split_once(" as ").unwrap_or((&path, ""));
                let parts: Vec<String> = path.split("::").map(str::to_owned).collect();
                let Some(mut full) = self.path_in_crate(module, &parts) else { continue };
                if full.last().is_some_and(|last| last == "self") {
                    full.pop();
                }
                let name =
                    if name.is_empty() { full.last().cloned().unwrap_or_default() } else { name.to_owned() };
                found.push((flat[..at].contains("pub"), full, name));
            }
        }
        found
    }

    fn path_in_crate(&self, module: &Module, parts: &[String]) -> Option<Vec<String>> {
        let mut base = module.clone();
        let mut rest = parts;
        match rest.first()?.as_str() {
            "crate" => (base, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                base.push(first.to_owned());
                if !self.text.contains_key(&base) {
                    return None;
                }
                rest = &rest[1..];
            }
        }
        Some([base.as_slice(), rest].concat())
    }

    /// The module in which something is, whoever gives it on.
    fn home(&self, path: &[String]) -> Option<Module> {
        let mut path = path.to_vec();
        for _ in 0..9 {
            let len = (0..=path.len()).rev().find(|len| self.text.contains_key(&path[..*len]))?;
            let (module, rest) = path.split_at(len);
            let given = rest.first().and_then(|name| self.given_on.get(&(module.to_vec(), name.clone())));
            let Some(given) = given else { return Some(module.to_vec()) };
            path = [given.as_slice(), &rest[1..]].concat();
        }
        None
    }

    /// Which modules each module needs.
    fn needs(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut needs: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, text) in &self.text {
            let imported =
                self.uses(module).into_iter().filter(|(public, ..)| !public).map(|(_, path, _)| path);
            let mut paths: Vec<Vec<String>> = imported.collect();
            // Paths in the code: of the crate, or of a module below.
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let imports = |statement: &&str| !statement.lines().any(|line| is_import(line.trim_start()));
            let code = text.split(';').filter(imports);
            let words = code.flat_map(|statement| statement.split(|c| !is_path(c)));
            for word in words.filter(|word| word.contains("::")) {
                let parts: Vec<String> = word.split("::").map(str::to_owned).collect();
                paths.extend(self.path_in_crate(module, &parts));
            }
            let needed = needs.entry(module.clone()).or_default();
            for path in paths.iter().filter(|path| path.last().is_some_and(|last| last != KNOWN_TO_ALL)) {
                if let Some(home) = self.home(path).filter(|home| !module.starts_with(home)) {
                    needed.insert(home);
                }
            }
        }
        needs
    }
}

/// Modules from which one gets back to them, by the shortest way.
fn circle(needs: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> Option<Vec<Module>> {
    let mut ways = vec![vec![from.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in needs.get(way.last()?).into_iter().flatten() {
                if next == from {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push([way.as_slice(), std::slice::from_ref(next)].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

/// A function: its name, how many lines it has, and how many arguments.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let mut words = line.trim_start().split(' ');
        let is_word =
            |word: &&str| word.starts_with("pub") || ["const", "async", "unsafe", "fn"].contains(word);
        let head: Vec<&str> = words.by_ref().take_while(|word| is_word(word) && *word != "fn").collect();
        let rest = line.trim_start().split_once("fn ").map(|(before, rest)| (before.trim(), rest));
        let Some((before, rest)) = rest.filter(|(before, _)| *before == head.join(" ")) else { continue };
        let _ = before;
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = format!("{}}}", " ".repeat(indent));
        let one_line = line.ends_with('}') && line.matches('{').count() == line.matches('}').count();
        let len = if one_line || line.ends_with(';') {
            1
        } else {
            lines[at..].iter().position(|line| *line == end).map_or(1, |last| last + 1)
        };
        let whole = lines[at..at + len].join(" ").replace("->", "");
        found.push((name.clone(), len, arguments(whole.split_once(&name).unwrap().1)));
    }
    found
}

/// Arguments besides `self` in what follows a function's name.
fn arguments(signature: &str) -> usize {
    let (mut depth, mut generics, mut list) = (0, 0, vec![String::new()]);
    for c in signature.chars() {
        match c {
            '<' if depth == 0 => generics += 1,
            '>' if depth == 0 => generics -= 1,
            _ if generics > 0 => {}
            '(' | '[' | '<' | '{' => depth += 1,
            ')' | ']' | '>' | '}' => depth -= 1,
            ',' if depth == 1 => list.push(String::new()),
            _ => list.last_mut().unwrap().push(c),
        }
        if depth == 0 && generics == 0 && c == ')' {
            break;
        }
    }
    let is_self = |arg: &str| arg.split(':').next().unwrap().split([' ', '&']).any(|word| word == "self");
    list.iter().filter(|arg| !arg.trim().is_empty() && !is_self(arg)).count()
}

const CRATES: [&str; 3] = ["format", "engine", "tools"];

#[test]
fn no_modules_need_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for krate in CRATES {
        let needs = Source::of(krate).needs();
        for module in needs.keys() {
            if let Some(way) = circle(&needs, module).filter(|way| way.iter().min() == Some(module)) {
                let way: Vec<String> = way.iter().map(|module| module.join("::")).collect();
                circles.push(format!("{krate}: {} and back", way.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn functions_are_a_screen_long_and_have_few_arguments() {
    let mut large = BTreeSet::new();
    for file in CRATES.into_iter().flat_map(files) {
        for (name, lines, arguments) in functions(&code_of(&file)) {
            if lines > LINES_MAX || arguments > ARGUMENTS_MAX {
                large.insert((file.clone(), name, format!("{lines} lines, {arguments} arguments")));
            }
        }
    }
    let known = |file: &str, name: &str| EXCEPTIONS.contains(&(file, name));
    let new: Vec<_> = large.iter().filter(|(file, name, _)| !known(file, name)).collect();
    assert!(new.is_empty(), "{new:#?}");
    let left = |(file, name): &&(&str, &str)| !large.iter().any(|(f, n, _)| f == file && n == name);
    let gone: Vec<_> = EXCEPTIONS.iter().filter(left).collect();
    assert!(gone.is_empty(), "are exceptions no more: {gone:#?}");
}

#[test]
fn long_files_say_why() {
    let mut silent = Vec::new();
    for file in CRATES.into_iter().flat_map(files) {
        let (code, long) = (code_of(&file), code_of(&file).lines().count() > FILE_LINES_MAX);
        if long != code.lines().any(|line| line.starts_with(REASON)) {
            silent.push((file, code.lines().count()));
        }
    }
    assert!(silent.is_empty(), "have no reason, or a reason and no need of one: {silent:#?}");
}

#[test]
fn the_map_of_a_set_has_every_file_with_a_method_of_it() {
    let map = std::fs::read_to_string(repository().join("engine/src/set/mod.rs")).unwrap();
    let missing = |file: &String| {
        let has = code_of(file).lines().any(|line| line.starts_with("impl CacheSet {"));
        let name = file.trim_start_matches("engine/src/").trim_start_matches("set/");
        has && name != "mod.rs" && !map.contains(&format!("| `{name}` |"))
    };
    let missing: Vec<String> = files("engine").into_iter().filter(missing).collect();
    assert!(missing.is_empty(), "the table in set/mod.rs lacks {missing:#?}");
}

#[test]
fn what_is_looked_for_is_found() {
    let code = "pub(crate) async fn f<F: Fn(u8) -> u8>(\n    &self,\n    a: u8,\n    b: Map<u8, u8>,\n) {\n    x;\n}\nfn g() {}\n";
    assert_eq!(functions(code), [("f".to_owned(), 7, 2), ("g".to_owned(), 1, 0)]);
    assert_eq!(unfold("a::{b, c::{d, e}}"), ["a::b", "a::c::d", "a::c::e"]);
    let module = |name: &str| vec![name.to_owned()];
    let needs = BTreeMap::from([
        (module("a"), BTreeSet::from([module("b")])),
        (module("b"), BTreeSet::from([module("c")])),
        (module("c"), BTreeSet::from([module("a"), module("d")])),
    ]);
    assert_eq!(circle(&needs, &module("a")), Some(vec![module("a"), module("b"), module("c")]));
    assert_eq!(circle(&needs, &module("d")), None);
}
