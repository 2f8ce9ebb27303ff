# Two contexts of asynchronous I/O, one with events that nobody has read.
import ctypes

libc = ctypes.CDLL(None)
IO_SETUP, IO_GETEVENTS, IO_SUBMIT = 206, 208, 209
with open("f", "w") as f:
    f.write("contents")
f = os.open("f", os.O_RDONLY)
def setup(size):
    context = ctypes.c_ulong(0)
    assert libc.syscall(IO_SETUP, size, ctypes.byref(context)) == 0
    return context.value
def submit(context, data):
    buffer = ctypes.create_string_buffer(8)
    request = struct.pack("QiiHhiQQqQii", data, 0, 0, 0, 0, f, ctypes.addressof(buffer), 8, 0, 0, 0, 0)
    request = ctypes.create_string_buffer(request, 64)
    requests = (ctypes.c_ulong * 1)(ctypes.addressof(request))
    assert libc.syscall(IO_SUBMIT, ctypes.c_ulong(context), 1, requests) == 1
    return buffer
def events(context, most=8):
    room = ctypes.create_string_buffer(32 * most)
    now = (ctypes.c_long * 2)(0, 0)
    count = libc.syscall(IO_GETEVENTS, ctypes.c_ulong(context), 0, most, room, now)
    found = [struct.unpack_from("QQqq", room.raw, 32 * i) for i in range(count)]
    return [(data, result) for data, _, result, _ in found]

small, large = setup(16), setup(500)
submit(small, 1)
assert events(small) == [(1, 8)]
buffers = [submit(large, data) for data in (11, 12, 13)]
assert events(large, 1) == [(11, 8)]
def rings():
    return [line for line in open("/proc/self/maps") if "[aio]" in line]
before = [line.split()[0] for line in rings()]

def check():
    assert [line.split()[0] for line in rings()] == before
    assert events(large) == [(12, 8), (13, 8)]
    last = submit(large, 14)
    assert events(large) == [(14, 8)] and last.raw == b"contents"
    submit(small, 2)
    assert events(small) == [(2, 8)]
