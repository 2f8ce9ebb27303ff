# peer credentials of other users and dead processes, PASSCRED, queued credentials
def child(f):
    p=os.fork()
    if p==0:
        f(); os._exit(0)
    return p
a,b=None,None
# a pair made by a dead process of another user
x,y=socket.socketpair()
def mk():
    os.setgroups([7,8]); os.setegid(33); os.seteuid(34)
    p,q=socket.socketpair()
    socket.send_fds(x,[b'p'],[p.fileno(),q.fileno()])
dead=child(mk); 
_,fds,_,_=socket.recv_fds(y,10,2)
p,q=[socket.socket(fileno=f) for f in fds]
os.waitpid(dead,0)
def cr(s): return struct.unpack('iII',s.getsockopt(1,17,12))
before=(cr(p),cr(q),p.getsockopt(1,59,100))
assert before[0]==(dead,34,33),before
# listener; connected by a dead child
l=socket.socket(socket.AF_UNIX); l.bind('l'); os.chmod('l',0o777); l.listen(5)
s1,s2=socket.socketpair()
def cn():
    os.setgroups([9]); os.setegid(35); os.seteuid(36)
    c=socket.socket(socket.AF_UNIX); c.connect('l'); c.send(b'hello'); socket.send_fds(s1,[b'c'],[c.fileno()])
dead2=child(cn); os.waitpid(dead2,0)
_,fds,_,_=socket.recv_fds(s2,10,2); c=socket.socket(fileno=fds[0])
srv,_=l.accept()
assert cr(srv)==(dead2,36,35)
g1=srv.getsockopt(1,59,100)
# credentials in flight
m,n=socket.socketpair(socket.AF_UNIX,socket.SOCK_DGRAM); n.setsockopt(1,16,1)
m.send(b'mine')
m.sendmsg([b'other'],[(1,2,struct.pack('iII',os.getpid(),77,78))])
def sd(): m.send(b'from dead')
dead3=child(sd); os.waitpid(dead3,0)
# stream with creds
m2,n2=socket.socketpair(); n2.setsockopt(1,16,1); m2.send(b'aa'); m2.sendmsg([b'bb'],[(1,2,struct.pack('iII',os.getpid(),77,78))])
# a live child listens; we connect
r,w=os.pipe()
def live():
    k=socket.socket(socket.AF_UNIX); k.bind('\0kup-live-%d'%os.getpid()); k.listen(1)
    os.write(w,b'x'); os.close(w); os.close(r)
    z,_=k.accept(); k.close()
    assert z.recv(10)==b'go'; z.send(b'done'); os._exit(0)
kid=child(live); os.read(r,1); os.close(r); os.close(w)
lc=socket.socket(socket.AF_UNIX); lc.connect('\0kup-live-%d'%kid)
# A dead process of another user listens.
o1, o2 = socket.socketpair()
def other():
    os.setegid(41); os.seteuid(42)
    k=socket.socket(socket.AF_UNIX); k.bind('\0kup-other-%d'%os.getpid()); k.listen(1)
    socket.send_fds(o1,[b'l'],[k.fileno()])
dead4=child(other); os.waitpid(dead4,0)
_,fds,_,_=socket.recv_fds(o2,10,1); theirs=socket.socket(fileno=fds[0])
assert cr(theirs)==(dead4,42,41)
time.sleep(.3)
os.fchown(m.fileno(),1,2)
def check():
    assert cr(theirs)==(dead4,42,41)
    late=socket.socket(socket.AF_UNIX); late.connect(theirs.getsockname()); assert cr(late)==(dead4,42,41)
    assert (cr(p),cr(q),p.getsockopt(1,59,100))==before,(cr(p),cr(q),p.getsockopt(1,59,100),before)
    assert cr(srv)==(dead2,36,35) and srv.getsockopt(1,59,100)==g1
    assert cr(c)[0]==os.getpid()
    assert srv.recv(10)==b'hello' and c.getpeername()=='l'
    got=[]
    for _ in range(3):
        d,anc,_,_=n.recvmsg(100,100); got.append((d,struct.unpack('iII',anc[0][2])))
    assert got==[(b'mine',(os.getpid(),0,0)),(b'other',(os.getpid(),77,78)),(b'from dead',(dead3,0,0))],got
    d,anc,_,_=n2.recvmsg(100,100); assert d==b'aa' and struct.unpack('iII',anc[0][2])==(os.getpid(),0,0)
    d,anc,_,_=n2.recvmsg(100,100); assert d==b'bb' and struct.unpack('iII',anc[0][2])==(os.getpid(),77,78)
    assert cr(lc)==(kid,0,0); lc.send(b'go'); assert lc.recv(9)==b'done'; os.waitpid(kid,0)
    assert os.fstat(m.fileno()).st_uid==1
