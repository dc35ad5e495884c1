//! What goes to stdout: data, for people or as JSON.
//!
//! Constraints: names come through [`knarr_core::path::printable`]; JSON is one object a line, or one
//! object in all; tables are aligned by characters and streamed in bounded batches.

use std::io::{self, BufWriter, Stdout, Write as _};

use serde::Serialize;

use crate::config::Colour;
use crate::environment::Environment;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Stdout, buffered.
pub(crate) struct Output {
    out: BufWriter<Stdout>,
    /// How data is printed.
    pub(crate) format: Format,
    /// Whether it may be coloured.
    pub(crate) colour: Colour,
}

impl Output {
    /// Takes stdout.
    pub(crate) fn new(format: Format, environment: &Environment) -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            format,
            colour: if environment.stdout_is_terminal && environment.colour_wanted {
                Colour::Yes
            } else {
                Colour::No
            },
        }
    }

    /// Prints `value` as one line of JSON.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    /// Prints a line.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> io::Result<()> {
        self.out.write_all(line.as_ref().as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Prints the rows, aligned under `headings`. The last column is not padded.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(crate) fn table<const N: usize>(
        &mut self,
        headings: [(&str, Align); N],
        rows: &[[String; N]],
    ) -> io::Result<()> {
        let mut widths = headings.map(|(heading, _align)| heading.chars().count());
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let titles = headings.map(|(heading, _align)| heading.to_owned());
        let aligns = headings.map(|(_heading, align)| align);
        let heading = aligned(&titles, &widths, &aligns);
        let heading = self.paint(Style::Faint, &heading);
        self.line(heading)?;
        for row in rows {
            self.line(aligned(row, &widths, &aligns))?;
        }
        Ok(())
    }

    /// `text` in `style`, where colour may be used.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        paint(self.colour, style, text)
    }

    /// Sends everything on its way.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// How a text looks. The text says the same without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Bold,
    Faint,
    Good,
    Bad,
    Warning,
}

/// `text` in `style`, if colour may be used.
pub(crate) fn paint(colour: Colour, style: Style, text: &str) -> String {
    if colour == Colour::No {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Faint => "2",
        Style::Good => "32",
        Style::Bad => "31",
        Style::Warning => "33",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

fn aligned(cells: &[String], widths: &[usize], aligns: &[Align]) -> String {
    let mut line = String::new();
    for (index, ((cell, width), align)) in cells.iter().zip(widths).zip(aligns).enumerate() {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        if index > 0 {
            line.push_str("  ");
        }
        match align {
            Align::Right => {
                line.push_str(&padding);
                line.push_str(cell);
            }
            Align::Left => {
                line.push_str(cell);
                if index + 1 < cells.len() {
                    line.push_str(&padding);
                }
            }
        }
    }
    line
}
