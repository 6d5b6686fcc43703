//! Text for a terminal.

use std::io::{self, Write};

/// What came from a disk or a command line as part of a line: characters that do not print, ends of lines too, are written
/// as Rust writes them.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' | '\\' => escaped.push(c),
            _ => escaped.extend(c.escape_debug()),
        }
    }
    escaped
}

/// Says something besides the answer. Standard error may be gone, and nothing depends on it.
pub fn note(program: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{program}: {}", lines_escaped(text));
}

fn lines_escaped(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_written_as_rust_does() {
        assert_eq!(escaped("it's \"a\\b\" \u{e9}"), "it's \"a\\b\" \u{e9}");
        assert_eq!(escaped("two\nlines\u{1b}\u{202e}"), "two\\nlines\\u{1b}\\u{202e}");
        assert_eq!(lines_escaped("a\n\u{7}b"), "a\n\\u{7}b");
    }
}
