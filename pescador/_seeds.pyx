"""Random numbers of a seed and a key: those of NumPy's ``SeedSequence`` and ``PCG64``.

To make a generator of NumPy takes longer than to draw all numbers of a visit; here it takes less
than a microsecond. NumPy gives the same numbers::

    sequence = np.random.SeedSequence(seed, spawn_key=key)
    np.random.Generator(np.random.PCG64(sequence)).integers(n)

docs/inside/draws.rst explains it.
"""

from pescador.exceptions import ArgumentError

from libc.stdint cimport uint32_t

from pescador._native.seeds cimport (
    Pcg, Seed, pcg_below, pcg_start, seed_add, seed_begin, seed_key,
)


cdef list words_of(object entropy):
    """The 32-bit words of an int, or of nested sequences of ints; the low word of each first."""
    cdef list words = []
    if isinstance(entropy, str):
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
    """Start a seed from a SeedSequence, its own key included; more numbers of a key may follow."""
    cdef uint32_t[4] first
    cdef list words = words_of(sequence.entropy)
    if sequence.pool_size != 4:
        raise ArgumentError(f"random_state={sequence!r} must have a pool_size of 4")
    # Where a key follows, NumPy fills the entropy up to the size of the pool.
    words += [0] * (4 - len(words))
    words += words_of(sequence.spawn_key)
    for i in range(4):
        first[i] = words[i]
    seed_begin(seed, first)
    for word in words[4:]:
        seed_add(seed, word)
    return 0


cdef Pcg pcg_of(sequence, key) except *:
    """The PCG64 of ``SeedSequence(sequence.entropy, spawn_key=(*sequence.spawn_key, *key))``."""
    cdef Seed seed
    cdef Pcg pcg
    take_entropy(&seed, sequence)
    for number in key:
        seed_key(&seed, number)
    pcg_start(&pcg, &seed)
    return pcg


def state_of(sequence, key):
    """Return the state and the increment that PCG64 starts from."""
    cdef Pcg pcg = pcg_of(sequence, key)
    return (<object>pcg.high << 64) | pcg.low, (<object>pcg.step_high << 64) | pcg.step_low


def integers_of(sequence, key, bounds):
    """Return one number below each bound. For tests, which compare them with NumPy's."""
    cdef Pcg pcg = pcg_of(sequence, key)
    return [pcg_below(&pcg, bound) for bound in bounds]
