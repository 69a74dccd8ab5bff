# Run by nbdsh, which connects as h: writes until the disk under the volume is full.
block = b"x" * (1 << 20)
try:
    for offset in range(0, h.get_size(), len(block)):
        h.pwrite(block, offset)
    raise SystemExit("64 MiB went onto a disk of 8 MiB")
except nbd.Error as error:
    print(error.errno)
# What was written before is there, and space that is given back can be used again.
assert h.pread(len(block), 0) == block
h.trim(4 << 20, 0)
h.pwrite(block[:4096], 0)
assert h.pread(4096, 0) == block[:4096]
h.shutdown()
