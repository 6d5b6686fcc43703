//! What Prometheus's own checker says of figures, alerts and the board.
//!
//! `status.jsonl` is what `bcache status --json` said of a set that was served, with a cached device and a volume.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bcache_tests::{cmd, paths};
use bcache_tools::cli::metrics;
use serde_json::{Value, json};

/// `./tests/run` fetches it; it is in Debian's package prometheus.
fn promtool() -> Command {
    Command::new(std::env::var_os("UBCACHE_PROMTOOL").unwrap_or_else(|| "promtool".into()))
}

fn figures() -> String {
    let text = fs::read_to_string(paths::repository().join("tests/cli/checkers/status.jsonl")).unwrap();
    let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    metrics::text(&all)
}

/// Names of metrics as queries write them: those of a histogram have endings.
fn names() -> BTreeSet<String> {
    let figures = figures();
    let samples = figures.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// Names of our metrics in a query.
fn used(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = |word: &&str| word.starts_with("bcache_") || word.starts_with("node_bcache_");
    words.filter(ours).map(str::to_owned).collect()
}

fn monitoring(file: &str) -> std::path::PathBuf {
    paths::repository().join("packaging/monitoring").join(file)
}

/// promtool ends with success and says nothing but that.
fn check_rules(file: &Path) {
    let said = cmd::run(promtool().args(["check", "rules", "--lint-fatal"]).arg(file)).unwrap();
    assert!(said.code == 0 && said.stdout.contains("SUCCESS"), "{said:?}");
}

#[test]
#[ignore = "promtool"]
fn promtool_has_nothing_to_say_of_figures() {
    let mut check = promtool();
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = check.spawn().unwrap();
    child.stdin.take().unwrap().write_all(figures().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
    assert!(names().len() > 50, "{:?}", names());
}

#[test]
#[ignore = "promtool"]
fn alerts_are_about_figures_that_there_are() {
    check_rules(&monitoring("alerts.yml"));
    let text = fs::read_to_string(monitoring("alerts.yml")).unwrap();
    let names = names();
    let queries: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert!(queries.len() >= 10, "{}", queries.len());
    for query in queries {
        let used = used(query);
        assert!(!used.is_empty() && used.is_subset(&names), "{query}: {:?}", used.difference(&names));
    }
}

#[test]
#[ignore = "python3"]
fn pictures_are_what_their_script_draws() {
    cmd::done(Command::new(paths::repository().join("doc/draw")).arg("--check")).unwrap();
    for page in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(paths::repository().join(page)).unwrap();
        let pictures: Vec<&str> =
            text.split("](doc/").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(!pictures.is_empty(), "{page}");
        for picture in pictures {
            assert!(paths::repository().join("doc").join(picture).is_file(), "{page}: {picture}");
        }
    }
}

#[test]
#[ignore = "promtool, python3"]
fn the_board_is_what_its_script_writes_and_asks_for_figures_that_there_are() {
    cmd::done(Command::new(monitoring("make_board")).arg("--check")).unwrap();
    let board: Value = serde_json::from_str(&fs::read_to_string(monitoring("board.json")).unwrap()).unwrap();
    let (names, mut rules) = (names(), Vec::new());
    for panel in board["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array();
        assert_eq!(targets.is_none(), panel["type"] == "row", "{panel}");
        for target in targets.into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let used = used(query);
            assert!(!used.is_empty() && used.is_subset(&names), "{query}: {:?}", used.difference(&names));
            // Grafana puts a time here.
            let query = query.replace("$__rate_interval", "5m");
            rules.push(json!({"record": format!("board:query{}", rules.len()), "expr": query}));
        }
    }
    assert!(rules.len() > 15, "{}", rules.len());
    let dir = paths::scratch().unwrap();
    let file = dir.path().join("rules.yml");
    // JSON is YAML, too.
    let groups = json!({"groups": [{"name": "board", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    check_rules(&file);
}
