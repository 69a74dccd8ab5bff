# Run by nbdsh, which connects as h: every request that a volume serves, at offsets that suit no sector.
size = h.get_size()
assert size == 16 << 20


def refuses(expected, call, *args, **keywords):
    try:
        call(*args, **keywords)
    except nbd.Error as error:
        assert error.errno == expected, f"{call.__name__}{args}: {error.errno} instead of {expected}"
    else:
        raise AssertionError(f"{call.__name__}{args} is not refused")


# A model in plain memory, which the volume must equal at the end.
model = bytearray(size)


def write(data, offset, flags=0):
    h.pwrite(data, offset, flags)
    model[offset : offset + len(data)] = data


def read_back(count, offset):
    assert h.pread(count, offset) == model[offset : offset + count], f"{count} bytes at {offset}"


for offset, count in [(1, 1), (511, 2), (4095, 4098), (4096, 4096), (12345, 54321), (size - 7, 7), (0, 1)]:
    write(bytes((offset + i) * 7 & 0xFF for i in range(count)), offset)
    read_back(min(count + 10, size - max(offset - 3, 0)), max(offset - 3, 0))

write(b"durable" * 1000, 1 << 20, nbd.CMD_FLAG_FUA)
h.flush()

# Zeros, with and without a hole, beginning and ending inside sectors.
write(b"\xff" * (1 << 20), 4 << 20)
for flags, offset in [(0, (4 << 20) + 100), (nbd.CMD_FLAG_NO_HOLE, (4 << 20) + 200_001), (nbd.CMD_FLAG_FUA, 5_000_000)]:
    h.zero(100_000, offset, flags)
    model[offset : offset + 100_000] = bytes(100_000)
    read_back(100_010, offset - 5)
h.zero(1 << 20, 6 << 20, nbd.CMD_FLAG_FAST_ZERO)

# Trimmed sectors read as zeros or as they were (NBD promises neither); what is beside them stays.
write(b"\xee" * (1 << 20), 8 << 20)
h.trim(500_000, (8 << 20) + 1000)
h.trim(4096, (8 << 20) + (1 << 19) + 4096, nbd.CMD_FLAG_FUA)
trimmed = h.pread(1 << 20, 8 << 20)
assert trimmed[:1000] == b"\xee" * 1000 and set(trimmed) <= {0, 0xEE}
assert trimmed[501_000:524_288] == b"\xee" * (524_288 - 501_000)
model[8 << 20 : 9 << 20] = trimmed

h.cache(1 << 20, 0)
h.cache(100, 4097)

# libnbd itself refuses what is out of range; told not to, it lets the server answer.
h.set_strict_mode(0)
refuses("EINVAL", h.pread, 2, size - 1)
refuses("EINVAL", h.pread, 1, size)
refuses("ENOSPC", h.pwrite, b"xy", size - 1)
refuses("ENOSPC", h.zero, 2, size - 1)
refuses("EINVAL", h.trim, 2, size - 1)
refuses("EINVAL", h.cache, 2, size - 1)
refuses("EINVAL", h.pread, 1, (1 << 63) - 1)
refuses("EINVAL", h.block_status, 512, 0, lambda *_: 0)
refuses("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)

for offset in range(0, size, 1 << 20):
    read_back(1 << 20, offset)
h.shutdown()
