# Run by nbdsh, which connects as h: the volume's file loses its second half behind the server's back.
import os

MIB = 1 << 20
for _ in range(2):
    for number in range(8):
        h.pwrite(bytes([number + 1]) * MIB, number * MIB)
os.truncate(os.environ["BACKING"], 4 * MIB)
for number in (4, 7, 7, 7):
    try:
        h.pread(MIB, number * MIB)
        raise SystemExit("what was cut off was read")
    except nbd.Error as error:
        print(error.errno)
for number in range(4):
    assert h.pread(MIB, number * MIB) == bytes([number + 1]) * MIB
h.shutdown()
