# After connect.py, on a fresh volume of 1 MiB that takes no writes.
assert h.is_read_only()
assert h.pread(100, 1) == bytes(100)
h.flush()
h.cache(4096, 0)
if replies != "simple":
    assert whole(MIB, 0) == [(MIB, 3)]
for call, args in [(h.pwrite, (b"x", 0)), (h.zero, (512, 0)), (h.trim, (512, 0))]:
    refuses("EPERM", call, *args)
assert h.pread(512, 0) == bytes(512)
h.shutdown()
