//! Writes tar byte by byte, also what no program would write.

/// A header with the fields that matter; the rest is zero.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    /// As it is written, 12 bytes.
    pub(crate) size: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

pub(crate) fn file(name: &str, content: &[u8]) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        kind: b'0',
        link: Vec::new(),
        mode: 0o644,
        size: format!("{:011o}\0", content.len()).into_bytes(),
        content: content.to_vec(),
    }
}

pub(crate) fn node(name: &str, kind: u8, link: &str) -> Entry {
    Entry {
        kind,
        link: link.as_bytes().to_vec(),
        ..file(name, b"")
    }
}

/// An extended header: kind `x`, `g`, `L` or `K`.
pub(crate) fn extended(kind: u8, content: &[u8]) -> Entry {
    Entry {
        kind,
        ..file("extended", content)
    }
}

pub(crate) fn block(entry: &Entry) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &entry.name);
    put(100, format!("{:07o}\0", entry.mode).as_bytes());
    put(124, &entry.size);
    put(136, b"14700000000\0");
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, &entry.link);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The entries without the end.
pub(crate) fn open_archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend(block(entry));
        out.extend(&entry.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = open_archive(entries);
    out.extend([0; 1024]);
    out
}
