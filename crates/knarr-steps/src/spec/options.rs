//! What each step can be told.
//!
//! Constraints: plain data without secrets. A key is only named here: the name of a secret, or the path
//! of a file with public keys, relative to the configuration file. The caller resolves both.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::size;

/// How to decompress, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecompressOptions {
    /// The most bytes that one file may expand to: a number, or a text such as `10GiB`.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_output: u64,
    /// The most bytes of output for each byte of input, at any point of the stream
    /// beyond its first 16 MiB of output.
    #[serde(deserialize_with = "deserialize_ratio")]
    #[schemars(range(min = 1))]
    pub max_ratio: u32,
    /// The most bytes of memory that decoding one file may take (the window of zstd, the
    /// dictionary of xz): a number, or a text such as `128MiB`.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_memory: u64,
    /// What becomes of content that is not compressed.
    pub unrecognised: Unrecognised,
}

impl Default for DecompressOptions {
    /// 64 GiB of output, 2000 times the input (gzip cannot do more than 1032), 128 MiB of memory
    /// (`zstd --long=27` and `xz -9` fit), and what is not compressed is passed on.
    fn default() -> Self {
        Self {
            max_output: 64 << 30,
            max_ratio: 2000,
            max_memory: 128 << 20,
            unrecognised: Unrecognised::Pass,
        }
    }
}

/// What becomes of content that is not compressed in any way known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unrecognised {
    /// It is delivered unchanged, and the record says "not compressed".
    Pass,
    /// It is an error. (An empty file is never one.)
    Fail,
}

pub(super) fn deserialize_ratio<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<u32, D::Error> {
    let ratio = u32::deserialize(deserializer)?;
    if ratio == 0 {
        return Err(de::Error::custom("`max_ratio` has to be 1 or more"));
    }
    Ok(ratio)
}

pub(super) fn size_schema(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]{1,6})?\\s*([kKmMgGtT]?[bB]|[kKmMgGtT]([iI][bB])?)?\\s*$" }
        ]
    })
}

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CompressOptions {
    /// The compression.
    pub format: Format,
    /// How hard to try: 1 to 9 for gzip, xz (also 0) and bzip2, 1 to 19 for zstd. By default 6 for gzip and
    /// xz, 9 for bzip2, 3 for zstd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u32>,
}

impl Default for CompressOptions {
    /// zstd, level 3.
    fn default() -> Self {
        Self::from(Format::Zstd)
    }
}

impl From<Format> for CompressOptions {
    fn from(format: Format) -> Self {
        Self {
            format,
            level: None,
        }
    }
}

impl CompressOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        let (least, most) = match self.format {
            Format::Gzip | Format::Bzip2 => (1, 9),
            Format::Xz => (0, 9),
            Format::Zstd => (1, 19),
        };
        match self.level {
            Some(level) if !(least..=most).contains(&level) => Err(format!(
                "`level` of {} goes from {least} to {most}",
                self.format
            )),
            _ => Ok(()),
        }
    }
}

/// How to unpack an archive, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExtractOptions {
    /// The most bytes that one archive may unpack to, all files together.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_output: u64,
    /// The most bytes of output for each byte of input, beyond the first 16 MiB of output.
    #[serde(deserialize_with = "deserialize_ratio")]
    #[schemars(range(min = 1))]
    pub max_ratio: u32,
    /// The most bytes of memory for removing the compression around a tar archive.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_memory: u64,
    /// The most entries, directories that are only implied by a name included.
    #[schemars(range(min = 1))]
    pub max_entries: u32,
    /// The most directories above a file, and that one.
    #[schemars(range(min = 1))]
    pub max_depth: u32,
    /// The longest component of a name, in bytes.
    #[schemars(range(min = 1))]
    pub max_name: u32,
    /// What becomes of symbolic and hard links.
    pub links: Links,
}

impl Default for ExtractOptions {
    /// 64 GiB, 2000 times the input, 128 MiB of memory, 100,000 entries, 32 levels, names of 255 bytes,
    /// links that stay inside of the archive.
    fn default() -> Self {
        Self {
            max_output: 64 << 30,
            max_ratio: 2000,
            max_memory: 128 << 20,
            max_entries: 100_000,
            max_depth: 32,
            max_name: 255,
            links: Links::Inside,
        }
    }
}

/// What becomes of the links of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Links {
    /// Those that can only lead to something in the archive are unpacked; any other refuses the archive.
    Inside,
    /// All are left out.
    Skip,
    /// Any refuses the archive.
    Refuse,
}

/// What to pack files into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveOptions {
    /// The kind of archive.
    pub format: ArchiveFormat,
    /// The name of the archive; by default that of the first file with the suffix of the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The level of the compression, as for `compress`; 1 to 9 for zip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u32>,
}

impl Default for ArchiveOptions {
    /// A tar archive, compressed with zstd.
    fn default() -> Self {
        Self::from(ArchiveFormat::TarZst)
    }
}

impl From<ArchiveFormat> for ArchiveOptions {
    fn from(format: ArchiveFormat) -> Self {
        Self {
            format,
            name: None,
            level: None,
        }
    }
}

impl ArchiveOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        let format = match self.format {
            ArchiveFormat::TarZst => Format::Zstd,
            ArchiveFormat::TarGz | ArchiveFormat::Zip => Format::Gzip,
            ArchiveFormat::Tar if self.level.is_some() => {
                return Err("`level` has no meaning for `tar`, which is not compressed".to_owned());
            }
            ArchiveFormat::Tar => return self.check_name(),
        };
        let level = self.level;
        CompressOptions { format, level }.check()?;
        self.check_name()
    }

    fn check_name(&self) -> Result<(), String> {
        match &self.name {
            Some(name) => knarr_core::RelPath::new(name.as_bytes())
                .map(|_| ())
                .map_err(|error| format!("`name` of the archive: {error}")),
            None => Ok(()),
        }
    }
}

/// A kind of archive that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ArchiveFormat {
    /// tar, compressed with zstd.
    #[serde(rename = "tar.zst")]
    TarZst,
    /// tar, compressed with gzip.
    #[serde(rename = "tar.gz")]
    TarGz,
    /// tar.
    #[serde(rename = "tar")]
    Tar,
    /// zip.
    #[serde(rename = "zip")]
    Zip,
}

impl ArchiveFormat {
    /// The suffix of its names, with the dot.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::TarZst => ".tar.zst",
            Self::TarGz => ".tar.gz",
            Self::Tar => ".tar",
            Self::Zip => ".zip",
        }
    }
}

/// Which checksum to put beside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChecksumOptions {
    /// The function; its name is the suffix of the side file.
    pub algorithm: ChecksumAlgorithm,
}

impl From<ChecksumAlgorithm> for ChecksumOptions {
    fn from(algorithm: ChecksumAlgorithm) -> Self {
        Self { algorithm }
    }
}

/// A checksum that `sha256sum` and its like verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChecksumAlgorithm {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
    /// MD5, for partners who ask for it: it shows accidents, not attacks.
    Md5,
}

impl ChecksumAlgorithm {
    /// The suffix of the side file, with the dot.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Sha256 => ".sha256",
            Self::Sha512 => ".sha512",
            Self::Md5 => ".md5",
        }
    }
}
