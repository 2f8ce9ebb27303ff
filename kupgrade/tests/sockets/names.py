l=socket.socket(socket.AF_UNIX); l.bind('rel'); l.listen(7)
os.chmod('rel',0o640); os.chown('rel',5,6)
x=socket.socket(socket.AF_UNIX); x.bind('\0kupgrade-'+str(os.getpid())); x.listen(3)
g=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); g.bind('gone'); 
h=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); h.connect('gone'); h.send(b'from unnamed')
n=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); n.bind(os.getcwd()+'/named'); n.sendto(b'from named','gone')
y=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); y.bind('\0kz-'+str(os.getpid())); y.sendto(b'from dead','gone'); y.close()
os.unlink('gone')
clients=[socket.socket(socket.AF_UNIX) for _ in range(3)]
for c in clients: c.connect('rel')
s,_=l.accept()
s.send(b'queued'); 
auto=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); auto.bind('')
an=auto.getsockname()
p,q=socket.socketpair(); q.send(b'bye'); p.send(b'never read'); q.close()
xc=socket.socket(socket.AF_UNIX); xc.connect(x.getsockname()); xs,_=x.accept(); xs.close()
dd=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); dd.bind('deadpeer'); de=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); de.connect('deadpeer'); dd.close()
os.mkfifo('x')
st=os.fstat(l.fileno())
def check():
    assert os.stat('rel').st_mode&0o777==0o640 and os.stat('rel').st_uid==5
    assert sorted(os.listdir('.'))==['deadpeer','named','rel','x'],os.listdir('.')
    assert l.getsockname()=='rel' and s.getsockname()=='rel' and clients[0].getpeername()=='rel' and clients[2].getpeername()=='rel'
    assert clients[0].recv(10)==b'queued'; clients[0].send(b'q2'); assert s.recv(9)==b'q2'
    assert p.recv(10)==b'bye'
    try: p.recv(10); assert False
    except ConnectionResetError: pass
    assert xc.recv(10)==b'' and xc.getpeername()==x.getsockname(),xc.getpeername()
    a,_=l.accept(); a.send(b'hi'); assert clients[1].recv(10)==b'hi'
    assert struct.unpack('3i',a.getsockopt(1,17,12))[0]==os.getpid()
    assert auto.getsockname()==an
    assert g.getsockname()=='gone'
    got=[g.recvfrom(99) for _ in range(3)]
    assert got==[(b'from unnamed',None),(b'from named',os.getcwd()+'/named'),(b'from dead',b'\0kz-'+str(os.getpid()).encode())],got
    h.send(b'again'); assert g.recv(9)==b'again'
    assert de.getpeername()=='deadpeer'
    try: de.send(b'x'); assert 0
    except ConnectionRefusedError: pass
    z=socket.socket(socket.AF_UNIX); z.connect('rel'); z.close()
