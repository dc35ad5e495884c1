//! Files as they flow through a pipeline.

use bytes::Bytes;
use knarr_core::{RelPath, Timestamp};

/// What a file of a pipeline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link that, below the directory it is made in, can lead only to what is there too.
    Symlink {
        /// What the link says.
        target: Box<[u8]>,
    },
    /// Another name of a file that came before in the same archive.
    HardLink {
        /// The path of that file, as it was put out.
        target: RelPath,
    },
}

/// A file of a pipeline, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its path, relative to the root that the caller has in mind.
    pub path: RelPath,
    /// What it is.
    pub node: Node,
    /// Its length in bytes, if it is known before.
    pub size: Option<u64>,
    /// Its permissions: the lower nine bits, never setuid, setgid or sticky.
    pub mode: Option<u32>,
    /// When it was last changed.
    pub mtime: Option<Timestamp>,
}

impl Head {
    /// A file of which nothing but the path is known.
    #[must_use]
    pub fn file(path: RelPath) -> Self {
        Self::new(path, Node::File)
    }

    pub(crate) fn new(path: RelPath, node: Node) -> Self {
        Self {
            path,
            node,
            size: None,
            mode: None,
            mtime: None,
        }
    }
}

/// What goes from one stage of a pipeline to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Begin(Head),
    Data(Bytes),
    End,
    /// Of everything.
    Finish,
}
