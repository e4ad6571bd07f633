//! JSON lines on standard output, one object each.

use std::{
    fmt::{Display, Write as _},
    io::Write as _,
};

/// An object being written; [`print`](Self::print) ends it.
#[derive(Debug)]
pub struct Line(String);

impl Line {
    /// An object that starts with `"event": name`.
    pub fn event(name: &str) -> Self {
        Self("{".to_owned()).text("event", name)
    }

    /// Adds a string.
    pub fn text(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        self.0.push('"');
        for c in value.to_string().chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c.is_control() => {
                    // Writing to a string does not fail.
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    /// Adds a number or truth value, as it is displayed.
    pub fn value(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        self.0.push_str(&value.to_string());
        self
    }

    /// Writes the line. A reader that went away ends the program through its closed input.
    pub fn print(mut self) {
        self.0.push_str("}\n");
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(self.0.as_bytes());
        let _ = out.flush();
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(key);
        self.0.push_str("\":");
    }
}
