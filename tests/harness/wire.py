"""The wire format again, from its document and in another language: for peers that lie.

Written apart from the C++ on purpose: what both agree on is the format.
"""
import dataclasses
import os
import socket
import struct

MAGIC = b'TOWLINE\n'
CONTROL, URGENT, BULK = 0, 1, 2
LANES = {CONTROL: 'control', URGENT: 'urgent', BULK: 'bulk'}

HELLO, HELLO_REPLY, PROOF, LANE_READY, REFUSE = 1, 2, 3, 4, 5
DESCRIBE, STALE, ROUND_END, STATE, RUN, CANCEL, COMPLETE_ACK, PING, RESUME = range(16, 25)
ACCEPT, STALE_APPLIED, RUNNING, NEVER, COMPLETE, PONG, MISSING, MISSING_END, BEAT, \
    LANE_LOST, NO_ROOM, ROOM_AGAIN = range(32, 44)
PAGES, ZEROS, MARKER = 48, 49, 50
REQUEST = 64
KNOWN_TYPES = {*range(1, 6), *range(16, 25), *range(32, 44), 48, 49, 50, 64}

HEADER = struct.Struct('<HHIQQIIII')  # type flags length first count round service crc header_crc
HEADER_BYTES = 40
HELLO_BYTES = 80
HELLO_REPLY_BYTES = 96
assert HEADER.size == HEADER_BYTES


def _crc_table():
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82f63b78 if value & 1 else 0)
        yield value


_TABLE = list(_crc_table())


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xff] ^ (crc >> 8)
    return crc ^ 0xffffffff


assert crc32c(b'123456789') == 0xe3069283


@dataclasses.dataclass
class Header:
    kind: int
    flags: int = 0
    length: int = 0
    first: int = 0
    count: int = 0
    round: int = 0
    service_ns: int = 0
    payload_crc: int = 0
    header_crc: int = 0

    @staticmethod
    def read(data):
        return Header(*HEADER.unpack(data))

    def pack(self):
        """With the right checksum of its own."""
        head = HEADER.pack(*dataclasses.astuple(self))[:HEADER_BYTES - 4]
        return head + struct.pack('<I', crc32c(head))


def frame(kind, payload=b'', **fields):
    crc = crc32c(payload) if payload else 0
    return Header(kind, length=len(payload), payload_crc=crc, **fields).pack() + payload


def hello(role=CONTROL, lane=0, low=1, high=1, identity=None, epoch=0, incarnation=7, nonce=None,
          has_secret=False, features=0, magic=MAGIC, attempt=0, proof=b''):
    """The payload of a hello."""
    head = struct.pack('<8sHHBBBxQ16sQQ16sI', magic, low, high, role, lane, int(has_secret),
                       features, identity or os.urandom(16), epoch, incarnation,
                       nonce or os.urandom(16), attempt)
    return head.ljust(HELLO_BYTES, b'\0') + proof


def greeting_in(record):
    """The hello with which a lane begins, whole."""
    return record[:HEADER_BYTES + Header.read(record[:HEADER_BYTES]).length]


def with_features(hello_frame, features):
    """The same hello, of somebody older, who knows these features and no more fields."""
    payload = hello_frame[HEADER_BYTES:HEADER_BYTES + HELLO_BYTES]
    return frame(HELLO, payload[:16] + struct.pack('<Q', features) + payload[24:])


def hello_role(payload):
    """The lane's name, as a hello's payload states it; None if it is no hello."""
    if len(payload) < 14 or payload[:8] != MAGIC:
        return None
    role, lane = payload[12], payload[13]
    return f'bulk{lane}' if role == BULK else LANES.get(role)


class Peer:
    """One connection that speaks frames, honest or not."""

    def __init__(self, address, limit=60):
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(limit)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, limit)

    def send(self, data):
        self.socket.sendall(data)

    def read_exactly(self, count):
        data = b''
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError(f'closed after {len(data)} of {count} bytes')
            data += piece
        return data

    def read_frame(self):
        header = Header.read(self.read_exactly(HEADER_BYTES))
        return header, self.read_exactly(header.length)

    def wait_closed(self):
        """Reads to the end. Returns what still came."""
        rest = b''
        while True:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return rest
            if not piece:
                return rest
            rest += piece

    def close(self):
        self.socket.close()
