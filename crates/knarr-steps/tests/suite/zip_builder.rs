//! Writes zip byte by byte, also what no program would write.

use flate2::Crc;

#[derive(Clone)]
pub(crate) struct Entry {
    /// In the header before the content.
    pub(crate) local_name: Vec<u8>,
    /// In the directory.
    pub(crate) name: Vec<u8>,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc: u32,
    /// As it is stored.
    pub(crate) data: Vec<u8>,
    pub(crate) size: u32,
    /// In the header before the content, if it differs.
    pub(crate) local_size: Option<u32>,
    pub(crate) mode: u32,
    /// Where the directory says it is, if not where it is.
    pub(crate) offset: Option<u32>,
    pub(crate) extra: Vec<u8>,
}

fn crc(content: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(content);
    crc.sum()
}

/// Stored without compression.
pub(crate) fn stored(name: &str, content: &[u8]) -> Entry {
    Entry {
        local_name: name.as_bytes().to_vec(),
        name: name.as_bytes().to_vec(),
        flags: 0,
        method: 0,
        crc: crc(content),
        data: content.to_vec(),
        size: u32::try_from(content.len()).unwrap(),
        local_size: None,
        mode: 0o100_644,
        offset: None,
        extra: Vec::new(),
    }
}

pub(crate) fn deflated(name: &str, content: &[u8]) -> Entry {
    use std::io::Write as _;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(content).unwrap();
    Entry {
        method: 8,
        data: encoder.finish().unwrap(),
        ..stored(name, content)
    }
}

fn fields(out: &mut Vec<u8>, short: &[u16], long: &[u32]) {
    short
        .iter()
        .for_each(|value| out.extend(value.to_le_bytes()));
    long.iter()
        .for_each(|value| out.extend(value.to_le_bytes()));
}

fn length(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).unwrap()
}

pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = u32::try_from(out.len()).unwrap();
        let packed = u32::try_from(entry.data.len()).unwrap();
        out.extend(b"PK\x03\x04");
        fields(&mut out, &[20, entry.flags, entry.method, 0, 0x21], &[]);
        fields(
            &mut out,
            &[],
            &[entry.crc, packed, entry.local_size.unwrap_or(entry.size)],
        );
        fields(&mut out, &[length(&entry.local_name), 0], &[]);
        out.extend(&entry.local_name);
        out.extend(&entry.data);
        directory.extend(b"PK\x01\x02");
        fields(
            &mut directory,
            &[20 | 3 << 8, 20, entry.flags, entry.method, 0, 0x21],
            &[],
        );
        fields(&mut directory, &[], &[entry.crc, packed, entry.size]);
        fields(
            &mut directory,
            &[length(&entry.name), length(&entry.extra), 0, 0, 0],
            &[],
        );
        fields(
            &mut directory,
            &[],
            &[entry.mode << 16, entry.offset.unwrap_or(offset)],
        );
        directory.extend(&entry.name);
        directory.extend(&entry.extra);
    }
    let start = u32::try_from(out.len()).unwrap();
    let bytes = u32::try_from(directory.len()).unwrap();
    let count = u16::try_from(entries.len()).unwrap();
    out.extend(directory);
    out.extend(b"PK\x05\x06");
    fields(&mut out, &[0, 0, count, count], &[bytes, start]);
    fields(&mut out, &[0], &[]);
    out
}
