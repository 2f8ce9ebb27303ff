# Connections that nobody has accepted, with what their clients have sent, one of them gone since.
def listener(name, kind):
    l = socket.socket(socket.AF_UNIX, kind)
    l.bind(name)
    l.listen(5)
    clients = [socket.socket(socket.AF_UNIX, kind) for _ in range(4)]
    for n, c in enumerate(clients):
        c.connect(name)
        if n != 1:
            c.send(b"from %d" % n)
            c.send(b"more")
    clients[3].close()
    clients[2].shutdown(socket.SHUT_WR)
    return l, clients

kinds = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
made = [listener(name, kind) for name, kind in zip(("stream", "\0packets-%d" % os.getpid()), kinds)]

def check():
    for kind, (l, clients) in zip(kinds, made):
        stream = kind == socket.SOCK_STREAM
        for n in range(4):
            s, _ = l.accept()
            assert struct.unpack("iII", s.getsockopt(1, 17, 12)) == (os.getpid(), 0, 0)
            if n != 1:
                expected = [b"from %dmore" % n] if stream else [b"from %d" % n, b"more"]
                for e in expected:
                    got = s.recv(100)
                    assert got == e, (n, got)
            if n >= 2:
                assert s.recv(100) == b"", n
            else:
                s.send(b"answer %d" % n)
                assert clients[n].recv(100) == b"answer %d" % n
        l.setblocking(False)
        try:
            l.accept()
            assert False, "one more"
        except BlockingIOError:
            pass
