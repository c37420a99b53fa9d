"""The guest's self-checking pages; the same functions as tests/guest/mix.h and page.h."""
import dataclasses
import struct

PAGE_BYTES = 4096
PAGE_WORDS = 512
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
LATER_FACTOR = 0x94D049BB133111EB
MAGIC = 0x454741504C574F54


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a page says of itself."""
    number: int
    generation: int
    owner: int


def mix(x):
    x ^= x >> 30
    x = x * FIRST_FACTOR & MASK
    x ^= x >> 27
    x = x * LATER_FACTOR & MASK
    return x ^ x >> 31


def page_key(seed, number, generation):
    return mix((generation << 32 | number) + seed * GOLDEN & MASK)


def page_word(key, index):
    x = key + index * GOLDEN & MASK
    x ^= x >> 32
    x = x * FIRST_FACTOR & MASK
    return x ^ x >> 29


def digest_term(seed, number, generation):
    """What one page adds, modulo 2^64, to the digest of the table of generations."""
    return mix(mix(generation << 32 | number) + seed & MASK)


def page_bytes(seed, identity):
    """The whole page, as the guest writes it."""
    key = page_key(seed, identity.number, identity.generation)
    words = [page_word(key, i) for i in range(PAGE_WORDS)]
    words[0] = identity.generation << 32 | identity.number
    words[1] ^= MAGIC
    words[2] ^= identity.owner
    return struct.pack('<512Q', *words)


def identify(content, seed):
    """The identity in a page's header, or None if this is no page of the guest."""
    header, magic, owner = struct.unpack_from('<3Q', content)
    number, generation = header & 0xFFFFFFFF, header >> 32
    key = page_key(seed, number, generation)
    if magic ^ page_word(key, 1) != MAGIC or (owner ^ page_word(key, 2)) >> 32:
        return None
    return Identity(number, generation, owner ^ page_word(key, 2))


def is_whole(content, seed):
    """True if every word of the page is what its header promises."""
    identity = identify(content, seed)
    return identity is not None and content == page_bytes(seed, identity)
