# Run by nbdsh on a volume whose clients must use TLS: what it says before, and what is left after STARTTLS of what was
# negotiated before it.
import os


def plain():
    connection = nbd.NBD()
    connection.set_opt_mode(True)
    connection.set_strict_mode(0)
    connection.set_request_structured_replies(False)
    connection.set_request_extended_headers(False)
    connection.set_tls(nbd.TLS_DISABLE)
    connection.set_tls_certificates(os.environ["CERTIFICATES"])
    connection.set_tls_hostname("localhost")
    connection.connect_tcp("127.0.0.1", os.environ["PORT"])
    assert not connection.get_tls_negotiated()
    return connection


def refused(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        return error.errno
    raise AssertionError(f"{call.__name__}{args} is not refused")


a = plain()
for call, args in [(a.opt_info, ()), (a.opt_list, (lambda *_: 0,)), (a.opt_go, ())]:
    errno = refused(call, *args)
    assert errno == "ENOTSUP", f"{call.__name__}: {errno}"
assert a.aio_is_negotiating()

assert a.opt_starttls()
assert a.get_tls_negotiated()
assert not a.get_structured_replies_negotiated()
assert a.opt_structured_reply()
a.opt_go()
a.pwrite(b"under TLS", 0)
assert a.pread(9, 0) == b"under TLS"
a.shutdown()

# Nobody comes in without it.
a = plain()
a.opt_abort()
