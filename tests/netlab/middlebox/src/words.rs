//! Settings as `key=value` words, on the command line and in commands.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

/// Why a program cannot go on; told to people, never matched on.
pub(crate) type Error = Box<dyn std::error::Error>;

/// A set of settings.
#[derive(Debug, Default)]
pub(crate) struct Words(HashMap<String, String>);

impl Words {
    /// Takes words of the form `key=value`.
    pub(crate) fn parse(words: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        let pair = |word: &str| {
            word.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .ok_or_else(|| format!("{word:?} is not key=value"))
        };
        let pairs: Result<_, String> = words.into_iter().map(|word| pair(word.as_ref())).collect();
        Ok(Self(pairs?))
    }

    /// The value of `key`, if given.
    pub(crate) fn get<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.0.get(key) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(format!("{key}={text}: {error}").into()),
        }
    }

    /// The value of `key`, which must be given.
    pub(crate) fn need<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, Error> {
        self.get(key)?
            .ok_or_else(|| format!("{key}= is missing").into())
    }
}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn words_are_read_by_key() {
        let words = Words::parse(["a=1", "b=x=y"]).expect("well formed");
        assert_eq!(words.need::<u32>("a").expect("a number"), 1);
        assert_eq!(words.need::<String>("b").expect("a string"), "x=y");
        assert_eq!(words.get::<u32>("c").expect("absent is fine"), None);
        assert!(words.need::<u32>("b").is_err());
        assert!(words.need::<u32>("c").is_err());
        assert!(Words::parse(["a"]).is_err());
    }
}
