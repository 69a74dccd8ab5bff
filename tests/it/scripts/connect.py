# Run by nbdsh before another script: connects h to URI with replies of the form REPLIES, and makes sure that it has
# them. Tools that other scripts use.
import os

uri, replies = os.environ["URI"], os.environ["REPLIES"]
h.set_uri_allow_local_file(True)
h.set_request_structured_replies(replies != "simple")
h.set_request_extended_headers(replies == "extended")
if replies != "simple":
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.get_structured_replies_negotiated() == (replies != "simple")
assert h.get_extended_headers_negotiated() == (replies == "extended")
assert h.get_tls_negotiated() == uri.startswith("nbds")
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) == (replies != "simple")
# libnbd itself refuses what is wrong; told not to, it lets the server answer. What a write needs in an extended
# header it still adds.
h.set_strict_mode(nbd.STRICT_AUTO_FLAG)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def refuses(expected, call, *args, **keywords):
    try:
        call(*args, **keywords)
    except nbd.Error as error:
        assert error.errno == expected, f"{call.__name__}{args}: {error.errno} instead of {expected}"
    else:
        raise AssertionError(f"{call.__name__}{args} is not refused")


def chunks(count, offset, flags=0):
    """A structured read: its bytes, and the kind, place and length of each chunk in the order of their places."""
    data, seen = bytearray(b"\xa5" * count), []

    def chunk(part, place, status, error):
        assert error.value == 0
        seen.append((place, len(part), status))
        data[place - offset : place - offset + len(part)] = part

    h.pread_structured(count, offset, chunk, flags)
    seen.sort()
    return data, seen


def extents(count, offset, flags=0):
    """Block status of a range: pairs of length and state (0 data, 3 a hole of zeros), and only one context."""
    contexts = []

    def status(context, start, entries, error):
        assert (start, error.value) == (offset, 0)
        contexts.append((context, entries))

    h.block_status_64(count, offset, status, flags)
    [(context, entries)] = contexts
    assert context == nbd.CONTEXT_BASE_ALLOCATION
    assert all(length > 0 for length, _ in entries)
    return entries


def merged(entries):
    """The same with neighbours that are alike made one: a server may cut where it likes."""
    result = []
    for length, state in entries:
        if result and result[-1][1] == state:
            result[-1] = (result[-1][0] + length, state)
        else:
            result.append((length, state))
    return result


def whole(count, offset):
    """The block status of a range, asked for until all of it is told."""
    entries, most = [], count if replies == "extended" else 4 * GIB - 1
    while count > 0:
        for length, state in extents(min(count, most), offset):
            length = min(length, count)
            entries.append((length, state))
            count, offset = count - length, offset + length
    return merged(entries)
