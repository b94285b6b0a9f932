"""Hooks: whether a streamer still has those of its class, so that compiled code may stand for it.

docs/inside/activation.rst explains it.
"""

from cpython.object cimport PyObject_GenericGetDict, PyTypeObject


cdef class Family:
    """A class whose behaviour the compiled code stands for."""


cdef dict families = {}                # class -> Family
# Streamer, and the tag that its type had when its hooks were last seen to be ours. Python gives a
# type another tag, or 0, when any of its attributes changes.
cdef type plain_streamer = None
cdef unsigned int plain_tag = 0
cdef Py_ssize_t n_plain_fields = 0     # how many attributes its instances have
cdef object plain_iter = None          # its __iter__, which maps call


# The hooks of every streamer.
cdef tuple HOOKS = ("__enter__", "__exit__", "__copy__", "__deepcopy__", "_activate", "iterate")


def register(cls, *more, model=None, opener=None, hooked=None):
    """Note the hooks of a class whose behaviour the compiled code stands for: `more` than `HOOKS`.

    A subclass, an instance or a patch that replaces one of them gets its own called instead.
    With `model`, an instance: those of exactly its class that have as many attributes start
    without any Python frame of pescador's.
    ``opener(streamer, scope)`` returns the compiled iterator of one activation, or None if the
    hooks are to be called. In a run, ``hooked(streamer, scope)`` returns an iterator that calls
    them and can be saved, or None if it has none either.
    """
    global plain_streamer, plain_iter, n_plain_fields
    cdef Family family = Family()
    family.hooks = tuple([(name, getattr(cls, name)) for name in HOOKS + more])
    family.opener = opener
    family.hooked = hooked
    families[cls] = family
    if model is not None:
        plain_streamer = cls
        n_plain_fields = len(model.__dict__)
        plain_iter = cls.__iter__


cdef Family family_of(type kind):
    """The class of ours that a type is or derives from, or None."""
    family = families.get(kind)
    if family is None:
        for base in kind.__mro__:
            family = families.get(base)
            if family is not None:
                break
    return family


cpdef bint is_stock(object streamer) except? True:
    """Tell whether a streamer has exactly the behaviour of the class of ours that it is."""
    cdef type kind = type(streamer)
    cdef Family family = family_of(kind)
    if family is None:
        return False
    own = streamer.__dict__
    for name, original in family.hooks:
        if getattr(kind, name) is not original or name in own:
            return False
    return True


cdef bint has_state_of_visit(object streamer) except? True:
    """Whether an iteration is where its visit is: a subclass has no code of its own in between."""
    cdef Family family = family_of(type(streamer))
    if family is None or family.hooked is None:
        return is_stock(streamer)
    # The other hooks are called by the visit.
    own = type(streamer).iterate
    return "iterate" not in streamer.__dict__ and ("iterate", own) in family.hooks


cdef bint is_iterated_plainly(object streamer) except? True:
    """Whether ``iter(streamer)`` is what Streamer has it be, as maps call it."""
    return type(streamer).__iter__ is plain_iter


cdef bint is_plain(object streamer) noexcept:
    """Whether this is a Streamer of exactly the plain class, as most are."""
    return type(streamer) is plain_streamer


def not_plain(list streamers):
    """Return those that are not of exactly the plain class: usually few, or none."""
    return [streamer for streamer in streamers if not is_plain(streamer)]


cdef dict plain_fields(object streamer):
    """The attributes of a plain Streamer that has only its own; None for any other."""
    global plain_tag
    if type(streamer) is not plain_streamer:
        return None
    cdef dict fields = <dict>PyObject_GenericGetDict(streamer, NULL)
    if len(fields) != n_plain_fields:
        return None
    cdef unsigned int tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    if tag == 0 or tag != plain_tag:
        if not is_stock(streamer):
            return None
        plain_tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    return fields
