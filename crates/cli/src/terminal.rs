//! What people read on standard error: lines that break between words, as wide as the terminal.

use std::io::{IsTerminal, Write as _};

/// The columns of the terminal that standard error is; `None` if it is none, where lines are for other programs.
pub fn columns() -> Option<usize> {
    let stderr = std::io::stderr();
    if !stderr.is_terminal() {
        return None;
    }
    let columns = rustix::termios::tcgetwinsize(&stderr).map_or(0, |size| size.ws_col);
    // A terminal that does not say is as they are.
    Some(if columns == 0 { 80 } else { columns.into() })
}

/// Prints lines to standard error. An error of that, as when the reader is gone, is no reason to end.
pub fn say(text: &str) {
    let text = match columns() {
        Some(columns) => text.lines().map(|line| wrap(line, columns, 2) + "\n").collect(),
        None => format!("{}\n", text.trim_end_matches('\n')),
    };
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A line in lines of so many columns, if no word is longer, all but the first indented. Sequences of colour take none.
pub fn wrap(line: &str, columns: usize, indent: usize) -> String {
    let mut text = String::new();
    // Where the next word goes, and whether it is the first of a line that goes on.
    let (mut at, mut goes_on) = (0, false);
    for (number, word) in line.split(' ').enumerate() {
        let wide = width(word);
        // The spaces between the columns of a table are not those of the next line.
        if goes_on && word.is_empty() {
            continue;
        }
        if number > 0 && !goes_on {
            if at + 1 + wide > columns && at > indent {
                text.truncate(text.trim_end_matches(' ').len());
                text.push('\n');
                text.push_str(&" ".repeat(indent));
                (at, goes_on) = (indent, true);
                if word.is_empty() {
                    continue;
                }
            } else {
                text.push(' ');
                at += 1;
            }
        }
        text.push_str(word);
        at += wide;
        goes_on = false;
    }
    text
}

/// The columns that a word takes.
fn width(word: &str) -> usize {
    let mut in_sequence = false;
    let takes = |letter: &char| {
        let was = in_sequence;
        in_sequence = *letter == '\x1b' || (was && !letter.is_ascii_alphabetic());
        !was && *letter != '\x1b'
    };
    word.chars().filter(takes).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_are_indented() {
        assert_eq!(wrap("one two three", 80, 2), "one two three");
        assert_eq!(wrap("one two three", 8, 2), "one two\n  three");
        assert_eq!(wrap("one two three four", 9, 2), "one two\n  three\n  four");
        assert_eq!(wrap("a-word-that-is-too-long for it", 8, 2), "a-word-that-is-too-long\n  for it");
        assert_eq!(wrap("", 8, 2), "");
        assert_eq!(wrap("  a  table  row", 80, 4), "  a  table  row");
    }

    #[test]
    fn colour_takes_no_columns() {
        assert_eq!(width("\x1b[31;1mred\x1b[0m"), 3);
        assert_eq!(wrap("\x1b[1mone\x1b[0m two", 7, 2), "\x1b[1mone\x1b[0m two");
        assert_eq!(wrap("\x1b[1mone\x1b[0m two", 6, 2), "\x1b[1mone\x1b[0m\n  two");
    }
}
