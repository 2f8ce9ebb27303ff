//! Stopping: everybody stops, stays stopped and goes on as before.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::until;
use freezer::{freeze, freeze_all};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::Pid;

/// A Python child, ended with its descendants when dropped.
struct Subject(Child);

impl Subject {
    fn start(script: &str) -> Subject {
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It writes a byte when it is ready.
        let out = child.stdout.as_mut().unwrap();
        out.read_exact(&mut [0]).unwrap();
        Subject(child)
    }

    /// All that it says when it is told to go on.
    fn ask(&mut self) -> String {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let out = self.0.stdout.as_mut().unwrap();
        out.read_to_string(&mut said).unwrap();
        said
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id() as i32)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for pid in freezer::proc::tree(self.pid())
            .unwrap_or_default()
            .into_iter()
            .rev()
        {
            let _ = sys::process::kill(pid, 9);
        }
        let _ = self.0.wait();
    }
}

fn state(pid: Pid) -> char {
    freezer::proc::Stat::read(pid, "stat").unwrap().state()
}

#[test]
fn many_threads_and_processes_stop_quickly_and_go_on() {
    let subject = Subject::start(
        "import os,threading,time\n\
         for p in range(20):\n\
         \x20if os.fork()==0: time.sleep(1000)\n\
         for t in range(200): threading.Thread(target=time.sleep,args=(1000,),daemon=True).start()\n\
         os.write(1,b'x')\n\
         while 1: pass\n",
    );
    let begun = Instant::now();
    let frozen = freeze(subject.pid()).unwrap();
    let took = begun.elapsed();
    assert_eq!(frozen.pids().count(), 21);
    assert_eq!(frozen.threads(subject.pid()).len(), 201);
    assert_eq!(frozen.threads(subject.pid())[0].0, subject.pid().leader());
    assert_eq!(frozen.pids().next(), Some(subject.pid()));
    assert_eq!(state(subject.pid()), 't');
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    drop(frozen);
    assert_ne!(state(subject.pid()), 't');
}

#[test]
fn threads_and_children_born_meanwhile_are_stopped_too() {
    let subject = Subject::start(
        "import os,threading,time\n\
         os.write(1,b'x')\n\
         def short(): time.sleep(0.002)\n\
         while 1:\n\
         \x20for i in range(8): threading.Thread(target=short,daemon=True).start()\n\
         \x20p=os.fork()\n\
         \x20if p==0: time.sleep(0.003); os._exit(0)\n\
         \x20os.waitpid(p,0)\n",
    );
    for _ in 0..20 {
        let frozen = freeze(subject.pid()).unwrap();
        for pid in freezer::proc::tree(subject.pid()).unwrap() {
            for tid in freezer::proc::threads(pid).unwrap() {
                let what = format!("task/{tid}/stat");
                let state = freezer::proc::Stat::read(pid, &what).unwrap().state();
                assert!(
                    matches!(state, 't' | 'Z'),
                    "{tid} of {pid} is in state {state}"
                );
            }
        }
        drop(frozen);
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn nobody_hears_of_a_freeze_that_fails() {
    // The first thread runs 32-bit code, which is refused when it has stopped: push 0x23, push the address of what
    // comes then, retfq; jmp to itself. What is seen of the others: receiving with a time-out fails when it is
    // stopped, writing more than there is room for ends short.
    let mut subject = Subject::start(
        "import ctypes,mmap,os,socket,struct,threading,time\n\
         libc=ctypes.CDLL(None,use_errno=True)\n\
         libc.mmap.restype=ctypes.c_void_p\n\
         code=libc.mmap(None,4096,7,0x62,-1,0)\n\
         bytes_=b'\\x6a\\x23\\x48\\xb8'+struct.pack('<Q',code+16)+b'\\x50\\x48\\xcb\\x90\\xeb\\xfe'\n\
         ctypes.memmove(code,bytes_,len(bytes_))\n\
         def start(f,*a): threading.Thread(target=f,args=a,daemon=True).start()\n\
         start(ctypes.CFUNCTYPE(None)(code))\n\
         told={}\n\
         def receive(n,s):\n\
         \x20b=ctypes.create_string_buffer(9); told[n]=libc.recv(s.fileno(),b,9,0)\n\
         def write(n,fd):\n\
         \x20b=ctypes.create_string_buffer(1<<20); told[n]=libc.write(fd,b,1<<20)\n\
         pairs=[socket.socketpair() for n in range(8)]\n\
         pipes=[os.pipe() for n in range(8)]\n\
         for n,(s,_) in enumerate(pairs):\n\
         \x20s.setsockopt(socket.SOL_SOCKET,socket.SO_RCVTIMEO,struct.pack('ll',600,0)); start(receive,n,s)\n\
         for n,(_,w) in enumerate(pipes): start(write,8+n,w)\n\
         time.sleep(0.5)\n\
         os.write(1,b'x')\n\
         os.read(0,1)\n\
         for _,s in pairs: s.send(b'123456789')\n\
         end=time.time()+20\n\
         for r,_ in pipes:\n\
         \x20left=1<<20\n\
         \x20os.set_blocking(r,False)\n\
         \x20while left and time.time()<end:\n\
         \x20\x20try: left-=len(os.read(r,left))\n\
         \x20\x20except BlockingIOError: time.sleep(0.001)\n\
         time.sleep(0.2)\n\
         print([told.get(n) for n in range(16)])\n\
         os._exit(0)\n",
    );
    for _ in 0..3 {
        let why = freeze(subject.pid()).unwrap_err().to_string();
        assert!(why.contains("32-bit code"), "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = subject.ask();
    let expected = [vec!["9"; 8], vec!["1048576"; 8]].concat().join(", ");
    assert_eq!(said.trim(), format!("[{expected}]"));
}

#[test]
fn a_vfork_parent_is_waited_for() {
    // A child made with CLONE_VFORK that takes its time.
    let subject = Subject::start(
        "import ctypes,os,time\n\
         libc=ctypes.CDLL(None,use_errno=True)\n\
         os.write(1,b'x')\n\
         CLONE_VFORK=0x4000\n\
         while 1:\n\
         \x20if libc.syscall(56,CLONE_VFORK|17,0,0,0,0)==0: time.sleep(0.05); os._exit(0)\n\
         \x20os.wait()\n",
    );
    until("it waits for its child", || state(subject.pid()) == 'D');
    let begun = Instant::now();
    let frozen = freeze(subject.pid()).unwrap();
    assert_eq!(state(subject.pid()), 't');
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(frozen);
}

#[test]
fn a_parent_in_vfork_is_let_go_and_stopped_again() {
    let fifo = std::env::temp_dir().join(format!("freezer-vfork-{}", std::process::id()));
    let _ = std::fs::remove_file(&fifo);
    // Its child waits for a writer before it runs another program.
    let subject = Subject::start(&format!(
        "import os\n\
         f='{}'\n\
         os.mkfifo(f)\n\
         os.write(1,b'x')\n\
         os.posix_spawn('/bin/true',['true'],{{}},file_actions=[(os.POSIX_SPAWN_OPEN,5,f,0,0)])\n\
         while 1: os.wait() and os._exit(3)\n",
        fifo.display()
    ));
    until("it waits for its child", || state(subject.pid()) == 'D');
    for _ in 0..2 {
        let frozen = match freeze(subject.pid()) {
            Ok(frozen) => frozen,
            // Which child it waits for is told by the kernel's memory only.
            Err(freezer::FreezerError::WontStop { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let child = frozen.threads(subject.pid())[0].1.in_vfork;
        assert!(child.is_some_and(|child| state(child) == 't'));
    }
    std::fs::File::options().write(true).open(&fifo).unwrap();
    let _ = std::fs::remove_file(&fifo);
    // What could not be detached while it waited is so by a tracer's end, or now that it has stopped.
    drop(freeze(subject.pid()).unwrap());
    until("both end", || state(subject.pid()) == 'Z');
}

#[test]
fn a_stopped_job_stays_stopped() {
    let subject = Subject::start("import os,time\nos.write(1,b'x')\nwhile 1: time.sleep(0.01)\n");
    sys::process::kill(subject.pid(), 19).unwrap();
    until("it is stopped", || state(subject.pid()) == 'T');
    let frozen = freeze(subject.pid()).unwrap();
    assert_eq!(frozen.threads(subject.pid())[0].1.group_stop, Some(19));
    drop(frozen);
    until("it is stopped again", || state(subject.pid()) == 'T');
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state(subject.pid()), 'T', "and stays so");
    sys::process::kill(subject.pid(), 18).unwrap();
    until("it goes on", || state(subject.pid()) != 'T');
}

#[test]
fn a_thread_that_reads_the_clock_all_the_time_stops_outside_of_the_vdso() {
    let subject = Subject::start(
        "import os,time\nos.write(1,b'x')\nf=time.monotonic_ns\nwhile 1: f();f();f();f();f();f()\n",
    );
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", subject.pid())).unwrap();
    let vdso = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
    let (start, end) = vdso.split(' ').next().unwrap().split_once('-').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let vdso = number(start)..number(end);
    for _ in 0..200 {
        let frozen = freeze(subject.pid()).unwrap();
        let regs = sys::ptrace::get_regs(subject.pid().leader()).unwrap();
        assert!(!vdso.contains(&regs.rip));
        drop(frozen);
    }
}

/// Runs in a PID namespace of its own, started by the test below.
#[test]
#[ignore = "stops every process it sees"]
fn inner_freeze_all() {
    let one = Subject::start("import os,time\nos.write(1,b'x')\ntime.sleep(1000)\n");
    let two = Subject::start("import os,time\nos.write(1,b'x')\ntime.sleep(1000)\n");
    let frozen = freeze_all(&[two.pid(), Pid(1)], None).unwrap();
    assert_eq!(frozen.pids().collect::<Vec<_>>(), [one.pid()]);
    assert_eq!((state(one.pid()), state(two.pid())), ('t', 'S'));
}

#[test]
fn everybody_but_the_skipped_is_stopped() {
    let script = format!(
        "{} --exact inner_freeze_all --include-ignored; exit $?",
        std::env::current_exe().unwrap().display()
    );
    let out = Command::new("unshare")
        .args(["-fp", "--mount-proc", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

#[test]
fn a_call_that_is_partly_done_returns_the_whole() {
    // A read of this device is short for a signal only; it ends when one is.
    let mut subject = Subject::start(
        "import os,sys\n\
         f=os.open('/dev/zero',os.O_RDONLY); b=bytearray(1<<28); os.write(1,b'x')\n\
         import ctypes\n\
         read=ctypes.CDLL(None).read; read.restype=ctypes.c_ssize_t\n\
         at=(ctypes.c_char*len(b)).from_buffer(b)\n\
         while read(f,at,ctypes.c_size_t(len(b)))==len(b): pass\n",
    );
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        drop(freeze(subject.pid()).unwrap());
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(subject.0.try_wait().unwrap(), None, "a read was short");
}
