# Talks to a log and to a server outside of the tree: in the process that started this one.
import tempfile

outside = "%s/sockets-peers-%d" % (tempfile.gettempdir(), os.getppid())
server = socket.socket(socket.AF_UNIX)
server.connect(outside + "/server")
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.connect(outside + "/log")
log.send(b"before")

def check():
    log.send(b"after")
    server.settimeout(5)
    server.send(b"who")
    assert server.recv(100) == b"%d" % os.getpid()
