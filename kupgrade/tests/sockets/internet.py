t=socket.socket(socket.AF_INET6); t.setsockopt(41,26,1); t.setsockopt(6,23,5); t.setsockopt(6,9,7)
t.bind(('::1',0)); t.listen(33)
tn=t.getsockname()
w=socket.socket(); w.bind(('0.0.0.0',0)); w.listen(511); w.setsockopt(1,9,1)
m=socket.socket(); m.setsockopt(1,15,1); m.bind(('127.0.0.1',0)); m.listen(5)
m2=socket.socket(); m2.setsockopt(1,15,1); m2.bind(m.getsockname()); m2.listen(5)
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.bind(('127.0.0.1',0))
un=u.getsockname()
u.setsockopt(0,35,struct.pack('4s4si',socket.inet_aton('224.1.2.3'),b'\0'*4,1))
v=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); v.connect(u.getsockname()); vn=v.getsockname()
v.send(b'one'); v.send(b''); v.send(b'three')
z=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); z.sendto(b'from dead',un); zn=z.getsockname(); z.close()
u6=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); u6.bind(('::',0)); u6n=u6.getsockname()
v.sendto(b'mapped',('127.0.0.1',u6n[1]))
s6=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); s6.sendto(b'six',('::1',u6n[1])); s6n=s6.getsockname()
n=socket.socket(socket.AF_INET); n.setsockopt(1,33,300000); n.setsockopt(0,1,0x10); n.setsockopt(1,12,3); n.setsockopt(6,1,1)
k=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,15); k.bind((0,3))
kn=k.getsockname()
kr=socket.socket(socket.AF_NETLINK,socket.SOCK_DGRAM,0); kr.bind((0,0)); krn=kr.getsockname()
raw=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_ICMP); raw.setsockopt(255,1,struct.pack('I',0xff))
pk=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,0); pk.bind(('lo',0x88cc))
pk.setsockopt(263,1,struct.pack('iHH8s',1,0,6,b'\1\2\3\4\5\6\0\0'))
import ctypes
prog=struct.pack('HBBI',0x06,0,0,0xffff); buf=ctypes.create_string_buffer(prog)
u.setsockopt(1,26,struct.pack('HxxxxxxQ',1,ctypes.addressof(buf)))
def check():
    assert t.getsockname()==tn and t.getsockopt(41,26)==1 and t.getsockopt(6,23)==5 and t.getsockopt(6,9)==7 and t.getsockopt(1,30)==1
    assert t.getsockopt(1,2)==0
    c=socket.socket(socket.AF_INET6); c.connect(tn[:2]); c.send(b'x'); a,_=t.accept(); assert a.recv(3)==b'x'
    c=socket.create_connection(('127.0.0.1',w.getsockname()[1])); w.accept()
    assert u.getsockname()==un and v.getsockname()==vn and v.getpeername()==un
    got=[u.recvfrom(9) for _ in range(4)]
    assert got==[(b'one',vn),(b'',vn),(b'three',vn),(b'from dead',('127.0.0.1',zn[1]))],(got,vn,zn)
    got=[u6.recvfrom(9)[:2] for _ in range(2)]
    assert [g[0] for g in got]==[b'mapped',b'six'] and got[0][1][:2]==('::ffff:127.0.0.1',vn[1]) and got[1][1][1]==s6n[1],(got,s6n)
    v.send(b'new'); assert u.recv(9)==b'new'
    try: u.setsockopt(0,35,struct.pack('4s4si',socket.inet_aton('224.1.2.3'),b'\0'*4,1)); assert 0,'was no member'
    except OSError: pass
    assert n.getsockopt(1,8)==600000 and n.getsockopt(0,1)==0x10 and n.getsockopt(1,12)==3 and n.getsockopt(6,1)==1 and n.getsockopt(1,72)==2
    assert k.getsockname()==kn and kr.getsockname()==krn
    kr.send(struct.pack('IHHIIBxxxxxxx',24,18,0x301,1,0,0)); assert len(kr.recv(9999))>100
    assert raw.getsockopt(255,1)==0xff
    assert pk.getsockname()[:2]==('lo',0x88cc)
    # 2-step filter read
    assert m.getsockname()==m2.getsockname()
