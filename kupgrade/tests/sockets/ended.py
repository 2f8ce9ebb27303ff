# A listener whose port has connections in TIME_WAIT.
def connection(l):
    c = socket.create_connection(l.getsockname()[:2])
    a, _ = l.accept()
    a.close()
    assert c.recv(1) == b""
    c.close()

listeners = [socket.socket(), socket.socket(socket.AF_INET6)]
for l, host in zip(listeners, ("127.0.0.1", "::")):
    l.bind((host, 0))
    l.listen(5)
    connection(l)
names = [l.getsockname() for l in listeners]

def check():
    for l, name in zip(listeners, names):
        assert l.getsockname() == name
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            assert l.getsockopt(socket.SOL_SOCKET, option) == 0, option
        assert l.getsockopt(socket.IPPROTO_TCP, 19) == 0
        connection(l)
