//! The only place that writes: results to standard output, all else to standard error.

use std::io::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use serde::{Serialize, Serializer};

use crate::exit::Failure;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document.
    Json,
}

/// A result that both can read.
pub(crate) trait Report: Serialize {
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

/// Writes a result.
pub(crate) fn print(format: Format, report: &impl Report) -> Result<(), Failure> {
    match format {
        Format::Table => text(&report.text()),
        Format::Json => {
            let json = serde_json::to_string_pretty(report);
            text(&json.map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?)
        }
    }
}

/// Writes one of many results as one line, JSON without line breaks; false when nobody reads any more.
pub(crate) fn line(format: Format, report: &impl Report) -> Result<bool, Failure> {
    let mut line = match format {
        Format::Table => report.text(),
        Format::Json => serde_json::to_string(report)
            .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?,
    };
    line.push('\n');
    write(line.as_bytes())
}

/// Writes text and a newline to standard output.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut bytes = Vec::from(text);
    bytes.push(b'\n');
    raw(&bytes)
}

/// Writes bytes as they are to standard output.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    write(bytes).map(drop)
}

fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(true),
    }
}

/// Says something to the person, apart from the result.
pub(crate) fn note(line: &str) {
    // Where standard error is closed there is nobody to tell.
    writeln!(io::stderr(), "{line}").ok();
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
        table.add_row(row);
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
    let lines = fields.map(|(name, value)| format!("{name:width$}  {value}"));
    lines.join("\n")
}
