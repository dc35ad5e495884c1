"""An SFTP server that can log people in by password and that can misbehave on purpose.

Constraints: everything is asked for on the command line, and nothing is random, so that a test that
fails once fails always. Byte strings are given in hexadecimal, since names may hold any byte.
Served paths are those of the file system below --root; listings can be spiked with names that no
honest server would send, and those names can be opened and read as well.
"""

import argparse
import asyncio
import errno
import io
import os
import stat
import sys

import asyncssh
from asyncssh import sftp

HOSTILE_BODY = b"hostile"


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--host-key", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password")
    parser.add_argument("--interactive", action="append", default=[], help="PROMPT=ANSWER")
    parser.add_argument("--authorized-keys")
    parser.add_argument("--listed-name", action="append", default=[], type=bytes.fromhex)
    parser.add_argument("--listed-as-directory", action="store_true")
    parser.add_argument("--listed-twice", action="store_true")
    parser.add_argument("--endless-listing", action="store_true")
    parser.add_argument("--endless-depth", action="store_true")
    parser.add_argument("--reply-delay-ms", type=int, default=0)
    parser.add_argument("--without-extension", action="append", default=[], type=os.fsencode)
    parser.add_argument("--refuse", action="append", default=[])
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--size-offset", type=int, default=0)
    parser.add_argument("--read-limit", type=int)
    parser.add_argument("--flip-byte", type=int)
    parser.add_argument("--full-after", type=int)
    parser.add_argument("--forget-writes-after", type=int)
    parser.add_argument("--reply-fault")
    parser.add_argument("--reply-fault-after", type=int, default=0)
    return parser.parse_args()


OPTIONS = arguments()


class Login(asyncssh.SSHServer):
    def begin_auth(self, username):
        return True

    def password_auth_supported(self):
        return OPTIONS.password is not None

    def validate_password(self, username, password):
        return username == OPTIONS.user and password == OPTIONS.password

    def kbdint_auth_supported(self):
        return bool(OPTIONS.interactive)

    def get_kbdint_challenge(self, username, lang, submethods):
        return "", "", "en", [(pair.split("=", 1)[0] + ": ", False) for pair in OPTIONS.interactive]

    def validate_kbdint_response(self, username, responses):
        expected = [pair.split("=", 1)[1] for pair in OPTIONS.interactive]
        return username == OPTIONS.user and list(responses) == expected

    def public_key_auth_supported(self):
        return OPTIONS.authorized_keys is not None


def hostile_attributes():
    kind = stat.S_IFDIR | 0o755 if OPTIONS.listed_as_directory else stat.S_IFREG | 0o644
    size = 0 if OPTIONS.listed_as_directory else len(HOSTILE_BODY)
    return asyncssh.SFTPAttrs(permissions=kind, size=size, uid=0, gid=0, atime=1_600_000_000, mtime=1_600_000_000)


def is_hostile(path):
    return any(name and path.endswith(b"/" + name) for name in OPTIONS.listed_name)


def skewed(result):
    attributes = result
    if isinstance(result, os.stat_result):
        attributes = asyncssh.SFTPAttrs.from_local(result)
    if OPTIONS.size_offset and stat.S_ISREG(attributes.permissions or 0):
        attributes.size = max(0, attributes.size + OPTIONS.size_offset)
    return attributes


class Files(asyncssh.SFTPServer):
    written = 0

    def refuse(self, what):
        if what in OPTIONS.refuse:
            raise asyncssh.SFTPFailure(what + " is refused")

    def write_allowed(self):
        if OPTIONS.read_only:
            raise asyncssh.SFTPPermissionDenied("this server is read-only")

    async def scandir(self, path):
        names = []
        async for name in super().scandir(path):
            name.attrs = skewed(name.attrs)
            names.append(name)
        if OPTIONS.endless_depth:
            names.append(asyncssh.SFTPName(b"deeper", attrs=asyncssh.SFTPAttrs(
                permissions=stat.S_IFDIR | 0o755, size=0, uid=0, gid=0, atime=0, mtime=0)))
        names += [asyncssh.SFTPName(name, attrs=hostile_attributes()) for name in OPTIONS.listed_name]
        for name in names:
            yield name
            if OPTIONS.listed_twice:
                yield name
        number = 0
        while OPTIONS.endless_listing:
            yield asyncssh.SFTPName(b"endless-%012d" % number, attrs=hostile_attributes())
            number += 1
            if number % 1000 == 0:
                await asyncio.sleep(0)

    def map_path(self, path):
        if OPTIONS.endless_depth:
            path = path.split(b"/deeper")[0] or b"/"
        return path

    def stat(self, path):
        return hostile_attributes() if is_hostile(path) else skewed(super().stat(path))

    def lstat(self, path):
        return hostile_attributes() if is_hostile(path) else skewed(super().lstat(path))

    def fstat(self, file_obj):
        if isinstance(file_obj, io.BytesIO):
            return hostile_attributes()
        return skewed(super().fstat(file_obj))

    def open(self, path, pflags, attrs):
        if pflags & (asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC):
            self.write_allowed()
            self.refuse("open-write")
        elif is_hostile(path):
            return io.BytesIO(HOSTILE_BODY)
        return super().open(path, pflags, attrs)

    def read(self, file_obj, offset, size):
        if OPTIONS.read_limit is not None:
            size = min(size, OPTIONS.read_limit)
        data = super().read(file_obj, offset, size)
        if OPTIONS.flip_byte is not None and offset <= OPTIONS.flip_byte < offset + len(data):
            data = bytearray(data)
            data[OPTIONS.flip_byte - offset] ^= 0xFF
            data = bytes(data)
        return data

    def write(self, file_obj, offset, data):
        self.refuse("write")
        Files.written += len(data)
        if OPTIONS.full_after is not None and Files.written > OPTIONS.full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if OPTIONS.forget_writes_after is not None and Files.written > OPTIONS.forget_writes_after:
            return len(data)
        return super().write(file_obj, offset, data)

    def fsync(self, file_obj):
        self.refuse("fsync")
        return super().fsync(file_obj)


def guarded(name):
    honest = getattr(asyncssh.SFTPServer, name)

    def method(self, *args, **kwargs):
        self.write_allowed()
        self.refuse(name)
        return honest(self, *args, **kwargs)

    return method


for operation in ("posix_rename", "rename", "remove", "mkdir", "rmdir", "symlink", "link", "setstat", "fsetstat", "lsetstat"):
    setattr(Files, operation, guarded(operation))


def tamper():
    """Makes the packet layer do what the command line asks for."""
    handler = sftp.SFTPServerHandler
    gone = set(OPTIONS.without_extension)
    if b"all" in gone:
        gone = {name for name, _ in handler._extensions}
    handler._extensions = [pair for pair in handler._extensions if pair[0] not in gone]
    for name in gone:
        handler._packet_handlers.pop(name, None)

    honest_process = handler._process_packet
    honest_send = handler.send_packet
    replies = 0

    async def process(self, pkttype, pktid, packet):
        if OPTIONS.reply_delay_ms:
            await asyncio.sleep(OPTIONS.reply_delay_ms / 1000)
        await honest_process(self, pkttype, pktid, packet)

    def send(self, pkttype, pktid, *args):
        nonlocal replies
        replies += 1
        fault = OPTIONS.reply_fault
        if fault is None or pktid is None or replies <= OPTIONS.reply_fault_after:
            return honest_send(self, pkttype, pktid, *args)
        if fault == "duplicate":
            honest_send(self, pkttype, pktid, *args)
            return honest_send(self, pkttype, pktid, *args)
        if fault == "wrong-id":
            wrong = (pktid + 1_000_000) & 0xFFFFFFFF
            return honest_send(self, pkttype, wrong, wrong.to_bytes(4, "big"), *args[1:])
        if fault == "unknown-type":
            return honest_send(self, 0xFE, pktid, *args)
        if fault == "silent":
            return None
        payload = bytes([pkttype]) + b"".join(args)
        lengths = {"huge-length": 0xFFFFFFFF, "short-length": len(payload) - 1, "long-length": len(payload) + 7, "zero-length": 0}
        self._writer.write(lengths[fault].to_bytes(4, "big") + payload)
        return None

    handler._process_packet = process
    handler.send_packet = send


async def main():
    tamper()
    # Relative paths start at the root, as a home directory would.
    os.chdir(OPTIONS.root)
    await asyncssh.create_server(
        Login,
        "127.0.0.1",
        OPTIONS.port,
        server_host_keys=[OPTIONS.host_key],
        authorized_client_keys=OPTIONS.authorized_keys,
        sftp_factory=Files,
        allow_scp=False,
        reuse_address=True,
    )
    print("ready", flush=True)
    await asyncio.Event().wait()


try:
    asyncio.run(main())
except (OSError, asyncssh.Error) as error:
    sys.exit(f"cannot serve: {error}")
