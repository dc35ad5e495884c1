//! Bytes in JSON: UTF-8 stands as it is, anything else as `base16:` and hexadecimal digits.
//!
//! A UTF-8 text that itself starts with `base16:` is written in hexadecimal too, so that reading back
//! is unambiguous.

use std::borrow::Cow;

use serde::{Deserialize as _, Deserializer, Serializer};

const HEX_PREFIX: &str = "base16:";

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with(HEX_PREFIX) => serializer.serialize_str(text),
        _ => serializer.serialize_str(&format!("{HEX_PREFIX}{}", to_hex(bytes))),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    match text.strip_prefix(HEX_PREFIX) {
        Some(digits) => {
            from_hex(digits).ok_or_else(|| serde::de::Error::custom("broken hexadecimal digits"))
        }
        None => Ok(text.as_bytes().to_vec()),
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

pub(crate) fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}
