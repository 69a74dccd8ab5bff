# Run by nbdsh on a volume with the exports "first" (the default) and "second", and "fixed", which takes no writes:
# what can be negotiated, in what order, and how often.
import os

uri, tls = os.environ["URI"], os.environ["URI"].startswith("nbds")


def haggling(structured=False, extended=False):
    """A connection in negotiation, where nothing is asked for that is not told."""
    connection = nbd.NBD()
    connection.set_uri_allow_local_file(True)
    connection.set_request_structured_replies(structured)
    connection.set_request_extended_headers(extended)
    connection.set_request_meta_context(False)
    connection.set_opt_mode(True)
    connection.set_strict_mode(0)
    connection.connect_uri(uri)
    assert connection.aio_is_negotiating() and connection.get_protocol() == "newstyle-fixed"
    assert connection.get_tls_negotiated() == tls
    assert connection.get_structured_replies_negotiated() == structured
    assert connection.get_extended_headers_negotiated() == extended
    return connection


def refused(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        return error.errno
    raise AssertionError(f"{call.__name__}{args} is not refused")


def exports(connection):
    found = {}
    count = connection.opt_list(lambda name, description: found.update({name: description}))
    assert count == len(found)
    return found


def contexts(connection, list_or_set, queries):
    found = []
    assert list_or_set(queries, found.append) == len(found)
    return found


# LIST, more than once.
a = haggling()
for _ in range(3):
    found = exports(a)
    assert list(found) == ["first", "second", "fixed"], found
    assert all("vol-" in description for description in found.values()), found

# INFO of one after the other, then of one that is not there, then GO, wrong and right.
a.set_full_info(True)
for name, is_read_only in [("", False), ("first", False), ("second", False), ("fixed", True)]:
    a.set_export_name(name)
    a.opt_info()
    assert a.get_size() == 16 << 20 and a.is_read_only() == is_read_only
    assert a.get_canonical_export_name() == (name or "first")
    assert "vol-" in a.get_export_description()
    assert a.get_block_size(nbd.SIZE_MAXIMUM) == 64 << 20
for name in ["third", "First", "x" * 4096]:
    a.set_export_name(name)
    assert refused(a.opt_info) == "ENOENT" and refused(a.opt_go) == "ENOENT"
    assert a.aio_is_negotiating()
a.set_export_name("fixed")
a.opt_go()
assert a.aio_is_ready() and refused(a.pwrite, b"x", 0) == "EPERM" and a.pread(1, 0) == b"\0"
a.shutdown()

# Both names lead to one disk, and so do the exports.
a, b = haggling(), haggling()
a.set_export_name("")
b.set_export_name("second")
a.opt_go()
b.opt_go()
a.pwrite(b"the same disk", 5)
assert b.pread(13, 5) == b"the same disk"
a.shutdown()
b.shutdown()

# Contexts need structured replies, which may be asked for at any time and again.
a = haggling()
a.set_export_name("second")
assert refused(contexts, a, a.opt_set_meta_context_queries, ["base:allocation"])
assert a.opt_structured_reply() and a.get_structured_replies_negotiated()
base = ["base:allocation"]
for queries in [[], base, ["base:"], base + ["base:"], ["other:thing", "base:allocation"]]:
    assert contexts(a, a.opt_list_meta_context_queries, queries) == base, queries
for queries in [["other:"], ["base:unknown"], ["base"], ["x" * 4096]]:
    assert contexts(a, a.opt_list_meta_context_queries, queries) == [], queries
assert contexts(a, a.opt_set_meta_context_queries, base) == base and a.can_meta_context("base:allocation")
# An empty set takes back what was chosen, and a name without its leaf chooses nothing.
assert contexts(a, a.opt_set_meta_context_queries, []) == [] and not a.can_meta_context("base:allocation")
assert contexts(a, a.opt_set_meta_context_queries, base) == base
assert contexts(a, a.opt_set_meta_context_queries, ["other:thing"]) == []
# Contexts are chosen for one export: going to another leaves none.
assert contexts(a, a.opt_set_meta_context_queries, base) == base
a.opt_go()
assert a.can_meta_context("base:allocation")
a.block_status(512, 0, lambda *_: 0)
a.shutdown()
a = haggling(structured=True)
a.set_export_name("second")
assert contexts(a, a.opt_set_meta_context_queries, base) == base
a.set_export_name("first")
a.opt_go()
assert refused(a.block_status, 512, 0, lambda *_: 0) == "EINVAL"
a.shutdown()

# Extended headers bring structured replies with them, and may come after these.
for structured in [False, True]:
    a = haggling(structured=structured)
    assert a.opt_extended_headers() and a.get_extended_headers_negotiated()
    a.set_export_name("first")
    assert contexts(a, a.opt_set_meta_context_queries, base) == base
    a.opt_go()
    a.block_status_64(512, 0, lambda *_: 0)
    assert a.pread(13, 5) == b"the same disk"
    a.shutdown()
a = haggling(structured=True, extended=True)
# Once they are agreed on there is no way back.
assert not a.opt_structured_reply()
assert a.get_extended_headers_negotiated()

# A client that only looked.
a.opt_abort()
