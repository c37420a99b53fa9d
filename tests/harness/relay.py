"""A TCP relay between source and target that does to the link what bad networks do.

It knows lanes (by their hello) and frames (by their heads), so that a test can say "hold the urgent
lane's answers" or "cut the control lane in the middle of the run order". Directions are `target`
(source to target) and `source` (back).

    relay = Relay(('127.0.0.1', port))
    order = relay.on('control', 'target', wire.RUN, Cut(after=20, how='rst'))
    ...                      # migrate to 127.0.0.1:relay.port
    order.wait()
"""
import ctypes
import dataclasses
import socket
import struct
import threading
import time

import distance
import waiting
import wire

CHUNK = 256 * 1024
LARGEST_FRAME = 64 << 20
RECORDED = 512
ANY = None


@dataclasses.dataclass
class Hold:
    """Nothing goes on in this direction, from before the frame, until released."""


@dataclasses.dataclass
class Cut:
    """Ends the connection after this many bytes of the frame. rst: hard; fin: as close() does."""
    after: int = 0
    how: str = 'rst'


@dataclasses.dataclass
class Flip:
    """Inverts one bit of the frame."""
    offset: int
    bit: int = 0


@dataclasses.dataclass
class Swallow:
    """The frame goes no further; what is behind it does."""


@dataclasses.dataclass
class Call:
    """Calls a function before the frame goes on."""
    function: object


@dataclasses.dataclass
class Decide:
    """Asks a function, with the lane's name, the direction and the frame's head, what to do.

    It answers with one of the other actions, None (the frame was met, and goes on), or MISSED: the
    rule stays for a later frame.
    """
    function: object


MISSED = object()


class Rule:
    """What to do at the nth frame of a kind on a lane."""

    def __init__(self, lane, direction, kind, action, nth):
        self.lane, self.direction, self.kind = lane, direction, kind
        self.action, self.left = action, nth
        self._hit = threading.Event()

    def takes(self, connection, direction, header):
        if self.left == 0 or self.direction not in (ANY, direction):
            return False
        if not lane_fits(self.lane, connection.lane):
            return False
        if self.kind not in (ANY, header.kind):
            return False
        self.left -= 1
        return self.left == 0

    def again(self):
        """Waits for the next frame of its kind."""
        self.left = 1

    def hit(self):
        self._hit.set()

    def was_hit(self):
        return self._hit.is_set()

    def wait(self, limit=None):
        if not self._hit.wait(limit or waiting.LIMIT_S):
            raise waiting.NeverHappened(
                f'relay: no frame {self.kind} on {self.lane} to {self.direction}')


def lane_fits(wanted, lane):
    """"bulk" is every bulk lane, "bulk1" one of them."""
    return wanted in (ANY, lane) or (wanted == 'bulk' and (lane or '').startswith('bulk'))


class Relay:
    def __init__(self, target):
        self.target = target
        self.lock = threading.Lock()
        self.rules = []
        self.connections = []
        self._arrived = threading.Condition(self.lock)
        self._held = set()  # (lane, direction)
        self._rates = {}    # (lane, direction) -> bytes/s
        self._paces = {}    # direction -> Pace of all lanes together
        self._refusing = False
        self._deaf_to = set()  # Directions whose packets are dropped.
        self._loss = 0.0       # The share of them that is dropped of every other.
        self.delay_s = 0
        self.features = ANY  # Otherwise no others are left in a hello: both ends take the other
                             # for an older one.
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.uri = f'tcp:127.0.0.1:{self.port}'
        threading.Thread(target=self._accept, daemon=True).start()

    # ---- what a test says ----------------------------------------------------------------------

    def on(self, lane, direction, kind, action, nth=1):
        rule = Rule(lane, direction, kind, action, nth)
        with self.lock:
            self.rules.append(rule)
        return rule

    def off(self, rule):
        """The rule takes no frame any more."""
        with self.lock:
            if rule in self.rules:
                self.rules.remove(rule)

    def hold(self, lane=ANY, direction=ANY):
        """A black hole: connections stay, nothing moves (what moves already, may)."""
        with self.lock:
            self._held.add((lane, direction))
            for connection in self.connections:
                connection.regate()

    def release(self):
        """Ends every hold."""
        with self.lock:
            self._held.clear()
            for connection in self.connections:
                for pipe in connection.pipes:
                    pipe.held_here = False
                connection.regate()

    def drop(self, direction=ANY):
        """A dead network: what arrives is neither read nor acknowledged, and nobody can connect.

        One direction: as if only the packets that way were lost, acknowledgements among them.
        """
        with self.lock:
            self._deaf_to |= {'target', 'source'} if direction is ANY else {direction}
            self._set_filters()

    def undrop(self):
        """Packets arrive again; what was lost is sent again by the peers' kernels."""
        with self.lock:
            self._deaf_to.clear()
            self._set_filters()

    def lose(self, share):
        """A lossy network: of all packets that come here, acknowledgements and those that open a
        connection among them, this share is dropped, at random. The peers' kernels send it again."""
        with self.lock:
            self._loss = share
            self._set_filters()

    def deafen(self, lane):
        """As drop(), of the connections of one lane that are there: what comes later gets through."""
        with self.lock:
            for connection in self.connections:
                if connection.open and lane_fits(lane, connection.lane):
                    connection.set_filters({'target', 'source'}, self._loss)

    def delay(self, seconds):
        """Each way takes this long. It makes nothing narrower: what is under way waits together."""
        self.delay_s = seconds

    def limit(self, bytes_per_second, lane=ANY, direction=ANY):
        """Of each connection. None: no limit."""
        with self.lock:
            self._rates[(lane, direction)] = bytes_per_second

    def limit_together(self, bytes_per_second):
        """All lanes share this, each direction for itself, as they would share a wire."""
        with self.lock:
            self._paces = {direction: distance.Pace(bytes_per_second) for direction in ('target', 'source')}

    def cut(self, lane=ANY, how='rst'):
        """Ends the connections of a lane. Returns how many there were."""
        with self.lock:
            chosen = [one for one in self.connections if one.open and lane_fits(lane, one.lane)]
        for connection in chosen:
            connection.end(how)
        return len(chosen)

    def refuse(self, yes=True):
        """New connections are closed at once."""
        self._refusing = yes

    def say(self, lane, direction, data):
        """Bytes that nobody said, on a lane that is between two frames: from within a Call there."""
        with self.lock:
            pipe = next(pipe for one in self.connections if one.lane == lane and one.open
                        for pipe in one.pipes if pipe.direction == direction)
        pipe.send(data)

    def wait_lanes(self, count, limit=None):
        """Waits until this many connections said who they are; returns their names."""
        def named():
            return [one.lane for one in self.connections if one.lane]

        deadline = time.monotonic() + (limit or waiting.LIMIT_S)
        with self._arrived:
            while len(named()) < count:
                if not self._arrived.wait(deadline - time.monotonic()):
                    raise waiting.NeverHappened(f'relay: {count} lanes; there are {named()}')
            return named()

    def bytes_through(self, lane=ANY, direction=ANY):
        with self.lock:
            return sum(pipe.passed for one in self.connections if lane_fits(lane, one.lane)
                       for pipe in one.pipes if direction in (ANY, pipe.direction))

    def recorded(self, lane):
        """The first bytes that a lane carried to the target: its handshake."""
        with self.lock:
            return next(one.pipes[0].first for one in self.connections if one.lane == lane)

    def close(self):
        self._refusing = True
        self.undrop()
        self._listener.shutdown(socket.SHUT_RDWR)  # close() alone leaves _accept() in the kernel.
        self._listener.close()
        self.release()
        self.cut(how='rst')

    # ---- inside --------------------------------------------------------------------------------

    def _set_filters(self):
        """Called with the lock."""
        set_filter(self._listener, 1.0 if 'target' in self._deaf_to else self._loss)
        for connection in self.connections:
            connection.set_filters(self._deaf_to, self._loss)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                near.close()
                continue
            if self.delay_s:
                # What opens a connection travels as long as what is said on it: over there both arrive
                # together.
                threading.Timer(self.delay_s, self._join, [near, True]).start()
            else:
                self._join(near)

    def _join(self, near, late=False):
        try:
            far = socket.create_connection(self.target, waiting.LIMIT_S)
            far.settimeout(None)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            connection = Connection(self, near, far)
            connection.pipes[0].has_travelled = late
            connection.set_filters(self._deaf_to, self._loss)
            self.connections.append(connection)
        connection.start()

    def named(self, connection, lane):
        with self._arrived:
            connection.lane = lane
            connection.regate()
            self._arrived.notify_all()

    def is_held(self, connection, direction):
        """Called with the lock."""
        return any(lane_fits(lane, connection.lane) and held in (ANY, direction)
                   for lane, held in self._held)

    def rate_of(self, connection, direction):
        with self.lock:
            fitting = [rate for (lane, limited), rate in self._rates.items()
                       if rate and lane_fits(lane, connection.lane)
                       and limited in (ANY, direction)]
        return min(fitting, default=None)

    def pace_of(self, direction):
        with self.lock:
            return self._paces.get(direction)

    def rule_for(self, connection, direction, header):
        with self.lock:
            return next((rule for rule in self.rules
                         if rule.takes(connection, direction, header)), None)


class Connection:
    """Both directions of one lane."""

    def __init__(self, relay, near, far):
        self.relay, self.near, self.far = relay, near, far
        self.lane = None
        self.open = True
        self._closed = False
        self._closing = threading.Lock()  # Or a number that has another meaning by now is reset.
        self.pipes = [Pipe(self, 'target', near, far), Pipe(self, 'source', far, near)]

    def start(self):
        for pipe in self.pipes:
            threading.Thread(target=pipe.run, daemon=True).start()

    def regate(self):
        """Called with the relay's lock."""
        for pipe in self.pipes:
            if pipe.held_here or self.relay.is_held(self, pipe.direction):
                pipe.gate.clear()
            else:
                pipe.gate.set()

    def set_filters(self, deaf_to, loss):
        for pipe in self.pipes:
            set_filter(pipe.reader, 1.0 if pipe.direction in deaf_to else loss)

    def end(self, how):
        self.open = False
        for pipe in self.pipes:
            pipe.ended = True
            pipe.gate.set()
            if pipe.distance:
                pipe.distance.end()
        with self._closing:
            if self._closed:
                return
            for end in (self.near, self.far):
                try:
                    if how == 'rst':
                        reset(end)
                    else:
                        end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close_if_over(self):
        """What is behind it is heard to its end. A long run has thousands of these."""
        with self._closing:
            if all(pipe.over for pipe in self.pipes) and not self._closed:
                self.open = False
                self._closed = True
                self.near.close()
                self.far.close()


SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# Classic BPF, as linux/filter.h has it. 0xfffff038 is SKF_AD_OFF + SKF_AD_RANDOM: no byte of the
# packet, but a random number.
LOAD_RANDOM = (0x20, 0, 0, 0xfffff038)
TAKE, DROP = (0x06, 0, 0, 0xffffffff), (0x06, 0, 0, 0)


def drop_at_least(threshold):
    """Skips one instruction if the number is smaller."""
    return (0x35, 0, 1, threshold)


def filter_program(share):
    """Drops this share of the packets. The kernel asks it before it looks at a packet, so that what
    is dropped is not acknowledged either."""
    if share >= 1:
        return [DROP]
    return [LOAD_RANDOM, drop_at_least(int((1 - share) * 0x100000000)), DROP, TAKE]


def set_filter(end, share):
    try:
        if share > 0:
            words = b''.join(struct.pack('=HBBI', *word) for word in filter_program(share))
            kept = ctypes.create_string_buffer(words, len(words))
            program = struct.pack('@HP', len(words) // 8, ctypes.addressof(kept))
            end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        else:
            end.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except OSError:
        pass  # Closed, or it had none.


def reset(end):
    """Sends RST at once, also while threads are inside recv() or send() of this socket.

    close() would wait for those threads to leave; connecting to nowhere does not.
    """
    nowhere = struct.pack('=H14x', socket.AF_UNSPEC)
    ctypes.CDLL(None).connect(end.fileno(), nowhere, len(nowhere))


class Pipe:
    """One direction: reads, finds the heads of frames, obeys the rules, writes."""

    def __init__(self, connection, direction, reader, writer):
        self.connection, self.direction = connection, direction
        self.reader, self.writer = reader, writer
        self.gate = threading.Event()
        self.gate.set()
        self.held_here = False
        self.ended = False    # By us.
        self.over = False     # By whomever.
        self.passed = 0
        self.distance = None  # Made when there is a delay.
        self.pace = None
        self.frame_left = 0   # Bytes of the frame under way that are still to come.
        self.opaque = False   # Not our protocol: passed on as it is.
        self.cut_after = None
        self.swallows = False
        self.has_travelled = False
        self.flip = None      # (offset within the rest of the frame, bit)
        self.names_lane = direction == 'target'
        self.first = b''

    def run(self):
        held = b''
        try:
            while data := self.reader.recv(CHUNK):
                held = self.feed(held + data if held else data)
            if held:
                self.forward(held)
            if self.distance:
                self.distance.drain()
            if not self.ended:
                self.writer.shutdown(socket.SHUT_WR)
        except OSError:
            self.connection.end('rst')  # One end died hard: so the other shall see it.
        if self.distance:
            self.distance.end()
        self.over = True
        self.connection.close_if_over()

    def feed(self, data):
        """Passes on what is whole enough; returns the rest."""
        at = 0
        while at < len(data) and not self.ended:
            if self.opaque:
                self.forward(data[at:])
                return b''
            if self.frame_left == 0:
                if len(data) - at < wire.HEADER_BYTES:
                    return data[at:]
                if self.names_lane:
                    greeting = wire.HEADER_BYTES + wire.Header.read(
                        data[at:at + wire.HEADER_BYTES]).length
                    older = self.connection.relay.features is not ANY and greeting <= RECORDED
                    if len(data) - at < (greeting if older else wire.HEADER_BYTES + 14):
                        return data[at:]
                    if older:
                        data = data[:at] + wire.with_features(
                            data[at:at + greeting], self.connection.relay.features) \
                            + data[at + greeting:]
                self.begin_frame(data[at:at + wire.HEADER_BYTES + wire.HELLO_BYTES])
                if self.opaque or self.ended:
                    continue
            piece = data[at:at + self.frame_left] if at or len(data) > self.frame_left else data
            self.pass_piece(piece)
            at += len(piece)
        return b''

    def begin_frame(self, start):
        header = wire.Header.read(start[:wire.HEADER_BYTES])
        if header.kind not in wire.KNOWN_TYPES or header.length > LARGEST_FRAME:
            self.opaque = True
            return
        if self.names_lane:
            self.names_lane = False
            self.connection.relay.named(self.connection,
                                        wire.hello_role(start[wire.HEADER_BYTES:]))
        self.frame_left = wire.HEADER_BYTES + header.length
        rule = self.connection.relay.rule_for(self.connection, self.direction, header)
        if rule:
            self.obey(rule, header)

    def obey(self, rule, header):
        action = rule.action
        if isinstance(action, Decide):
            action = action.function(self.connection.lane, self.direction, header)
            if action is MISSED:
                rule.again()
                return
        if isinstance(action, Hold):
            with self.connection.relay.lock:
                self.held_here = True
                self.gate.clear()
        elif isinstance(action, Cut):
            self.cut_after = (min(action.after, self.frame_left), action.how)
        elif isinstance(action, Flip):
            self.flip = (action.offset % self.frame_left, action.bit)
        elif isinstance(action, Swallow):
            self.swallows = True
        elif isinstance(action, Call):
            action.function()
        rule.hit()
        if self.cut_after and self.cut_after[0] == 0:
            self.connection.end(self.cut_after[1])

    def pass_piece(self, piece):
        self.frame_left -= len(piece)
        if self.swallows:
            self.swallows = self.frame_left > 0
            return
        if self.flip is not None:
            offset, bit = self.flip
            if offset < len(piece):
                changed = bytearray(piece)
                changed[offset] ^= 1 << bit
                piece, self.flip = bytes(changed), None
            else:
                self.flip = (offset - len(piece), bit)
        if self.cut_after is None:
            self.forward(piece)
            return
        allowed, how = self.cut_after
        self.forward(piece[:allowed])
        self.cut_after = (allowed - len(piece[:allowed]), how)
        if self.cut_after[0] == 0:
            if self.distance:
                self.distance.drain()
            self.connection.end(how)

    def forward(self, data):
        self.gate.wait()
        if self.ended:
            return
        if len(self.first) < RECORDED:
            self.first += bytes(data[:RECORDED])
        view = memoryview(data)
        while view:
            step = self.await_turn(len(view))
            self.gate.wait()
            if self.ended:
                return
            self.send(view[:step])
            self.passed += step
            view = view[step:]

    def await_turn(self, count):
        """Waits as the rates want it; returns how many of the bytes may go."""
        rate = self.connection.relay.rate_of(self.connection, self.direction)
        shared = self.connection.relay.pace_of(self.direction)
        if rate and (not self.pace or self.pace.rate != rate):
            self.pace = distance.Pace(rate)
        paces = [pace for pace in (self.pace if rate else None, shared) if pace]
        for pace in paces:
            count = min(count, max(1, pace.rate // 50))
        for pace in paces:
            pace.wait(count)
        return count

    def send(self, data):
        delay_s = self.connection.relay.delay_s
        if self.has_travelled:
            self.has_travelled = False  # What was said first came with what opened the connection.
            self.writer.sendall(data)
            return
        if delay_s and not self.distance:
            self.distance = distance.Distance(self.connection, self.writer)
        if self.distance and (delay_s or not self.distance.is_empty()):
            self.distance.put(data, delay_s)
        else:
            self.writer.sendall(data)
