# Run by nbdsh, which connects as h to a volume that takes no writes.
assert h.is_read_only()
assert h.pread(100, 1) == bytes(100)
h.flush()
h.cache(4096, 0)
h.set_strict_mode(0)
for call, args in [(h.pwrite, (b"x", 0)), (h.zero, (512, 0)), (h.trim, (512, 0))]:
    try:
        call(*args)
        raise SystemExit(f"{call.__name__} is not refused")
    except nbd.Error as error:
        assert error.errno == "EPERM", f"{call.__name__}: {error.errno}"
assert h.pread(512, 0) == bytes(512)
h.shutdown()
