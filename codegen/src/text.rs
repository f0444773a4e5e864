//! Names and lines of generated code.

use std::fmt::{self, Write as _};

/// `release_permits` or `RELEASE_PERMITS` as `ReleasePermits`.
pub(crate) fn pascal(name: &str) -> String {
    name.split('_').map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect())
        .unwrap_or_default()
}

/// `ReleasePermits` as `release_permits`.
pub(crate) fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// `trefoil.lock.v1.AcquireRequest` as a path below the module that has the packages.
pub(crate) fn path(root: &str, message: &str) -> String {
    let below = message.strip_prefix("trefoil.").unwrap_or(message);
    format!("{root}::{}", below.replace('.', "::"))
}

/// Code that is being written, indented by its braces.
#[derive(Debug)]
pub(crate) struct CodeWriter {
    text: String,
    depth: usize,
}

impl CodeWriter {
    /// An empty file that says where it comes from.
    pub(crate) fn new() -> Self {
        let text = "// Written by trefoil-codegen from the options in proto/.\n".to_owned();
        Self { text, depth: 0 }
    }

    /// One line.
    pub(crate) fn line(&mut self, line: impl fmt::Display) {
        let line = line.to_string();
        if line.starts_with(['}', ')', ']']) {
            self.depth -= 1;
        }
        let indent = if line.is_empty() { 0 } else { 4 * self.depth };
        writeln!(self.text, "{:indent$}{line}", "").expect("a string takes everything");
        if line.ends_with(['{', '(', '[']) {
            self.depth += 1;
        }
    }

    /// A match of these arms.
    pub(crate) fn matches<T: PartialEq + fmt::Display>(
        &mut self,
        on: &str,
        arms: impl IntoIterator<Item = (String, T)>,
    ) {
        self.line(format_args!("match {on} {{"));
        self.arms(arms);
        self.line("}");
    }

    /// An arm for each pattern; those of equal value share theirs.
    pub(crate) fn arms<T: PartialEq + fmt::Display>(
        &mut self,
        arms: impl IntoIterator<Item = (String, T)>,
    ) {
        let mut grouped: Vec<(Vec<String>, T)> = Vec::new();
        for (pattern, value) in arms {
            match grouped.iter_mut().find(|(_, of)| *of == value) {
                Some((patterns, _)) => patterns.push(pattern),
                None => grouped.push((vec![pattern], value)),
            }
        }
        for (patterns, value) in grouped {
            let (last, others) = patterns.split_last().expect("a group has a pattern");
            for pattern in others {
                self.line(format_args!("{pattern} |"));
            }
            self.line(format_args!("{last} => {value},"));
        }
    }

    /// The whole text.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_rust() {
        assert_eq!(pascal("release_permits"), "ReleasePermits");
        assert_eq!(pascal("AT_SHARD"), "AtShard");
        assert_eq!(snake("ReleasePermits"), "release_permits");
        assert_eq!(
            path("crate", "trefoil.lock.v1.AcquireRequest"),
            "crate::lock::v1::AcquireRequest"
        );
    }

    #[test]
    fn equal_arms_are_one() {
        let mut code = CodeWriter::new();
        code.matches("self", [("A", 1), ("B", 2), ("C", 1)].map(|(a, b)| (a.to_owned(), b)));
        let text = code.finish();
        let body = text.split_once('\n').expect("it has a head").1;
        assert_eq!(body, "match self {\n    A |\n    C => 1,\n    B => 2,\n}\n");
    }
}
