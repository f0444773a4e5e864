//! The only place that writes: results to standard output, all else to standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Serialize, Serializer};

use crate::exit::CommandFailure;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document.
    Json,
}

/// A result that both can read. `LockListOutput` is that of `trefoil lock list`, and `LockRow` one of its rows.
pub(crate) trait CommandOutput: Serialize {
    /// The form for people, without a newline at the end.
    fn text(&self) -> String;
}

/// An id as JSON has it in the contract, in a text: programs that take numbers for fractions lose the end of so large a one.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(crate) fn id<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// The same where there may be none.
#[allow(clippy::ref_option, reason = "serde calls it so")]
pub(crate) fn some_id<S: Serializer>(id: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

/// Writes a result; false when nobody reads it.
pub(crate) fn print(format: Format, report: &impl CommandOutput) -> Result<bool, CommandFailure> {
    match format {
        Format::Table => text(&plain(&report.text(), true)),
        Format::Json => {
            let json = serde_json::to_string_pretty(report);
            text(
                &json
                    .map_err(|error| CommandFailure::new(format!("cannot write JSON: {error}")))?,
            )
        }
    }
}

/// Writes one of many results as one line, JSON without line breaks; false when nobody reads any more.
pub(crate) fn line(format: Format, report: &impl CommandOutput) -> Result<bool, CommandFailure> {
    let mut line = match format {
        Format::Table => plain(&report.text(), false),
        Format::Json => serde_json::to_string(report)
            .map_err(|error| CommandFailure::new(format!("cannot write JSON: {error}")))?,
    };
    line.push('\n');
    raw(line.as_bytes())
}

/// Writes text and a newline to standard output.
fn text(text: &str) -> Result<bool, CommandFailure> {
    let mut bytes = Vec::from(text);
    bytes.push(b'\n');
    raw(&bytes)
}

/// Writes bytes as they are to standard output; false when nobody reads them.
pub(crate) fn raw(bytes: &[u8]) -> Result<bool, CommandFailure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandFailure::new(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(true),
    }
}

/// `1 lock`, `2 locks`.
pub(crate) fn counted(number: u32, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}

/// Says why a command failed, and returns its exit code.
pub(crate) fn report(failure: &CommandFailure) -> ExitCode {
    failure.lines().iter().for_each(|line| note(line));
    failure.exit_code()
}

/// Says something to the person, apart from the result.
pub(crate) fn note(line: &str) {
    // Where standard error is closed there is nobody to tell.
    writeln!(io::stderr(), "{}", plain(line, true)).ok();
}

/// What a terminal takes for more than text is written as Rust does, `\u{1b}`; newlines stay where there are lines.
fn plain(text: &str, lines: bool) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        // Control characters, separators of lines, and what turns the direction of the text.
        let turns = matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || (char.is_control() && !(lines && char == '\n')) {
            plain.extend(char.escape_default());
        } else {
            plain.push(char);
        }
    }
    plain
}

/// Rows under a header; the columns named in `numbers` are aligned to the right.
pub(crate) fn table<R: IntoIterator<Item = Vec<String>>>(
    header: &[&str],
    numbers: &[usize],
    rows: R,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell, false)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Name and value on each line.
pub(crate) fn fields<const N: usize>(fields: [(&str, String); N]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = fields.map(|(name, value)| format!("{name:width$}  {}", plain(&value, false)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_stored_moves_the_cursor_or_breaks_a_line() {
        let evil = "a\u{1b}[2J\nb\u{9b}\u{202e}\t\u{7f}";
        let safe = r"a\u{1b}[2J\nb\u{9b}\u{202e}\t\u{7f}";
        assert_eq!(fields([("owner", evil.to_owned())]), format!("owner  {safe}"));
        let rows = [vec![evil.to_owned(), "1".to_owned()]];
        let table = table(&["LOCK", "N"], &[1], rows);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains(safe), "{table}");
        assert_eq!(plain("ä 漢 \n", true), "ä 漢 \n", "other text is as it was");
    }
}
