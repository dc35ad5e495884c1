//! What can be asked about paths.
//!
//! A request is sent when its future is first polled, and the server gets requests in that order. So
//! futures that are polled together travel together, on one round trip. A future that is dropped
//! leaves its request to the server: it may be carried out or not.

use bytes::Bytes;

use crate::client::answer::{Answer, Expect, Pending};
use crate::client::connection::{check_status, fail_decoding};
use crate::client::{Client, Directory, DirectoryOptions, Error, Handle};
use crate::codec::{
    Attributes, ExtendedRequest, Extension, FilesystemStatistics, OpenFlags, Request,
};

/// What a reply with names, or of unknown size, is counted as, in bytes.
pub(crate) const NAMES_WEIGHT: u32 = 64 * 1024;

/// What is asked and about what, for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) operation: &'static str,
    pub(crate) path: Option<&'a [u8]>,
}

impl<'a> Subject<'a> {
    pub(crate) const fn new(operation: &'static str, path: &'a [u8]) -> Self {
        Self {
            operation,
            path: Some(path),
        }
    }
}

impl Client {
    /// Opens a file. `attributes` are those of a file that is created; most servers apply permissions
    /// only, and the umask to them.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        attributes: Attributes,
    ) -> Result<Handle, Error> {
        let request = Request::Open {
            path,
            flags,
            attributes,
        };
        self.handle(&request, Subject::new("open", path)).await
    }

    /// Opens a directory to list it.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn open_directory(
        &self,
        path: &[u8],
        options: DirectoryOptions,
    ) -> Result<Directory, Error> {
        let request = Request::Opendir { path };
        let handle = self
            .handle(&request, Subject::new("open directory", path))
            .await?;
        Ok(Directory::new(handle, options))
    }

    /// Attributes, links followed.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn stat(&self, path: &[u8]) -> Result<Attributes, Error> {
        self.attributes(&Request::Stat { path }, Subject::new("stat", path))
            .await
    }

    /// Attributes, of a link itself.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn lstat(&self, path: &[u8]) -> Result<Attributes, Error> {
        self.attributes(&Request::Lstat { path }, Subject::new("lstat", path))
            .await
    }

    /// Sets those attributes that are given, links followed.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn set_attributes(&self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        let request = Request::Setstat { path, attributes };
        self.done(&request, Subject::new("set attributes of", path))
            .await
    }

    /// Sets those attributes that are given, of a link itself.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `lsetstat@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn set_link_attributes(
        &self,
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), Error> {
        self.require(Extension::Lsetstat)?;
        let request = Request::Extended(ExtendedRequest::Lsetstat { path, attributes });
        self.done(&request, Subject::new("set attributes of link", path))
            .await
    }

    /// Creates a directory; most servers apply only the permissions, and the umask to them.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses (OpenSSH says "failure" if something is there),
    /// [`Error::ConnectionLost`].
    pub async fn create_directory(&self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        let request = Request::Mkdir { path, attributes };
        self.done(&request, Subject::new("create directory", path))
            .await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn remove_directory(&self, path: &[u8]) -> Result<(), Error> {
        self.done(
            &Request::Rmdir { path },
            Subject::new("remove directory", path),
        )
        .await
    }

    /// Removes a file or a link.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn remove(&self, path: &[u8]) -> Result<(), Error> {
        self.done(&Request::Remove { path }, Subject::new("remove", path))
            .await
    }

    /// Renames; OpenSSH refuses if the target is there, which is not atomic on every file system.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        self.done(&Request::Rename { from, to }, Subject::new("rename", from))
            .await
    }

    /// Renames atomically over what is there.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `posix-rename@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn posix_rename(&self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        self.require(Extension::PosixRename)?;
        let request = Request::Extended(ExtendedRequest::PosixRename { from, to });
        self.done(&request, Subject::new("rename over the target", from))
            .await
    }

    /// Gives the file `from` a second name `to`; fails if something is there.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `hardlink@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn hard_link(&self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        self.require(Extension::Hardlink)?;
        let request = Request::Extended(ExtendedRequest::Hardlink { from, to });
        self.done(&request, Subject::new("link", from)).await
    }

    /// Creates the symbolic link `link` that points to `target`, in the order of OpenSSH.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn symlink(&self, target: &[u8], link: &[u8]) -> Result<(), Error> {
        let request = Request::Symlink { target, link };
        self.done(&request, Subject::new("create link", link)).await
    }

    /// Target of a symbolic link, as it stands in it.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn read_link(&self, path: &[u8]) -> Result<Bytes, Error> {
        self.name(&Request::Readlink { path }, Subject::new("read link", path))
            .await
    }

    /// Canonical form of a path, `.` being where the session starts. What comes back is the server's
    /// word and may be anything.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the server refuses, [`Error::ConnectionLost`].
    pub async fn real_path(&self, path: &[u8]) -> Result<Bytes, Error> {
        self.name(&Request::Realpath { path }, Subject::new("resolve", path))
            .await
    }

    /// Canonical form of a path that may start with `~` or `~user`.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `expand-path@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn expand_path(&self, path: &[u8]) -> Result<Bytes, Error> {
        self.require(Extension::ExpandPath)?;
        let request = Request::Extended(ExtendedRequest::ExpandPath { path });
        self.name(&request, Subject::new("resolve", path)).await
    }

    /// Space and inodes of the file system that holds `path`.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `statvfs@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn filesystem_statistics(&self, path: &[u8]) -> Result<FilesystemStatistics, Error> {
        self.require(Extension::Statvfs)?;
        let subject = Subject::new("ask for the space at", path);
        let request = Request::Extended(ExtendedRequest::Statvfs { path });
        match self.ask(&request, Expect::Extended, 0, subject).await? {
            Answer::Extended(payload) => FilesystemStatistics::decode(payload)
                .map_err(|source| fail_decoding(self.core(), source)),
            other => Err(refused(&other, subject)),
        }
    }

    pub(crate) fn require(&self, extension: Extension) -> Result<(), Error> {
        if self.has(extension) {
            Ok(())
        } else {
            Err(Error::ExtensionMissing { extension })
        }
    }

    /// Sends a request when there is room for it.
    pub(crate) async fn submit(
        &self,
        request: &Request<&[u8]>,
        expect: Expect,
        weight: u32,
        subject: Subject<'_>,
    ) -> Result<Pending, Error> {
        let admission = self.core().admit(weight).await?;
        let submitted = self.core().submit(admission, request, expect)?;
        submitted.map_err(|source| unsendable(source, subject))
    }

    /// Sends a request if there is room for it now.
    pub(crate) fn try_submit(
        &self,
        request: &Request<&[u8]>,
        expect: Expect,
        weight: u32,
        subject: Subject<'_>,
    ) -> Result<Option<Pending>, Error> {
        let Some(admission) = self.core().try_admit(weight)? else {
            return Ok(None);
        };
        let submitted = self.core().submit(admission, request, expect)?;
        submitted
            .map(Some)
            .map_err(|source| unsendable(source, subject))
    }

    pub(crate) async fn ask(
        &self,
        request: &Request<&[u8]>,
        expect: Expect,
        weight: u32,
        subject: Subject<'_>,
    ) -> Result<Answer, Error> {
        self.submit(request, expect, weight, subject).await?.await
    }

    pub(crate) async fn done(
        &self,
        request: &Request<&[u8]>,
        subject: Subject<'_>,
    ) -> Result<(), Error> {
        finished(
            &self.ask(request, Expect::Status, 0, subject).await?,
            subject,
        )
    }

    pub(crate) async fn attributes(
        &self,
        request: &Request<&[u8]>,
        subject: Subject<'_>,
    ) -> Result<Attributes, Error> {
        match self.ask(request, Expect::Attributes, 0, subject).await? {
            Answer::Attributes(attributes) => Ok(attributes),
            other => Err(refused(&other, subject)),
        }
    }

    async fn handle(
        &self,
        request: &Request<&[u8]>,
        subject: Subject<'_>,
    ) -> Result<Handle, Error> {
        match self.ask(request, Expect::Handle, 0, subject).await? {
            Answer::Handle(raw) => {
                let path = Bytes::copy_from_slice(subject.path.unwrap_or_default());
                Ok(Handle::new(raw, self.clone(), path))
            }
            other => Err(refused(&other, subject)),
        }
    }

    async fn name(&self, request: &Request<&[u8]>, subject: Subject<'_>) -> Result<Bytes, Error> {
        match self
            .ask(request, Expect::Names, NAMES_WEIGHT, subject)
            .await?
        {
            Answer::Names(names) => match names.as_slice() {
                [entry] => Ok(Bytes::copy_from_slice(&entry.name)),
                names => {
                    let reason = crate::client::ConnectionError::WrongReply {
                        received: if names.is_empty() {
                            "no name"
                        } else {
                            "several names"
                        },
                        expected: "one name",
                    };
                    self.core().fail(reason);
                    Err(self.core().failure())
                }
            },
            other => Err(refused(&other, subject)),
        }
    }
}

/// The outcome of a request that is answered with a status.
pub(crate) fn finished(answer: &Answer, subject: Subject<'_>) -> Result<(), Error> {
    match answer {
        Answer::Status(status) => check_status(status, subject.operation, subject.path),
        other => Err(refused(other, subject)),
    }
}

/// The error for a status in place of what was asked for. The receiving task lets through nothing
/// but what was asked for and statuses.
pub(crate) fn refused(answer: &Answer, subject: Subject<'_>) -> Error {
    match answer {
        Answer::Status(status) => Error::status(status, subject.operation, subject.path),
        _ => Error::Misused {
            operation: subject.operation,
            needs: "a reply of its own type",
        },
    }
}

pub(crate) fn unsendable(source: crate::codec::CodecError, subject: Subject<'_>) -> Error {
    let path = subject
        .path
        .map(|path| Bytes::copy_from_slice(&path[..path.len().min(256)]));
    Error::Unsendable {
        operation: subject.operation,
        path,
        source,
    }
}
