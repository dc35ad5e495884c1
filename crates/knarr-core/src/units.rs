//! Sizes, durations and rates as people write them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written `512`, `64KiB`, `2GiB`, `10MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time, written `2s`, `500ms`, `10m`, `1h30m`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a size or duration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("`{0}` is not a size: write a number and a unit, such as 64KiB, 2GiB or 500MB")]
    Size(String),
    /// Not a duration.
    #[error(
        "`{0}` is not a duration: write numbers and units, such as 500ms, 2s, 10m, 1h30m or 7d"
    )]
    Duration(String),
}

impl ByteSize {
    /// Reads a size; a rate may end in `/s`.
    ///
    /// # Errors
    /// [`UnitError::Size`].
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Size(text.to_owned());
        let trimmed = text.trim();
        let trimmed = trimmed.strip_suffix("/s").unwrap_or(trimmed).trim_end();
        let split = trimmed
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at_checked(split).ok_or_else(error)?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(error);
        }
        let (whole, fraction) = number.split_once('.').ok_or_else(error)?;
        let digits = u32::try_from(fraction.len()).map_err(|_too_long| error())?;
        if fraction.is_empty() || digits > 9 {
            return Err(error());
        }
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_e| error())?
        };
        let fraction: u64 = fraction.parse().map_err(|_e| error())?;
        let part = u128::from(fraction) * u128::from(factor) / 10_u128.pow(digits);
        let part = u64::try_from(part).map_err(|_e| error())?;
        whole
            .checked_mul(factor)
            .and_then(|bytes| bytes.checked_add(part))
            .map(Self)
            .ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            let one = 1_u64 << shift;
            if self.0 >= one {
                let tenths = u128::from(self.0) * 10 / u128::from(one);
                return if tenths % 10 == 0 {
                    write!(f, "{} {unit}", tenths / 10)
                } else {
                    write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl Span {
    /// Reads a duration.
    ///
    /// # Errors
    /// [`UnitError::Duration`].
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Duration(text.to_owned());
        let mut rest = text.trim();
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let (number, after) = rest.split_at_checked(digits).ok_or_else(error)?;
            let number: u64 = number.parse().map_err(|_e| error())?;
            let letters = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, after) = after.split_at_checked(letters).ok_or_else(error)?;
            let milliseconds: u64 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                "w" => 604_800_000,
                _ => return Err(error()),
            };
            let part = number.checked_mul(milliseconds).ok_or_else(error)?;
            total = total
                .checked_add(Duration::from_millis(part))
                .ok_or_else(error)?;
            rest = after.trim_start();
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut milliseconds = self.0.as_millis();
        if milliseconds == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ] {
            if milliseconds >= size {
                write!(f, "{}{unit}", milliseconds / size)?;
                milliseconds %= size;
            }
        }
        Ok(())
    }
}

macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal, $number:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.to_string().replace(' ', ""))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Written {
                    Number(u64),
                    Text(String),
                }
                match Written::deserialize(deserializer)? {
                    Written::Number(number) => $number(number).map_err(serde::de::Error::custom),
                    Written::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
                }
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "pattern": $pattern })
            }
        }
    };
}

as_text!(
    ByteSize,
    "ByteSize",
    "^[0-9.]+ ?([KkMmGgTt]i?)?[Bb]?(/s)?$",
    |bytes| Ok::<ByteSize, UnitError>(ByteSize(bytes))
);
as_text!(
    Span,
    "Duration",
    "^([0-9]+ ?(ms|s|m|min|h|d|w) ?)+$",
    |number: u64| if number == 0 {
        Ok(Span(Duration::ZERO))
    } else {
        Err(UnitError::Duration(number.to_string()))
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_as_people_do() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64KiB", 65_536),
            ("1.5 GiB", 1_610_612_736),
            ("10MB", 10_000_000),
            ("8M/s", 8 << 20),
        ] {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "x", "1.GiB", "-1", "5 miles", "99999999999TiB"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
        }
        assert_eq!(ByteSize(1_610_612_736).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(1023).to_string(), "1023 B");
    }

    #[test]
    fn durations_are_read_and_written_as_people_do() {
        for (text, milliseconds) in [
            ("2s", 2_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            let span = Span::parse(text).unwrap();
            assert_eq!(span.0.as_millis(), milliseconds, "{text}");
            assert_eq!(Span::parse(&span.to_string()), Ok(span));
        }
        for text in ["", "5", "s", "5 parsecs", "1h-3m"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
