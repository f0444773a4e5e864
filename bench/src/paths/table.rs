//! Rows for people, as they come, or for programs, at the end.

use std::collections::BTreeMap;

use serde::Serialize;

use super::row::{COLUMNS, PathRow, quotient};
use crate::{BenchError, BenchOutput};

/// How the figures are written.
#[derive(Debug)]
pub(super) struct PathTable {
    threads: bool,
    json: bool,
    all: PathDocument,
}

/// All figures, for programs.
#[derive(Debug, Default, Serialize)]
struct PathDocument {
    rows: Vec<PathRow>,
    /// Where two binaries were measured.
    ratios: Vec<PathRatio>,
}

/// The median of the new rows over that of the old ones.
#[derive(Debug, Serialize)]
struct PathRatio {
    work: String,
    through: String,
    callers: usize,
    /// By the head of the column.
    new_over_old: BTreeMap<&'static str, f64>,
}

impl PathTable {
    pub(super) fn new(threads: bool, json: bool) -> Self {
        Self { threads, json, all: PathDocument::default() }
    }

    pub(super) fn head(&self, out: &mut BenchOutput) {
        if !self.json {
            let heads = COLUMNS.iter().map(|column| format!("  {:>6}", column.head));
            let what = format!("{:<11} {:<7} {:>7} {:<7}", "work", "through", "callers", "binary");
            out.line(&format!("{what}{}", heads.collect::<String>()));
        }
    }

    pub(super) fn row(&self, row: &PathRow, out: &mut BenchOutput) {
        if self.json {
            return;
        }
        let figures = COLUMNS.iter().map(|column| (column.of)(row));
        out.line(&line(row, row.binary, figures, None));
        if let Some(failure) = &row.failure {
            out.line(&format!("    {} failed, first: {failure}", row.failures));
        }
        if self.threads {
            let busy = row.thread_us.iter().filter(|(_, us)| **us > 0.0);
            let mut threads = busy.collect::<Vec<_>>();
            threads.sort_by(|one, other| other.1.total_cmp(one.1));
            let threads = threads.iter().map(|(name, us)| format!("{name} {us:.1}"));
            out.line(&format!("    us of threads: {}", threads.collect::<Vec<_>>().join(", ")));
        }
    }

    /// Keeps the rows, and says what the new ones are to the old ones.
    pub(super) fn end_of_plan(&mut self, rows: Vec<PathRow>, out: &mut BenchOutput) {
        if let Some(old) = rows.iter().find(|row| row.binary == "old") {
            let ratios = COLUMNS
                .iter()
                .map(|column| {
                    quotient(median(&rows, "new", column.of), median(&rows, "old", column.of))
                })
                .collect::<Vec<_>>();
            if !self.json {
                out.line(&line(old, "new/old", ratios.iter().copied(), Some(2)));
            }
            let heads = COLUMNS.iter().map(|column| column.head);
            self.all.ratios.push(PathRatio {
                work: old.work.clone(),
                through: old.through.clone(),
                callers: old.callers,
                new_over_old: heads.zip(ratios).filter_map(|(head, r)| Some((head, r?))).collect(),
            });
        }
        self.all.rows.extend(rows);
    }

    /// Prints the document.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub(super) fn end(self, out: &mut BenchOutput) -> Result<(), BenchError> {
        if self.json {
            out.line(&serde_json::to_string_pretty(&self.all)?);
        }
        Ok(())
    }
}

fn line(
    of: &PathRow,
    binary: &str,
    figures: impl Iterator<Item = Option<f64>>,
    decimals: Option<usize>,
) -> String {
    let mut line = format!("{:<11} {:<7} {:>7} {binary:<7}", of.work, of.through, of.callers);
    for (column, figure) in COLUMNS.iter().zip(figures) {
        let decimals = decimals.unwrap_or(column.decimals);
        let figure = figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.decimals$}"));
        line.push_str(&format!("  {figure:>width$}", width = column.head.len().max(6)));
    }
    line
}

fn median(rows: &[PathRow], binary: &str, of: fn(&PathRow) -> Option<f64>) -> Option<f64> {
    let mut all = rows.iter().filter(|row| row.binary == binary).filter_map(of).collect::<Vec<_>>();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    if all.len() % 2 == 1 {
        all.get(middle).copied()
    } else {
        Some((all.get(middle.checked_sub(1)?)? + all.get(middle)?) / 2.0)
    }
}
