# After connect.py, on a fresh volume of 6 GiB: every request that a volume serves, at offsets that suit no sector.
size = h.get_size()
assert size == 6 * GIB
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == int(os.environ["SECTOR"])
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 64 * MIB
for can in ["flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"]:
    assert getattr(h, f"can_{can}")(), can
assert h.can_df() == (replies != "simple")
assert not h.is_read_only() and not h.is_rotational()

# A model of the first bytes in plain memory, which the volume must equal at the end.
model = bytearray(20 * MIB)


def write(data, offset, flags=0):
    h.pwrite(data, offset, flags)
    model[offset : offset + len(data)] = data


def zero(count, offset, flags=0):
    h.zero(count, offset, flags)
    model[offset : offset + count] = bytes(count)


def read_back(count, offset, flags=0):
    assert h.pread(count, offset, flags) == model[offset : offset + count], f"{count} bytes at {offset}"


# Odd offsets and lengths, with FUA on what writes and, for it may stand anywhere, on what does not.
for offset, count in [(1, 1), (511, 2), (4095, 4098), (4096, 4096), (12345, 54321), (20 * MIB - 7, 7), (0, 1)]:
    for flags in [0, nbd.CMD_FLAG_FUA]:
        write(bytes((offset + i) * 7 + flags & 0xFF for i in range(count)), offset, flags)
        start = max(offset - 3, 0)
        read_back(min(count + 10, len(model) - start), start, flags)
    h.cache(count, offset, flags)
h.flush()
h.flush(nbd.CMD_FLAG_FUA)
h.pwrite(b"the end", size - 7)
assert h.pread(9, size - 9) == b"\0\0the end"

# Zeros, with and without a hole, beginning and ending inside sectors.
write(b"\xff" * MIB, 4 * MIB)
for flags, offset in [(0, 4 * MIB + 100), (nbd.CMD_FLAG_NO_HOLE, 4 * MIB + 200_001), (nbd.CMD_FLAG_FUA, 5_000_000)]:
    zero(100_000, offset, flags)
    read_back(100_010, offset - 5)
write(b"\xff" * MIB, 6 * MIB)
zero(MIB, 6 * MIB, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
# What must be allocated has to be written, which is not fast.
refuses("ENOTSUP", h.zero, 64 * KIB, 7 * MIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
read_back(64 * KIB, 7 * MIB)

# Trimmed sectors read as zeros or as they were (NBD promises neither); what is beside them stays.
write(b"\xee" * MIB, 8 * MIB)
h.trim(500_000, 8 * MIB + 1000)
h.trim(4096, 8 * MIB + 512 * KIB + 4096, nbd.CMD_FLAG_FUA)
trimmed = h.pread(MIB, 8 * MIB)
assert trimmed[:1000] == b"\xee" * 1000 and set(trimmed) <= {0, 0xEE}
assert trimmed[501_000:524_288] == b"\xee" * (524_288 - 501_000)
model[8 * MIB : 9 * MIB] = trimmed

# A hole between data: as it is told, and as it is read.
write(b"\x11" * (256 * KIB), 10 * MIB)
write(b"\x22" * (256 * KIB), 11 * MIB)
zero(MIB, 9 * MIB)
if replies == "simple":
    refuses("EINVAL", h.block_status_64, 512, 0, lambda *_: 0)
    refuses("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_DF)
else:
    data, hole = nbd.READ_DATA, nbd.READ_HOLE
    told = [(256 * KIB, 0), (768 * KIB, 3), (256 * KIB, 0), (768 * KIB, 3)]
    assert whole(2 * MIB, 10 * MIB) == told
    assert extents(2 * MIB, 10 * MIB, nbd.CMD_FLAG_REQ_ONE) == told[:1]
    assert extents(2 * MIB, 10 * MIB, nbd.CMD_FLAG_REQ_ONE | nbd.CMD_FLAG_FUA) == told[:1]
    # One extent may reach beyond what was asked for, several may not; and any byte may be asked about.
    assert whole(1000, 10 * MIB + 255 * KIB + 1) == [(1000, 0)]
    assert whole(2, 10 * MIB + 256 * KIB - 1) == [(1, 0), (1, 3)]
    content, seen = chunks(2 * MIB, 10 * MIB)
    assert content == model[10 * MIB : 12 * MIB]
    assert {kind for _, _, kind in seen} == {data, hole}
    for place, count, kind in seen:
        at = place - 10 * MIB
        assert (at % MIB + count <= 256 * KIB) if kind == data else (at % MIB >= 256 * KIB), seen
    assert sum(count for _, count, _ in seen) == 2 * MIB
    # Not fragmented: one chunk, whatever is in it, of up to 1 MiB.
    for count in [64 * KIB, MIB]:
        content, seen = chunks(count, 10 * MIB + 200 * KIB, nbd.CMD_FLAG_DF)
        assert len(seen) == 1 and content == model[10 * MIB + 200 * KIB :][:count], seen
    refuses("EOVERFLOW", h.pread, MIB + 1, 10 * MIB, nbd.CMD_FLAG_DF)
    assert chunks(64 * KIB, 9 * MIB)[1] == [(9 * MIB, 64 * KIB, hole)]

# As large as a request may be.
block = bytes(range(251)) * (64 * MIB // 251 + 1)
for count, offset in [(48 * MIB, GIB + 1), (64 * MIB, GIB + 100 * MIB)]:
    h.pwrite(block[:count], offset, nbd.CMD_FLAG_FUA)
    assert h.pread(count, offset) == block[:count]
    assert h.pread(1, offset - 1) == b"\0" and h.pread(1, offset + count) == b"\0"

# Requests without payload: as long as 32 bits can say, and with extended headers longer.
h.pwrite(b"\xcc" * MIB, 5 * GIB)
h.zero((4 * GIB) - 1, GIB)
assert h.pread(MIB, GIB + 100 * MIB) == bytes(MIB) and h.pread(1, 5 * GIB - 1) == b"\0"
assert h.pread(MIB, 5 * GIB) == b"\xcc" * MIB
h.trim((4 * GIB) - 1, GIB)
h.cache((4 * GIB) - 1, GIB)
if replies != "simple":
    length, state = whole(size - GIB, GIB)[0]
    assert length >= 4 * GIB - 4096 and state == 3
if replies == "extended":
    length, state = extents(size - GIB, GIB)[0]
    assert length >= 4 * GIB - 4096 and state == 3
    h.trim(5 * GIB - 4096, GIB)
    h.pwrite(b"\xdd" * MIB, 5 * GIB)
    h.zero(5 * GIB, GIB, nbd.CMD_FLAG_FUA)
    h.cache(5 * GIB, GIB)
    assert h.pread(MIB, 5 * GIB) == bytes(MIB)
    assert whole(5 * GIB, GIB) == [(5 * GIB, 3)]
    assert h.pread(7, size - 7) == bytes(7)
else:
    # libnbd does not send what a compact header cannot say.
    refuses("ERANGE", h.zero, 4 * GIB, GIB)

# 128 reads and writes at once, answered in whatever order.
parts = [(64 * KIB * i + 7, nbd.Buffer.from_bytearray(bytearray([i + 1]) * 10_000)) for i in range(64)]
cookies = [h.aio_pwrite(part, offset) for offset, part in parts]
zeros = [nbd.Buffer(10_000) for _ in parts]
cookies += [h.aio_pread(buffer, 3 * GIB + offset) for (offset, _), buffer in zip(parts, zeros)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
for (offset, part), buffer in zip(parts, zeros):
    model[offset : offset + 10_000] = part.to_bytearray()
    assert buffer.to_bytearray() == bytes(10_000)

# Out of range, and flags where they do not belong.
for offset, count in [(size - 1, 2), (size, 1), ((1 << 63) - 1, 1), (size - 4096, 8192)]:
    for call in [h.pread, h.trim, h.cache]:
        refuses("EINVAL", call, count, offset)
    refuses("ENOSPC", h.pwrite, b"x" * count, offset)
    refuses("ENOSPC", h.zero, count, offset)
    if replies != "simple":
        refuses("EINVAL", h.block_status_64, count, offset, lambda *_: 0)
refuses("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)
refuses("EINVAL", h.pwrite, b"x", 0, nbd.CMD_FLAG_FAST_ZERO)
refuses("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
refuses("EINVAL", h.flush, 1 << 12)

for offset in range(0, len(model), MIB):
    read_back(MIB, offset)
h.shutdown()
