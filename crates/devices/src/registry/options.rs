//! Options of models: what they are, and what was written.

use thiserror::Error;

/// An option of a model.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What it takes.
    pub kind: OptionKind,
    /// It may be given several times.
    pub repeats: bool,
}

/// What an option takes.
#[derive(Clone, Copy, Debug)]
pub enum OptionKind {
    /// A number.
    Number {
        /// At least.
        least: u64,
        /// At most.
        most: u64,
    },
    /// A number of bytes, also in K, M, G or T.
    Size {
        /// At least.
        least: u64,
        /// At most.
        most: u64,
    },
    /// Text of this form.
    Text(&'static str),
    /// One of these.
    Choice(&'static [&'static str]),
    /// Nothing: it is there or not.
    Flag,
}

impl OptionInfo {
    /// An option that is given once.
    #[must_use]
    pub const fn new(name: &'static str, about: &'static str, kind: OptionKind) -> Self {
        Self { name, about, kind, repeats: false }
    }

    /// One that may be given several times.
    #[must_use]
    pub const fn repeating(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// How it is written, as `wqs=N`.
    #[must_use]
    pub fn form(&self) -> String {
        match self.kind {
            OptionKind::Number { .. } => format!("{}=N", self.name),
            OptionKind::Size { .. } => format!("{}=SIZE", self.name),
            OptionKind::Text(form) => format!("{}={form}", self.name),
            OptionKind::Choice(choices) => format!("{}={}", self.name, choices.join("|")),
            OptionKind::Flag => self.name.to_owned(),
        }
    }
}

/// What an option was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    /// A number, or bytes.
    Number(u64),
    /// Text, or one of several.
    Text(String),
    /// It is there.
    Flag,
}

/// What is wrong with an option.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OptionError {
    #[error("device option `{name}` is unknown; the model has {known}")]
    Unknown { name: String, known: String },
    #[error("device option {0} takes a number from {1} to {2}, and `{3}` is none")]
    Number(&'static str, u64, u64, String),
    #[error("device option {0} takes {1} to {2} bytes, as in 16M or 1G, and `{3}` is not that")]
    Size(&'static str, u64, u64, String),
    #[error("device option {0} takes {1}, and `{2}` is neither")]
    Choice(&'static str, String, String),
    #[error("device option `{0}` has no value: write {0}=VALUE")]
    NoValue(String),
    #[error("device option {0} takes no value: write {0}")]
    NoFlag(&'static str),
    #[error("device option `{0}` is given twice")]
    Twice(&'static str),
}

/// Options as they were written, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(&'static str, OptionValue)>);

impl Options {
    pub(super) fn add(&mut self, known: &'static [OptionInfo], text: &str) -> Result<(), OptionError> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        let Some(info) = known.iter().find(|info| info.name == key) else {
            let forms: Vec<String> = known.iter().map(OptionInfo::form).collect();
            let known = if forms.is_empty() { "none of its own".into() } else { forms.join(", ") };
            return Err(OptionError::Unknown { name: key.into(), known });
        };
        let name = info.name;
        let value = match (info.kind, value) {
            (OptionKind::Flag, None) => OptionValue::Flag,
            (OptionKind::Flag, Some(_)) => return Err(OptionError::NoFlag(name)),
            (_, None | Some("")) => return Err(OptionError::NoValue(name.into())),
            (OptionKind::Number { least, most }, Some(value)) => {
                let number = value.parse().ok().filter(|number| (least..=most).contains(number));
                OptionValue::Number(number.ok_or_else(|| OptionError::Number(name, least, most, value.into()))?)
            }
            (OptionKind::Size { least, most }, Some(value)) => {
                let size = parse_size(value).filter(|size| (least..=most).contains(size));
                OptionValue::Number(size.ok_or_else(|| OptionError::Size(name, least, most, value.into()))?)
            }
            (OptionKind::Text(_), Some(value)) => OptionValue::Text(value.into()),
            (OptionKind::Choice(choices), Some(value)) if choices.contains(&value) => OptionValue::Text(value.into()),
            (OptionKind::Choice(choices), Some(value)) => {
                return Err(OptionError::Choice(name, choices.join(" or "), value.into()));
            }
        };
        if !info.repeats && self.0.iter().any(|(given, _)| *given == name) {
            return Err(OptionError::Twice(name));
        }
        self.0.push((name, value));
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &OptionValue)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Whether it was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|(given, _)| given == name)
    }

    /// The number that was given, or the last of several.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.iter().filter(|(given, _)| *given == name).last().and_then(|(_, value)| match value {
            OptionValue::Number(number) => Some(*number),
            _ => None,
        })
    }

    /// The text that was given, or the last of several.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.iter().filter(|(given, _)| *given == name).last().and_then(|(_, value)| match value {
            OptionValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

/// A number of bytes: `4096`, `16K`, `16M`, `16G` or `16T`.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = ["512", "4K", "3m", "2G", "1T", "", "K", "1X", "-1", "99999999T", "1é"];
        let bytes =
            [Some(512), Some(4096), Some(3 << 20), Some(2 << 30), Some(1 << 40), None, None, None, None, None, None];
        assert_eq!(sizes.map(parse_size), bytes);
    }

    const KNOWN: &[OptionInfo] = &[
        OptionInfo::new("count", "", OptionKind::Number { least: 1, most: 8 }),
        OptionInfo::new("memory", "", OptionKind::Size { least: 512, most: 1 << 40 }).repeating(),
        OptionInfo::new("image", "", OptionKind::Text("FILE")).repeating(),
        OptionInfo::new("lba", "", OptionKind::Choice(&["512", "4096"])),
        OptionInfo::new("readonly", "", OptionKind::Flag),
    ];

    #[test]
    fn options_keep_their_order_and_their_kinds() {
        let mut options = Options::default();
        for text in ["memory=1M", "image=a=b", "count=3", "readonly", "memory=2M", "lba=4096"] {
            options.add(KNOWN, text).unwrap();
        }
        assert_eq!(options.number("memory"), Some(2 << 20));
        assert_eq!(
            (options.number("count"), options.text("image"), options.text("lba")),
            (Some(3), Some("a=b"), Some("4096"))
        );
        assert_eq!(options.iter().map(|(name, _)| name).collect::<Vec<_>>()[..3], ["memory", "image", "count"]);
        for (text, part) in [
            ("count=9", "from 1 to 8"),
            ("count=4", "twice"),
            ("count", "count=VALUE"),
            ("count=", "count=VALUE"),
            ("memory=1", "16M"),
            ("lba=1024", "512 or 4096"),
            ("readonly=yes", "takes no value"),
            ("colour=red", "count=N, memory=SIZE, image=FILE, lba=512|4096, readonly"),
        ] {
            let error = options.add(KNOWN, text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
