//! TCP connections that nobody has accepted, and sockets that share a port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use libc::{AF_INET, SO_REUSEADDR, SO_REUSEPORT, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET};

use super::listening::{address, bind, listen};
use crate::kit::net::{option, set_option, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, loopback, not_here, same, until};

/// Accepts what must be there.
fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let (stream, mut from) = listener.accept().context("a connection that has waited")?;
    from.set_ip(from.ip().to_canonical());
    Ok((stream, from))
}

/// All that comes until the other side has finished.
fn all(mut stream: &TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Clients that wait, with their addresses.
type Clients = Vec<(TcpStream, SocketAddr)>;

/// Four clients: one has sent much, one nothing, one has finished, and one, the last, has gone.
fn come(to: SocketAddr) -> Result<(Clients, SocketAddr)> {
    let connect = || -> Result<_> {
        let client = TcpStream::connect(to)?;
        let address = client.local_addr()?;
        Ok((client, address))
    };
    let mut clients = vec![connect()?, connect()?, connect()?];
    clients[0].0.write_all(b"early")?;
    clients[0].0.write_all(&[5; 30_000])?;
    clients[2].0.write_all(b"all I have")?;
    clients[2].0.shutdown(Shutdown::Write)?;
    let (mut gone, last) = connect()?;
    gone.write_all(b"last words")?;
    Ok((clients, last))
}

/// They are served in their order, and find what was sent.
fn serve(listener: &TcpListener, mut clients: Clients, last: SocketAddr) -> Result<()> {
    let mut servers = Vec::new();
    let addresses = clients.iter().map(|(_, address)| *address).chain([last]);
    for address in addresses {
        let (server, from) = accept(listener)?;
        same("a client", &address, &from)?;
        servers.push(server);
    }
    same("a fifth", &true, &listener.accept().is_err())?;
    let mut early = vec![0; 30_005];
    servers[0].read_exact(&mut early)?;
    same("what was sent early", &(b"early".to_vec(), true), &{
        let rest = early.split_off(5);
        (early, rest == [5; 30_000])
    })?;
    same(
        "what one finished with",
        &b"all I have".to_vec(),
        &all(&servers[2])?,
    )?;
    same("last words", &b"last words".to_vec(), &all(&servers[3])?)?;
    for (number, (client, _)) in clients.iter_mut().enumerate() {
        servers[number].write_all(b"answer")?;
        servers[number].shutdown(Shutdown::Write)?;
        same("the answer", &b"answer".to_vec(), &all(client)?)?;
    }
    Ok(())
}

/// Their order, what they have sent and what has become of them.
pub(crate) fn pending(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    waited_for(listener, to)
}

/// Clients of IPv4 that wait at a listener for IPv6 and IPv4, as programs open without asking for either.
pub(crate) fn pending_mapped(_: &Setting) -> Result<Watch> {
    loopback()?;
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        return not_here("no IPv6");
    };
    let to = SocketAddr::from(([127, 0, 0, 1], listener.local_addr()?.port()));
    waited_for(listener, to)
}

fn waited_for(listener: TcpListener, to: SocketAddr) -> Result<Watch> {
    listener.set_nonblocking(true)?;
    let other = listener.try_clone()?;
    let mut come_again = Some(come(to)?);
    Ok(Watch::new(move || {
        let (clients, last) = come_again.take().context("nobody has come")?;
        serve(&listener, clients, last)?;
        come_again = Some(come(to)?);
        Ok(())
    })
    .spoiled_by(move || accept(&other).map(drop)))
}

/// Clients that were killed while they had not read everything, as a connection is when it waits.
pub(crate) fn pending_broken(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let other = listener.try_clone()?;
    let to = listener.local_addr()?;
    let mut come_again = Some(break_off(to)?);
    Ok(Watch::new(move || {
        for (number, address) in come_again
            .take()
            .context("nobody has come")?
            .iter()
            .enumerate()
        {
            let (server, from) = accept(&listener)?;
            same("a client", address, &from)?;
            same("its own address", &to, &server.local_addr()?)?;
            let told = [Some(libc::ECONNRESET), Some(libc::EPIPE), None][number % 3];
            let error = server.take_error()?;
            let error = error.and_then(|error| error.raw_os_error());
            same("what it is told", &told, &error)?;
            let whole = all(&server)? == [7; 20_000];
            same("whether all it has sent is there", &true, &whole)?;
        }
        same("a fourth", &true, &listener.accept().is_err())?;
        come_again = Some(break_off(to)?);
        Ok(())
    })
    .spoiled_by(move || accept(&other).map(drop)))
}

/// One breaks off at once, one after it has finished, and one has only gone.
fn break_off(to: SocketAddr) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for number in 0..3 {
        let mut client = TcpStream::connect(to)?;
        addresses.push(client.local_addr()?);
        client.write_all(&[7; 20_000])?;
        if number == 1 {
            client.shutdown(Shutdown::Write)?;
        }
        if number < 2 {
            let at_once = [1i32.to_ne_bytes(), [0; 4]].concat();
            let fd = client.as_raw_fd();
            set_option_bytes(fd, SOL_SOCKET, libc::SO_LINGER, &at_once)?;
        }
    }
    Ok(addresses)
}

/// Both sides have finished, and one has not read everything: its socket knows no peer any more.
pub(crate) fn over(_: &Setting) -> Result<Watch> {
    loopback()?;
    // SAFETY: a signal that would end the subject is ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let come = move || -> Result<TcpStream> {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"farewell")?;
        drop(server);
        until("it is told", SOON / 4, || {
            crate::kit::files::ready(client.as_raw_fd(), libc::POLLRDHUP).is_ok_and(|e| e != 0)
        })?;
        client.shutdown(Shutdown::Write)?;
        until("it is over", SOON / 4, || client.peer_addr().is_err())?;
        Ok(client)
    };
    let mut client = come()?;
    let mut address = client.local_addr()?;
    let fd = client.as_raw_fd();
    Ok(Watch::new(move || {
        same("its address", &address, &client.local_addr()?)?;
        let error = client.peer_addr().err().and_then(|e| e.raw_os_error());
        same("its peer", &Some(libc::ENOTCONN), &error)?;
        let events = libc::POLLIN | libc::POLLRDHUP;
        let now = crate::kit::files::ready(fd, events)?;
        same("what poll tells", &(events | libc::POLLHUP), &now)?;
        same("what it has left", &b"farewell".to_vec(), &all(&client)?)?;
        let error = client.write_all(b"x").err().and_then(|e| e.raw_os_error());
        same("writing", &Some(libc::EPIPE), &error)?;
        let fresh = come()?;
        address = fresh.local_addr()?;
        // SAFETY: both are open.
        crate::kit::sys("dup2", unsafe { libc::dup2(fresh.as_raw_fd(), fd) }).map(drop)
    })
    .spoiled_by(move || crate::kit::files::read(fd, 3).map(drop)))
}

/// A server that only wants to hear of clients that have sent something.
pub(crate) fn deferred(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    set_option(
        listener.as_raw_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        4000,
    )?;
    let to = listener.local_addr()?;
    let mut client = TcpStream::connect(to)?;
    let fd = client.as_raw_fd();
    Ok(Watch::new(move || {
        same("a silent client", &true, &listener.accept().is_err())?;
        client.write_all(b"now")?;
        let mut found = None;
        until("it is let in", SOON / 4, || {
            found = listener.accept().ok();
            found.is_some()
        })?;
        let (server, from) = found.context("nobody has come")?;
        same("the client", &client.local_addr()?, &from)?;
        client.shutdown(Shutdown::Write)?;
        server.set_nonblocking(false)?;
        same("what it says", &b"now".to_vec(), &all(&server)?)?;
        let fresh = TcpStream::connect(to)?;
        // SAFETY: both are open.
        crate::kit::sys("dup2", unsafe { libc::dup2(fresh.as_raw_fd(), fd) }).map(drop)
    })
    .spoiled_by(move || crate::kit::files::write(fd, b"too early")))
}

/// Has a classic program choose the socket with this place among those of the port.
fn choose(socket: i32, place: u32) -> Result<()> {
    // BPF_RET | BPF_K, and the struct sock_fprog that it is told with.
    let program = [6 | u64::from(place) << 32];
    let mut value = [0; 16];
    value[0] = 1;
    value[8..].copy_from_slice(&(program.as_ptr() as u64).to_ne_bytes());
    set_option_bytes(socket, SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &value)
}

/// Sockets of one port, in their order.
fn group(kind: i32, count: usize) -> Result<(Vec<i32>, u16)> {
    let (mut sockets, mut port) = (Vec::new(), 0);
    for _ in 0..count {
        let one = socket(AF_INET, kind | libc::SOCK_NONBLOCK, 0)?;
        set_option(
            one,
            SOL_SOCKET,
            SO_REUSEADDR,
            i32::from(kind == SOCK_STREAM),
        )?;
        set_option(one, SOL_SOCKET, SO_REUSEPORT, 1)?;
        bind(one, &address(AF_INET, false, port))?;
        let name = crate::kit::net::name(one, false)?;
        port = u16::from_be_bytes([name[2], name[3]]);
        if kind == SOCK_STREAM {
            listen(one, 20)?;
        }
        sockets.push(one);
    }
    Ok((sockets, port))
}

/// Which of the sockets gets a message that is sent now.
fn who_hears(sockets: &[i32], port: u16) -> Result<usize> {
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.send_to(b"x", ("127.0.0.1", port))?;
    let mut heard = None;
    // On a busy machine the loopback device takes a moment.
    until("somebody hears it", SOON, || {
        let hears = |socket: &i32| crate::kit::files::read(*socket, 9).is_ok();
        heard = sockets.iter().position(hears);
        heard.is_some()
    })?;
    heard.context("nobody has heard it")
}

/// A program chooses among the listeners; those that wait already stay with theirs.
pub(crate) fn chosen(_: &Setting) -> Result<Watch> {
    loopback()?;
    let (listeners, port) = group(SOCK_STREAM, 3)?;
    let (datagrams, heard_at) = group(SOCK_DGRAM, 4)?;
    choose(datagrams[0], 2)?;
    let come = {
        let listeners = listeners.clone();
        move || -> Result<Vec<TcpStream>> {
            let mut clients = Vec::new();
            for place in [1, 0, 2, 1] {
                choose(listeners[2], place)?;
                clients.push(TcpStream::connect(("127.0.0.1", port))?);
            }
            for (number, client) in clients.iter_mut().enumerate() {
                client.write_all(&[number as u8])?;
            }
            Ok(clients)
        }
    };
    let mut clients = come()?;
    let (spoiled, first) = (listeners[1], listeners[0]);
    // Who is asked after the program, does not change it.
    same(
        "the group",
        &1,
        &option(first, SOL_SOCKET, SO_REUSEPORT)?[0],
    )?;
    Ok(Watch::new(move || {
        let port = ("127.0.0.1", port);
        clients.push(TcpStream::connect(port)?);
        clients.last_mut().context("a client")?.write_all(&[4])?;
        let mut heard = vec![Vec::new(); listeners.len()];
        // Who has just connected may not have come yet.
        until("all clients have come", SOON, || {
            for (listener, heard) in listeners.iter().zip(&mut heard) {
                while let Ok(server) = accept_raw(*listener) {
                    heard.push(first_byte(server).unwrap_or(9));
                }
            }
            heard.iter().map(Vec::len).sum::<usize>() >= clients.len()
        })?;
        same(
            "who came where",
            &vec![vec![1], vec![0, 3, 4], vec![2]],
            &heard,
        )?;
        same("who hears", &2, &who_hears(&datagrams, heard_at)?)?;
        clients = come()?;
        Ok(())
    })
    .spoiled_by(move || choose(spoiled, 2)))
}

fn first_byte(mut server: TcpStream) -> Result<u8> {
    let mut byte = [0];
    server.set_nonblocking(false)?;
    server.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn accept_raw(listener: i32) -> Result<TcpStream> {
    use std::os::fd::FromRawFd;
    let accepted = crate::kit::raw(libc::SYS_accept4, crate::kit::args([listener as u64]));
    if accepted < 0 {
        bail!("accept: error {}", -accepted);
    }
    // SAFETY: the kernel has just returned it.
    Ok(unsafe { TcpStream::from_raw_fd(accepted as i32) })
}

/// A connection to its own address, with what it has sent itself.
pub(crate) fn with_itself(_: &Setting) -> Result<Watch> {
    loopback()?;
    let one = socket(AF_INET, SOCK_STREAM, 0)?;
    bind(one, &address(AF_INET, false, 0))?;
    let own = crate::kit::net::name(one, false)?;
    connect(one, &own)?;
    // SAFETY: it is open, and nobody else's.
    let mut one = unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(one) };
    one.set_nonblocking(true)?;
    one.write_all(b"to myself")?;
    let other = one.try_clone()?;
    let here = one.local_addr()?;
    Ok(Watch::new(move || {
        same("its own address", &here, &one.local_addr()?)?;
        same("its peer", &here, &one.peer_addr()?)?;
        let mut bytes = [0; 9];
        one.read_exact(&mut bytes)?;
        same("what it got", b"to myself", &bytes)?;
        one.write_all(b"to myself")?;
        let fd = one.as_raw_fd();
        until("what it has sent", SOON, || {
            crate::kit::files::ready(fd, libc::POLLIN).is_ok_and(|events| events != 0)
        })
    })
    .spoiled_by(move || Ok((&other).read_exact(&mut [0; 1])?)))
}

fn connect(fd: i32, to: &[u8]) -> Result<()> {
    // SAFETY: the address is alive.
    let done = unsafe { libc::connect(fd, to.as_ptr().cast(), to.len() as u32) };
    crate::kit::sys("connect", done).map(drop)
}

/// Clients of a listener whose queue is full: they have asked, and nobody has answered.
pub(crate) fn asking(_: &Setting) -> Result<Watch> {
    const SYN_SENT: u8 = 2;
    loopback()?;
    let listener = socket(AF_INET, SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    bind(listener, &address(AF_INET, false, 0))?;
    listen(listener, 0)?;
    let to = crate::kit::net::name(listener, false)?;
    let first = socket(AF_INET, SOCK_STREAM, 0)?;
    connect(first, &to)?;
    let ask = {
        let to = to.clone();
        move || {
            let one = socket(AF_INET, SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
            // It does not give up while many others start.
            set_option(one, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 100)?;
            // It is on its way.
            let _ = connect(one, &to);
            anyhow::Ok(one)
        }
    };
    let [one, two] = [ask()?, ask()?];
    let observe = move || {
        let mut all = Vec::new();
        for fd in [one, two] {
            let state = option(fd, libc::SOL_TCP, libc::TCP_INFO)?;
            let ready = crate::kit::files::ready(fd, libc::POLLIN | libc::POLLOUT)?;
            let largest = option(fd, libc::SOL_TCP, libc::TCP_MAXSEG)?;
            let own = crate::kit::net::name(fd, false)?;
            all.push((state[0], ready, largest, own));
        }
        Ok(all)
    };
    same("its state", &SYN_SENT, &observe()?[0].0)?;
    let alive = move || {
        let _ = (first, listener);
        Ok(())
    };
    Ok(Watch::keep(observe)?
        .and(Watch::new(alive))
        .spoiled_by(move || {
            let fresh = ask()?;
            // SAFETY: both are open.
            crate::kit::sys("dup2", unsafe { libc::dup2(fresh, one) }).map(drop)
        }))
}
