//! Carries out the requests of one client, one after the other.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::codec::{
    Attributes, ExtendedRequest, Extension, NameEntry, OpenFlags, Reply, Request, ServerPacket,
    Status, StatusCode, VERSION,
};
use crate::server::framer::{Task, Work};
use crate::server::handles::{File, Handles, Open};
use crate::server::open_files::{Check, Copy};
use crate::server::outbox::Outbox;
use crate::server::queue::Queue;
use crate::server::{Event, FileError, FileSystem, Observer, Operation, ServeError, ServeOptions};

/// Numbers in one `users-groups-by-id`: each may cost a look-up.
const IDS: usize = 4096;

/// What each extension is, for the list of what is allowed.
const EXTENSIONS: [(Extension, Operation); 12] = [
    (Extension::PosixRename, Operation::PosixRename),
    (Extension::Statvfs, Operation::Statvfs),
    (Extension::Fstatvfs, Operation::Fstatvfs),
    (Extension::Hardlink, Operation::Hardlink),
    (Extension::Fsync, Operation::Fsync),
    (Extension::Lsetstat, Operation::Lsetstat),
    (Extension::Limits, Operation::Limits),
    (Extension::ExpandPath, Operation::ExpandPath),
    (Extension::CopyData, Operation::CopyData),
    (Extension::CheckFileHandle, Operation::CheckFile),
    (Extension::CheckFileName, Operation::CheckFile),
    (Extension::UsersGroupsById, Operation::UsersGroupsById),
];

/// One connection: what is open, and where replies go.
pub(crate) struct Session {
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) options: ServeOptions,
    pub(crate) handles: Handles,
    pub(crate) outbox: Outbox,
    pub(crate) requests: u64,
    greeted: bool,
}

impl Session {
    pub(crate) fn new(
        file_system: Arc<dyn FileSystem>,
        observer: Arc<dyn Observer>,
        options: ServeOptions,
        outbox: Outbox,
    ) -> Self {
        Self {
            handles: Handles::new(options.limits.open_handles),
            file_system,
            observer,
            options,
            outbox,
            requests: 0,
            greeted: false,
        }
    }

    /// Carries out what waits, as long as there is room for replies and for at most `most` requests.
    pub(crate) async fn burst(
        &mut self,
        waiting: &Queue<Work>,
        most: usize,
    ) -> Result<(), ServeError> {
        for _ in 0..most {
            if !self.outbox.has_room() {
                break;
            }
            let Some(work) = waiting.try_take() else {
                break;
            };
            self.carry_out(work).await?;
        }
        self.outbox.flush();
        Ok(())
    }

    async fn carry_out(&mut self, work: Work) -> Result<(), ServeError> {
        let Work { id, task } = work;
        match (task, self.greeted) {
            (Task::Init, false) => {
                self.greet();
                return Ok(());
            }
            (Task::Init, true) => {
                return Err(ServeError::Order {
                    what: "INIT a second time",
                });
            }
            (_, false) => {
                return Err(ServeError::Order {
                    what: "a request before INIT",
                });
            }
            (Task::Request(request), true) => self.answer(id, request).await,
            (
                Task::Write {
                    handle,
                    offset,
                    data,
                },
                true,
            ) => {
                let outcome = match self.check_allowed(Operation::Write) {
                    Ok(()) => self.write(&handle, offset, &data).await,
                    Err(error) => Err(error),
                };
                self.outbox.reply(id, &status_of(outcome));
            }
            (Task::Unreadable(error), true) => {
                let code = match error {
                    crate::codec::CodecError::UnknownType { .. } => {
                        StatusCode::OperationUnsupported
                    }
                    _ => StatusCode::BadMessage,
                };
                self.outbox.reply(id, &status(code, &error.to_string()));
            }
        }
        self.requests += 1;
        Ok(())
    }

    fn greet(&mut self) {
        let hashes = !self.file_system.hash_algorithms().is_empty();
        let offered = |(extension, operation): &&(Extension, Operation)| {
            self.options.allowed.has(*operation)
                && (hashes
                    || !matches!(
                        extension,
                        Extension::CheckFileHandle | Extension::CheckFileName
                    ))
        };
        let pair = |(extension, _): &(Extension, Operation)| {
            (
                Bytes::from_static(extension.name().as_bytes()),
                Bytes::from_static(extension.version().as_bytes()),
            )
        };
        let packet = ServerPacket::Version {
            version: VERSION,
            extensions: EXTENSIONS.iter().filter(offered).map(pair).collect(),
        };
        let mut encoded = BytesMut::new();
        packet
            .encode(usize::MAX, &mut encoded)
            .expect("nothing is longer than the limit");
        self.outbox.packet(&encoded);
        self.greeted = true;
    }

    fn check_allowed(&self, operation: Operation) -> Result<(), FileError> {
        if self.options.allowed.has(operation) {
            Ok(())
        } else {
            Err(FileError::Denied {
                reason: "requests of this kind are switched off",
            })
        }
    }

    async fn answer(&mut self, id: u32, request: Request) {
        let operation = operation_of(&request);
        if let Err(error) = self
            .check_allowed(operation)
            .and_then(|()| check_names(&request))
        {
            self.note(operation, b"", None, Err(&error));
            self.outbox.reply(id, &status_of(Err(error)));
            return;
        }
        let outcome = match request {
            // The only reply that is not made of a value.
            Request::Read {
                handle,
                offset,
                length,
            } => match self.read(id, &handle, offset, length).await {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Request::Write {
                handle,
                offset,
                data,
            } => done(self.write(&handle, offset, &[data]).await),
            Request::Close { handle } => done(self.close_handle(&handle).await),
            Request::Fstat { handle } => self.stat_open(&handle).await.map(Reply::Attributes),
            Request::Fsetstat { handle, attributes } => {
                done(self.set_attributes_open(&handle, &attributes).await)
            }
            Request::Readdir { handle } => self.read_directory(&handle).await,
            Request::Extended(request) => self.extended(request).await,
            request => self.about_path(operation, request).await,
        };
        let reply = outcome.unwrap_or_else(|error| status_of(Err(error)));
        self.outbox.reply(id, &reply);
    }

    /// Requests that name something.
    async fn about_path(
        &mut self,
        operation: Operation,
        request: Request,
    ) -> Result<Reply, FileError> {
        let files = Arc::clone(&self.file_system);
        let (path, other, outcome) = match request {
            Request::Open {
                path,
                flags,
                attributes,
            } => {
                let outcome = self.open(&path, flags, &attributes).await;
                (path, None, outcome)
            }
            Request::Opendir { path } => {
                let outcome = self.open_directory(&path).await;
                (path, None, outcome)
            }
            Request::Lstat { path } => return files.lstat(&path).await.map(Reply::Attributes),
            Request::Stat { path } => return files.stat(&path).await.map(Reply::Attributes),
            Request::Realpath { path } => return files.canonical(&path).await.map(one_name),
            Request::Readlink { path } => return files.read_link(&path).await.map(one_name),
            Request::Setstat { path, attributes } => {
                let outcome = files.set_attributes(&path, &attributes).await;
                (path, None, done(outcome))
            }
            Request::Remove { path } => {
                let outcome = files.remove_file(&path).await;
                (path, None, done(outcome))
            }
            Request::Mkdir { path, attributes } => {
                let outcome = files.make_directory(&path, &attributes).await;
                (path, None, done(outcome))
            }
            Request::Rmdir { path } => {
                let outcome = files.remove_directory(&path).await;
                (path, None, done(outcome))
            }
            Request::Rename { from, to } => {
                let outcome = files.rename(&from, &to).await;
                (from, Some(to), done(outcome))
            }
            Request::Symlink { target, link } => {
                let outcome = files.make_link(&target, &link).await;
                (target, Some(link), done(outcome))
            }
            _ => return Err(FileError::Unsupported),
        };
        self.note(
            operation,
            &path,
            other.as_deref(),
            outcome.as_ref().map(|_| ()),
        );
        outcome
    }

    async fn extended(&mut self, request: ExtendedRequest) -> Result<Reply, FileError> {
        let files = Arc::clone(&self.file_system);
        let (operation, path, other, outcome) = match request {
            ExtendedRequest::PosixRename { from, to } => {
                let outcome = files.rename_over(&from, &to).await;
                (Operation::PosixRename, from, Some(to), outcome)
            }
            ExtendedRequest::Hardlink { from, to } => {
                let outcome = files.make_hard_link(&from, &to).await;
                (Operation::Hardlink, from, Some(to), outcome)
            }
            ExtendedRequest::Lsetstat { path, attributes } => {
                let outcome = files.set_link_attributes(&path, &attributes).await;
                (Operation::Lsetstat, path, None, outcome)
            }
            other => return self.question(other).await,
        };
        self.note(
            operation,
            &path,
            other.as_deref(),
            outcome.as_ref().copied(),
        );
        done(outcome)
    }

    /// Extensions that change no name.
    async fn question(&mut self, request: ExtendedRequest) -> Result<Reply, FileError> {
        let files = Arc::clone(&self.file_system);
        match request {
            ExtendedRequest::Statvfs { path } => {
                let statistics = files.statistics(&path).await?;
                Ok(Reply::Extended(statistics.encode()))
            }
            ExtendedRequest::Fstatvfs { handle } => {
                let statistics = self.statistics_open(&handle).await?;
                Ok(Reply::Extended(statistics.encode()))
            }
            ExtendedRequest::Fsync { handle } => {
                done(self.handles.file(&handle)?.file.sync().await)
            }
            ExtendedRequest::Limits => {
                Ok(Reply::Extended(self.options.limits.announced().encode()))
            }
            ExtendedRequest::ExpandPath { path } => files.expand(&path).await.map(one_name),
            ExtendedRequest::CopyData {
                from,
                from_offset,
                length,
                to,
                to_offset,
            } => {
                let copy = Copy {
                    from: &from,
                    from_offset,
                    length,
                    to: &to,
                    to_offset,
                };
                done(self.copy_data(copy).await)
            }
            ExtendedRequest::CheckFileHandle {
                handle,
                algorithms,
                offset,
                length,
                block_bytes,
            } => {
                let check = Check {
                    algorithms: &algorithms,
                    offset,
                    length,
                    block_bytes,
                };
                self.check_open(&handle, check).await
            }
            ExtendedRequest::CheckFileName {
                path,
                algorithms,
                offset,
                length,
                block_bytes,
            } => {
                let check = Check {
                    algorithms: &algorithms,
                    offset,
                    length,
                    block_bytes,
                };
                let file = files
                    .open(&path, OpenFlags::READ, &Attributes::default())
                    .await?;
                self.check_file(file, check).await
            }
            ExtendedRequest::UsersGroupsById { users, groups } => {
                let names = files.user_names();
                let mut payload = BytesMut::new();
                put_names(&mut payload, users, |id| names.user(id))?;
                put_names(&mut payload, groups, |id| names.group(id))?;
                Ok(Reply::Extended(payload.freeze()))
            }
            _ => Err(FileError::Unsupported),
        }
    }

    async fn open(
        &mut self,
        path: &[u8],
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<Reply, FileError> {
        self.handles.check_room()?;
        let file = self.file_system.open(path, flags, attributes).await?;
        let open = Open::File(File {
            file,
            path: path.to_vec(),
            read_bytes: 0,
            written_bytes: 0,
        });
        Ok(Reply::Handle(self.handles.insert(open)))
    }

    async fn open_directory(&mut self, path: &[u8]) -> Result<Reply, FileError> {
        self.handles.check_room()?;
        let directory = self.file_system.open_directory(path).await?;
        Ok(Reply::Handle(
            self.handles.insert(Open::Directory(directory)),
        ))
    }

    pub(crate) fn note(
        &self,
        operation: Operation,
        path: &[u8],
        other: Option<&[u8]>,
        outcome: Result<(), &FileError>,
    ) {
        self.observer.observe(&Event::Request {
            operation,
            path,
            other,
            outcome,
        });
    }

    /// Gives back what is still open. What was not closed is not complete.
    pub(crate) fn end(&mut self) {
        for open in self.handles.drain() {
            if let Open::File(file) = open {
                self.observer.observe(&Event::Abandoned {
                    path: &file.path,
                    written_bytes: file.written_bytes,
                });
            }
        }
        self.outbox.close();
    }
}

fn operation_of(request: &Request) -> Operation {
    match request {
        Request::Open { .. } => Operation::Open,
        Request::Close { .. } => Operation::Close,
        Request::Read { .. } => Operation::Read,
        Request::Write { .. } => Operation::Write,
        Request::Lstat { .. } => Operation::Lstat,
        Request::Fstat { .. } => Operation::Fstat,
        Request::Setstat { .. } => Operation::Setstat,
        Request::Fsetstat { .. } => Operation::Fsetstat,
        Request::Opendir { .. } => Operation::Opendir,
        Request::Readdir { .. } => Operation::Readdir,
        Request::Remove { .. } => Operation::Remove,
        Request::Mkdir { .. } => Operation::Mkdir,
        Request::Rmdir { .. } => Operation::Rmdir,
        Request::Realpath { .. } => Operation::Realpath,
        Request::Stat { .. } => Operation::Stat,
        Request::Rename { .. } => Operation::Rename,
        Request::Readlink { .. } => Operation::Readlink,
        Request::Symlink { .. } => Operation::Symlink,
        Request::Extended(request) => match request {
            ExtendedRequest::PosixRename { .. } => Operation::PosixRename,
            ExtendedRequest::Statvfs { .. } => Operation::Statvfs,
            ExtendedRequest::Fstatvfs { .. } => Operation::Fstatvfs,
            ExtendedRequest::Hardlink { .. } => Operation::Hardlink,
            ExtendedRequest::Fsync { .. } => Operation::Fsync,
            ExtendedRequest::Lsetstat { .. } => Operation::Lsetstat,
            ExtendedRequest::Limits => Operation::Limits,
            ExtendedRequest::ExpandPath { .. } => Operation::ExpandPath,
            ExtendedRequest::CopyData { .. } => Operation::CopyData,
            ExtendedRequest::CheckFileHandle { .. } | ExtendedRequest::CheckFileName { .. } => {
                Operation::CheckFile
            }
            ExtendedRequest::UsersGroupsById { .. } => Operation::UsersGroupsById,
            ExtendedRequest::Other { .. } => Operation::Unknown,
        },
    }
}

/// No name has a NUL: what stands behind it would be lost on the way to the operating system.
fn check_names(request: &Request) -> Result<(), FileError> {
    let names: [Option<&Bytes>; 2] = match request {
        Request::Open { path, .. }
        | Request::Lstat { path }
        | Request::Setstat { path, .. }
        | Request::Opendir { path }
        | Request::Remove { path }
        | Request::Mkdir { path, .. }
        | Request::Rmdir { path }
        | Request::Realpath { path }
        | Request::Stat { path }
        | Request::Readlink { path }
        | Request::Extended(
            ExtendedRequest::Statvfs { path }
            | ExtendedRequest::Lsetstat { path, .. }
            | ExtendedRequest::ExpandPath { path }
            | ExtendedRequest::CheckFileName { path, .. },
        ) => [Some(path), None],
        Request::Rename { from, to }
        | Request::Symlink {
            target: from,
            link: to,
        }
        | Request::Extended(
            ExtendedRequest::PosixRename { from, to } | ExtendedRequest::Hardlink { from, to },
        ) => [Some(from), Some(to)],
        _ => [None, None],
    };
    if names.iter().flatten().any(|name| name.contains(&0)) {
        return Err(FileError::Invalid {
            reason: "no name may contain a NUL",
        });
    }
    Ok(())
}

fn put_names(
    out: &mut BytesMut,
    mut ids: Bytes,
    name: impl Fn(u32) -> String,
) -> Result<(), FileError> {
    if !ids.len().is_multiple_of(4) || ids.len() / 4 > IDS {
        return Err(FileError::Invalid {
            reason: "that is no list of at most 4,096 numbers",
        });
    }
    let mut names = BytesMut::new();
    while let Ok(id) = ids.try_get_u32() {
        let name = name(id);
        names.put_u32(u32::try_from(name.len()).unwrap_or(0));
        names.put_slice(name.as_bytes());
    }
    out.put_u32(u32::try_from(names.len()).unwrap_or(0));
    out.put_slice(&names);
    Ok(())
}

fn status(code: StatusCode, message: &str) -> Reply {
    Reply::Status(Status {
        code,
        message: Bytes::copy_from_slice(message.as_bytes()),
        language: Bytes::from_static(b"en"),
    })
}

fn status_of(outcome: Result<(), FileError>) -> Reply {
    match outcome {
        Ok(()) => Reply::Status(Status {
            code: StatusCode::Ok,
            message: Bytes::from_static(b"Success"),
            language: Bytes::new(),
        }),
        Err(error) => status(error.code(), &error.to_string()),
    }
}

fn done(outcome: Result<(), FileError>) -> Result<Reply, FileError> {
    outcome.map(|()| status_of(Ok(())))
}

pub(crate) fn end_of_file() -> Reply {
    status(StatusCode::Eof, "End of file")
}

/// REALPATH and READLINK are answered with a name and no attributes.
fn one_name(name: Vec<u8>) -> Reply {
    let name = Bytes::from(name);
    Reply::Names(vec![NameEntry {
        long_name: name.clone(),
        name,
        attributes: Attributes::default(),
    }])
}
