# Run by nbdsh: all that a client can say to a volume with structured replies, each command and most flags once.
import os

h.set_request_meta_context(False)
h.set_request_structured_replies(False)
h.set_request_extended_headers(False)
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(os.environ["URI"])
h.set_strict_mode(0)
h.opt_list(lambda *_: 0)
h.opt_structured_reply()
h.opt_list_meta_context_queries(["base:"], lambda _: 0)
h.opt_set_meta_context_queries(["base:allocation"], lambda _: 0)
h.opt_info()
h.opt_go()
h.pwrite(b"\x5a" * 100_000, 4096)
h.pwrite(b"odd", 1_000_001, nbd.CMD_FLAG_FUA)
h.flush()
h.cache(65536, 0)
h.zero(8192, 8192)
h.zero(8192, 32768, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 65536, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 16384, nbd.CMD_FLAG_FUA)
h.block_status(1 << 20, 0, lambda *_: 0)
h.block_status(1 << 20, 0, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE)
h.pread(1 << 20, 0)
h.pread(65536, 0, nbd.CMD_FLAG_DF)
h.pread(4096, 2 << 20)
# One that fails, with the offset or the text that a server may add.
try:
    h.pread(2, (4 << 20) - 1)
    raise SystemExit("a read beyond the end is answered")
except nbd.Error as error:
    assert error.errno == "EINVAL", error
h.shutdown()
