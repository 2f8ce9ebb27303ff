//! Sockets of a stopped process are described, and are afterwards as they were.
#![allow(clippy::unwrap_used, reason = "tests")]

use freezer::{capture, check, freeze};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, InetSocket, Manifest, Socket, SocketState,
    UnixLink, UnixSocket,
};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use sys::Pid;

/// A Python program that builds its state, and goes on when its signal comes; its output is a file, so
/// that nothing of it reaches out to the test.
struct Subject {
    child: Child,
    dir: PathBuf,
}

impl Subject {
    fn start(name: &str, script: &str) -> Subject {
        let dir = std::env::temp_dir().join(format!("freezer-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let out = std::fs::File::create(dir.join("out")).unwrap();
        let script = format!(
            "import os,signal,socket,struct,sys\nos.closerange(3,9999)\n{script}\n\
             signal.pthread_sigmask(signal.SIG_BLOCK,[signal.SIGUSR1])\n\
             print('ready',flush=True)\nsignal.sigwait([signal.SIGUSR1])\ncheck()\nprint('good',flush=True)\n"
        );
        let child = Command::new("/usr/bin/env")
            .args(["python3", "-c", &script])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let subject = Subject { child, dir };
        subject.wait_for("ready");
        subject
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id().cast_signed())
    }

    fn wait_for(&self, word: &str) {
        for _ in 0..500 {
            let text = self.output();
            if text.lines().any(|line| line == word) {
                return;
            }
            assert!(!text.contains("Traceback"), "{text}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("it never said {word}: {}", self.output());
    }

    fn output(&self) -> String {
        let file = std::fs::File::open(self.dir.join("out")).unwrap();
        let lines = BufReader::new(file).lines().map(Result::unwrap);
        lines.collect::<Vec<_>>().join("\n")
    }

    /// It finds everything as it left it.
    fn go_on(&self) {
        sys::process::kill(self.pid(), 10).unwrap();
        self.wait_for("good");
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn describe(subject: &Subject) -> Manifest {
    assert_eq!(check::check_tree(subject.pid()).unwrap(), []);
    let frozen = freeze(subject.pid()).unwrap();
    let (manifest, _) = capture(&frozen).unwrap();
    drop(frozen);
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
    manifest
}

fn sockets(manifest: &Manifest) -> Vec<(DescriptionId, &Socket)> {
    let socket = |d: &'_ Description| match &d.kind {
        DescriptionKind::Socket(_) => Some(d.id),
        _ => None,
    };
    let ids: Vec<_> = manifest.descriptions.iter().filter_map(socket).collect();
    ids.into_iter()
        .map(|id| match &manifest.description(id).unwrap().kind {
            DescriptionKind::Socket(socket) => (id, socket.as_ref()),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn unix(socket: &Socket) -> &UnixSocket {
    match &socket.state {
        SocketState::Unix(state) => state,
        other => panic!("{other:?}"),
    }
}

fn inet(socket: &Socket) -> &InetSocket {
    match &socket.state {
        SocketState::Inet(state) => state,
        other => panic!("{other:?}"),
    }
}

fn option(socket: &Socket, level: i32, name: i32) -> i32 {
    let found = socket
        .options
        .iter()
        .find(|o| (o.level, o.name) == (level, name));
    i32::from_ne_bytes(found.unwrap().value[..4].try_into().unwrap())
}

#[test]
fn queues_of_pairs_stay_as_they_were() {
    let subject = Subject::start(
        "queues",
        "a,b=socket.socketpair(socket.AF_UNIX,socket.SOCK_STREAM)
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
def check():
    assert d.getsockopt(socket.SOL_SOCKET,42)==2 and b.getsockopt(socket.SOL_SOCKET,42)==-1
    d.setsockopt(socket.SOL_SOCKET,42,-1)
    data,fds,_,_=socket.recv_fds(b,100,5)
    assert data==b'onetwo' and len(fds)==2,(data,fds)
    assert os.read(fds[0],99)==b'in the pipe'
    assert b.recv(100)==b'three'
    for s in (d,f):
        got=[s.recv(5000) for _ in range(6)]
        assert got==[b'first',b'',b'x'*3000,b'last',b'',b''],got
    assert f.getsockopt(socket.SOL_SOCKET,socket.SO_PASSCRED)==0
    assert f.recv(10)==b''
",
    );
    let manifest = describe(&subject);
    let found = sockets(&manifest);
    assert_eq!(found.len(), 6);
    for (id, socket) in &found {
        let UnixLink::Connected(peer) = unix(socket).link else {
            panic!("{socket:?}");
        };
        let back = &unix(found.iter().find(|(id, _)| *id == peer).unwrap().1).link;
        assert_eq!(*back, UnixLink::Connected(*id));
        let credentials = unix(socket).peer_credentials.clone().unwrap();
        assert_eq!(credentials.pid, subject.pid().0);
    }
    let lengths = |n: usize| -> Vec<_> {
        let queue = &unix(found[n].1).queue;
        queue.iter().map(|m| (m.data.len(), m.fds.len())).collect()
    };
    assert_eq!(lengths(0), []);
    assert_eq!(lengths(1), [(3, 0), (3, 2), (5, 0)]);
    let packets = [(5, 0), (0, 0), (3000, 0), (4, 0), (0, 0), (0, 0)];
    assert_eq!(lengths(3), packets);
    assert_eq!(lengths(5), packets);
    assert_eq!(
        (unix(found[4].1).shutdown, unix(found[5].1).shutdown),
        (2, 1)
    );
    let sent = &unix(found[1].1).queue[1].fds;
    assert_eq!(
        sent[1], found[2].0,
        "the socket in flight is the one in the table"
    );
    let pipe = &manifest.description(sent[0]).unwrap().kind;
    assert!(matches!(pipe, DescriptionKind::Pipe(_)), "{pipe:?}");
    assert_eq!(manifest.pipes.len(), 1);
    assert_eq!(manifest.pipes[0].data, b"in the pipe");
    subject.go_on();
}

#[test]
fn a_socket_in_flight_in_its_own_queue_is_described_once() {
    let subject = Subject::start(
        "cycle",
        "a,b=socket.socketpair()\nsocket.send_fds(a,[b'x'],[b.fileno()])
def check():
    data,fds,_,_=socket.recv_fds(b,10,1)
    assert os.fstat(fds[0]).st_ino==os.fstat(b.fileno()).st_ino
",
    );
    let manifest = describe(&subject);
    let found = sockets(&manifest);
    assert_eq!(found.len(), 2);
    assert_eq!(unix(found[1].1).queue[0].fds, [found[1].0]);
    subject.go_on();
}

#[test]
fn names_listeners_and_those_who_wait() {
    let subject = Subject::start(
        "names",
        "l=socket.socket(socket.AF_UNIX); l.bind('rel'); l.listen(7)
os.chmod('rel',0o640)
x=socket.socket(socket.AF_UNIX); x.bind('\\0kupgrade-'+str(os.getpid())); x.listen(3)
g=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); g.bind('gone'); os.unlink('gone')
clients=[socket.socket(socket.AF_UNIX) for _ in range(3)]
for c in clients: c.connect('rel')
s,_=l.accept()
auto=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); auto.bind('')
p,q=socket.socketpair(); q.send(b'bye'); p.send(b'never read'); q.close()
def check():
    assert os.stat('rel').st_mode&0o777==0o640
    assert p.recv(10)==b'bye'
    try: p.recv(10); assert False
    except ConnectionResetError: pass
    a,_=l.accept(); a.send(b'hi'); assert clients[1].recv(10)==b'hi'
",
    );
    let manifest = describe(&subject);
    let found = sockets(&manifest);
    let names: Vec<_> = found.iter().map(|(_, s)| unix(s)).collect();
    assert_eq!(names[0].name, b"rel");
    let file = names[0].file.as_ref().unwrap();
    assert_eq!(
        file.path,
        subject.dir.join("rel").as_os_str().as_encoded_bytes()
    );
    assert_eq!(file.mode, 0o640);
    let UnixLink::Listening { backlog, waiting } = &names[0].link else {
        panic!("{:?}", names[0].link);
    };
    let clients: Vec<_> = waiting.iter().map(|one| one.client).collect();
    assert_eq!(*backlog, 7);
    assert_eq!(clients, [Some(found[4].0), Some(found[5].0)]);
    for one in waiting {
        assert_eq!(one.sent, Some(Vec::new()));
        // Where the kernel's memory cannot be read nobody knows.
        let seen = one.credentials.as_ref().map(|who| who.pid);
        assert!([None, Some(subject.pid().0)].contains(&seen), "{seen:?}");
    }
    assert_eq!(names[1].name[..10], *b"\0kupgrade-");
    assert_eq!(
        (names[2].name.as_slice(), &names[2].file),
        (&b"gone"[..], &None)
    );
    assert_eq!(names[4].link, UnixLink::Waiting(found[0].0));
    assert_eq!(names[6].link, UnixLink::Connected(found[3].0));
    assert_eq!((names[7].name.len(), names[7].name[0]), (6, 0));
    let gone = UnixLink::Gone {
        name: Vec::new(),
        reset: true,
    };
    assert_eq!(names[8].link, gone);
    assert_eq!(names[8].queue[0].data, b"bye");
    subject.go_on();
}

#[test]
fn internet_sockets() {
    let subject = Subject::start(
        "inet",
        "t=socket.socket(socket.AF_INET6); t.setsockopt(41,26,1); t.setsockopt(6,23,5); t.setsockopt(6,9,7)
t.bind(('::1',0)); t.listen(33)
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.bind(('127.0.0.1',0))
u.setsockopt(0,35,struct.pack('4s4si',socket.inet_aton('224.1.2.3'),b'\\0'*4,1))
v=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); v.connect(u.getsockname())
v.send(b'one'); v.send(b''); v.send(b'three')
n=socket.socket(socket.AF_INET); n.setsockopt(1,33,300000)
k=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,15); k.bind((0,3))
def check():
    assert [u.recv(9) for _ in range(3)]==[b'one',b'',b'three']
",
    );
    let manifest = describe(&subject);
    let found = sockets(&manifest);
    let tcp = found[0].1;
    assert_eq!(inet(tcp).backlog, Some(33));
    assert_eq!((option(tcp, 41, 26), option(tcp, 6, 23)), (1, 5));
    assert_eq!(option(tcp, 6, 9), 7);
    let udp = inet(found[1].1);
    assert_eq!(udp.groups.len(), 1, "{:?}", udp.groups);
    assert_eq!(udp.groups[0].interface, "lo");
    assert_eq!(udp.groups[0].group[4..8], [224, 1, 2, 3]);
    let queue: Vec<_> = udp.queue.iter().map(|m| m.data.as_slice()).collect();
    assert_eq!(queue, [&b"one"[..], b"", b"three"]);
    let sender = inet(found[2].1);
    assert_eq!(udp.queue[0].source, sender.local);
    assert_eq!((&sender.remote, &udp.remote), (&udp.local, &Vec::new()));
    assert_eq!(inet(found[3].1), &InetSocket::default());
    assert_eq!(option(found[3].1, 1, 8), 600_000);
    let SocketState::Netlink(netlink) = &found[4].1.state else {
        panic!("{:?}", found[4]);
    };
    assert_eq!(netlink.groups, [1, 2]);
    subject.go_on();
}

#[test]
fn what_reaches_out_or_lives_is_refused_by_name() {
    let subject = Subject::start(
        "refused",
        "l=socket.socket(socket.AF_UNIX); l.bind('data'); l.listen()
c=socket.socket(socket.AF_UNIX); c.connect('data'); lost=socket.socket()
socket.send_fds(c,[b'x'],[lost.fileno()]); lost.close()
m=socket.socket(socket.AF_UNIX); m.bind('silent'); m.listen(); n=socket.socket(socket.AF_UNIX)
n.connect('silent')
def check(): pass
",
    );
    let refusals = check::check_tree(subject.pid()).unwrap();
    let text = format!("{refusals:?}");
    assert_eq!(refusals.len(), 1, "{text}");
    assert!(
        text.contains("in flight in it that nobody else holds"),
        "{text}"
    );
    let frozen = freeze(subject.pid()).unwrap();
    let error = capture(&frozen).map(drop).unwrap_err().to_string();
    assert!(error.contains("fd 3"), "{error}");
    drop(frozen);
    subject.go_on();
}
