a,b=socket.socketpair(socket.AF_UNIX,socket.SOCK_STREAM)
c,d=socket.socketpair(socket.AF_UNIX,socket.SOCK_DGRAM)
e,f=socket.socketpair(socket.AF_UNIX,socket.SOCK_SEQPACKET)
r,w=os.pipe()
os.write(w,b'in the pipe')
a.send(b'one')
socket.send_fds(a,[b'two'],[r,c.fileno()])
a.send(b'three')
os.close(r)
for s in (c,e):
    for m in (b'first',b'',b'x'*3000,b'last',b'',b''): s.send(m)
e.shutdown(socket.SHUT_WR)
d.setsockopt(socket.SOL_SOCKET,42,2)
b.setblocking(False)
creds=[s.getsockopt(1,17,12) for s in (a,b,c,d,e,f)]
def check():
    assert creds==[s.getsockopt(1,17,12) for s in (a,b,c,d,e,f)],[s.getsockopt(1,17,12) for s in (a,b,c,d,e,f)]
    assert d.getsockopt(socket.SOL_SOCKET,42)==2 and b.getsockopt(socket.SOL_SOCKET,42)==-1
    d.setsockopt(socket.SOL_SOCKET,42,-1)
    data,fds,_,_=socket.recv_fds(b,100,5)
    assert data==b'onetwo' and len(fds)==2,(data,fds)
    assert os.read(fds[0],99)==b'in the pipe'
    assert b.recv(100)==b'three'
    try: b.recv(10); assert 0
    except BlockingIOError: pass
    for s in (d,f):
        got=[s.recv(5000) for _ in range(6)]
        assert got==[b'first',b'',b'x'*3000,b'last',b'',b''],got
    assert f.recv(10)==b''
    assert f.send(b'back')==4 and e.recv(10)==b'back'
    c2=socket.socket(fileno=fds[1]); assert c2.send(b'via')==3 and d.recv(9)==b'via'
