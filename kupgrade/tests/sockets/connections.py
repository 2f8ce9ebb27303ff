# TCP connections between the program's own sockets.
import array, fcntl, termios

def connection(host, family=socket.AF_INET, keep=True):
    l = socket.socket(family)
    l.bind((host, 0))
    l.listen(5)
    c = socket.create_connection(("127.0.0.1" if host in ("127.0.0.1", "0.0.0.0", "::") else host, l.getsockname()[1]))
    s, _ = l.accept()
    if not keep:
        l.close()
        l = None
    return l, c, s

l, c, s = connection("0.0.0.0")
c2 = socket.create_connection(("127.0.0.1", l.getsockname()[1]))
s2, _ = l.accept()
six = connection("::", socket.AF_INET6)
c.send(b"question")
s.send(b"x" * 100000)
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
six[1].send(b"six")
_, half, other = connection("127.0.0.1", keep=False)
half.send(b"last words")
half.shutdown(socket.SHUT_WR)
_, alone, closed = connection("127.0.0.1", keep=False)
closed.send(b"good bye")
closed.close()
ends = [c, s, c2, s2, six[1], six[2], half, other, alone]
names = [(e.getsockname(), e.getpeername()) for e in ends]

def check():
    assert names == [(e.getsockname(), e.getpeername()) for e in ends]
    assert s.recv(100) == b"question"
    got = b""
    while len(got) < 100000:
        got += c.recv(100000)
    assert got == b"x" * 100000
    assert c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77 and s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert [e.getsockopt(socket.SOL_SOCKET, o) for e in ends for o in (socket.SO_REUSEADDR, socket.SO_REUSEPORT)] == [0] * 18
    assert six[2].recv(9) == b"six"
    for a, b in ((c, s), (s, c), (c2, s2), (six[2], six[1]), (other, half)):
        a.send(b"more")
        assert b.recv(9) == b"more"
    assert other.recv(99) == b"last words" and other.recv(9) == b""
    assert alone.recv(99) == b"good bye" and alone.recv(9) == b""
    n = socket.create_connection(("127.0.0.1", l.getsockname()[1]))
    l.accept()
