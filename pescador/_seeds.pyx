"""Random numbers of a seed and a key, as NumPy's ``SeedSequence`` and ``PCG64`` give them.

Making a generator of NumPy takes longer than drawing all that one visit of a stream needs; here it
takes less than a microsecond. Whoever wants to check a sequence asks NumPy::

    sequence = np.random.SeedSequence(seed, spawn_key=key)
    np.random.Generator(np.random.PCG64(sequence)).integers(n)
"""

from pescador.exceptions import ArgumentError

from libc.stdint cimport uint32_t

from pescador._native.seeds cimport (
    Pcg, Seed, pcg_below, pcg_start, seed_add, seed_begin, seed_key,
)


cdef list words_of(object entropy):
    """The 32-bit words of whole numbers, the lowest first, as SeedSequence takes them."""
    cdef list words = []
    if isinstance(entropy, str):          # as NumPy reads it
        entropy = int(entropy, 0)
    try:
        for number in entropy:
            words += words_of(number)
        return words
    except TypeError:
        pass
    number = int(entropy)
    if number < 0:
        raise ArgumentError(f"seed {entropy!r} is negative; a seed must be 0 or more")
    while True:
        words.append(number & 0xffffffff)
        number >>= 32
        if not number:
            return words


cdef int take_entropy(Seed* seed, object sequence) except -1:
    """Begin as a SeedSequence does, for a key that is to follow."""
    cdef uint32_t[4] first
    cdef list words = words_of(sequence.entropy)
    if sequence.pool_size != 4:
        raise ArgumentError(f"random_state={sequence!r} must have a pool_size of 4")
    # NumPy pads where a key follows, so that keys and entropy cannot be taken for each other.
    words += [0] * (4 - len(words))
    words += words_of(sequence.spawn_key)
    for i in range(4):
        first[i] = words[i]
    seed_begin(seed, first)
    for word in words[4:]:
        seed_add(seed, word)
    return 0


cdef Pcg seeded(sequence, key) except *:
    cdef Seed seed
    cdef Pcg pcg
    take_entropy(&seed, sequence)
    for number in key:
        seed_key(&seed, number)
    pcg_start(&pcg, &seed)
    return pcg


def state_of(sequence, key):
    """Return the state and the increment that PCG64 starts from, for a SeedSequence and a key."""
    cdef Pcg pcg = seeded(sequence, key)
    return (<object>pcg.high << 64) | pcg.low, (<object>pcg.step_high << 64) | pcg.step_low


def integers_of(sequence, key, bounds):
    """Return one number below each bound, for tests that hold them against NumPy's."""
    cdef Pcg pcg = seeded(sequence, key)
    return [pcg_below(&pcg, bound) for bound in bounds]
