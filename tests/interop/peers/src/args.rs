//! Command lines of the form `program word --name value --name value`.

use std::{collections::HashMap, str::FromStr};

use crate::Failure;

/// A parsed command line.
#[derive(Debug)]
pub struct Args {
    /// The first word: what the program is to be.
    pub role: String,
    values: HashMap<String, String>,
}

impl Args {
    /// Parses the arguments of this process; only `known` names are taken.
    ///
    /// # Errors
    /// An unknown name, a name without value, or no role.
    pub fn from_env(known: &[&str]) -> Result<Self, Failure> {
        let mut words = std::env::args().skip(1);
        let role = words.next().ok_or("the first argument is the role")?;
        let mut values = HashMap::new();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .filter(|name| known.contains(name))
                .ok_or_else(|| format!("unknown argument {word}"))?;
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Self { role, values })
    }

    /// The value of `name`, if given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The parsed value of `name`, or `default`.
    ///
    /// # Errors
    /// The value does not parse.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T, Failure> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name} does not take {text:?}").into()),
        }
    }

    /// The parsed value of `name`.
    ///
    /// # Errors
    /// It is missing or does not parse.
    pub fn require<T: FromStr>(&self, name: &str) -> Result<T, Failure> {
        let text = self
            .text(name)
            .ok_or_else(|| format!("--{name} is needed"))?;
        text.parse()
            .map_err(|_| format!("--{name} does not take {text:?}").into())
    }
}
