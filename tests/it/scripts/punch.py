# Run by nbdsh, which connects as h: the volume's file, on a file system of 16 MiB, loses its memory behind the server's
# back, and something else takes it.
import os
import subprocess

MIB = 1 << 20
blocks = [bytes([number]) * MIB for number in range(8)]
for _ in range(2):
    for number, block in enumerate(blocks):
        h.pwrite(block, number * MIB)
for number, block in enumerate(blocks):
    assert h.pread(MIB, number * MIB) == block
subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", str(4 * MIB), "mnt/volume"], check=True)
with open("mnt/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(1 << 16))
    except OSError:
        pass
try:
    h.pwrite(blocks[7], 0)
    raise SystemExit("1 MiB went onto a full disk")
except nbd.Error as error:
    print(error.errno)
# What has its memory stays as it was, and the server serves on, also what is written now.
for number in range(4, 8):
    assert h.pread(MIB, number * MIB) == blocks[number]
os.unlink("mnt/filler")
for number in range(4):
    h.pwrite(blocks[number], number * MIB)
for number, block in enumerate(blocks):
    assert h.pread(MIB, number * MIB) == block
h.shutdown()
