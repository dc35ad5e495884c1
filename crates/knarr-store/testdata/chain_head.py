"""Computes the head of a chain of custody from the documented format alone.

Usage: python3 chain_head.py knarr.db   (needs the package blake3)
The format stands in the documentation of the module `knarr_store::custody`.
"""

import sqlite3
import struct
import sys

from blake3 import blake3


def number(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


head = bytes(32)
rows = sqlite3.connect(sys.argv[1]).execute(
    "SELECT seq, at, run, job, action, directory, name, body, hash FROM custody ORDER BY seq"
)
for seq, at, run, job, action, directory, name, body, stored in rows:
    path = directory + b"/" + name if directory else name
    head = blake3(
        b"KNC1"
        + struct.pack(">Q", seq)
        + head
        + struct.pack(">qq", at, run)
        + number(len(job.encode()))
        + job.encode()
        + bytes([action])
        + number(len(path))
        + path
        + body
    ).digest()
    assert head == stored, f"record {seq} is not what was written"
print(head.hex())
