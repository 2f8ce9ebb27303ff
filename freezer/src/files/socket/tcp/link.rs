//! Which ends of connections belong together, once all sockets are known.

use super::buffers::Unsent;
use super::closing;
use crate::FreezerError;
use crate::files::socket::addresses::plain;
use crate::nettcp::{self, Ends};
use persist_mem::manifest::{
    Connection, Description, DescriptionId, DescriptionKind, InetSocket, SocketState,
    WaitingConnection,
};
use std::collections::{HashMap, HashSet};
use sys::Pid;

/// Writes into connections which description the other end is, or which socket has not accepted it yet.
pub(in crate::files::socket) fn link(
    holders: &HashMap<DescriptionId, (Pid, i32)>,
    descriptions: &mut [Description],
) -> Result<(), FreezerError> {
    let mut by_pair: HashMap<Ends, DescriptionId> = HashMap::new();
    for description in descriptions.iter_mut() {
        let id = description.id;
        if let Some(state) = connected(description) {
            by_pair.insert((plain(&state.local), plain(&state.remote)), id);
        }
    }
    // The host's tables may be large.
    if !descriptions.iter().any(is_inet) {
        return Ok(());
    }
    let refuse = |id: DescriptionId, why: &str| {
        let (pid, fd) = holders.get(&id).copied().unwrap_or((Pid(0), -1));
        FreezerError::refuse(pid, format!("fd {fd}"), why)
    };
    let everyone = nettcp::Table::read();
    let mut waits: HashMap<DescriptionId, DescriptionId> = HashMap::new();
    for description in descriptions.iter_mut() {
        let listener = description.id;
        for one in accepting(description)
            .into_iter()
            .flat_map(|state| &mut state.waiting)
            .filter(|one| one.broken.is_none())
        {
            let ends = (plain(&one.remote), plain(&one.local));
            one.client = by_pair.get(&ends).copied();
            match one.client {
                Some(client) => drop(waits.insert(client, listener)),
                None if everyone.held(&ends) => {
                    let why = "a client waits to be accepted that is no part of the tree";
                    return Err(refuse(listener, why));
                }
                None => {}
            }
        }
    }
    link_requests(&everyone, &by_pair, descriptions, &mut waits);
    close(&everyone, &by_pair, descriptions)?;
    let received = received(descriptions);
    for description in descriptions {
        let id = description.id;
        let Some(state) = connected(description) else {
            continue;
        };
        let reversed = (plain(&state.remote), plain(&state.local));
        let peer = by_pair.get(&reversed).copied();
        let waits_for = waits.get(&id).copied();
        let connection = state.connection.as_ref();
        let ended = connection.is_some_and(|c| c.ended || c.closing.is_some());
        if peer.is_none() && waits_for.is_none() && (everyone.held(&reversed) || !ended) {
            let why = "the other end of its TCP connection is no part of the tree, or was not accepted yet";
            return Err(refuse(id, why));
        }
        if let Some(connection) = &mut state.connection {
            connection.peer = peer;
            connection.waits_for = waits_for;
            leave_out_received(connection, received.get(&reversed).copied())
                .map_err(|why| refuse(id, why))?;
        }
    }
    Ok(())
}

/// Notes what ends that were closed have still to send.
fn close(
    everyone: &nettcp::Table,
    by_pair: &HashMap<Ends, DescriptionId>,
    descriptions: &mut [Description],
) -> Result<(), FreezerError> {
    // Ends of their own, how far the other one has received, and where to note it.
    let mut open: Vec<(Ends, u32, &mut Option<Vec<u8>>)> = Vec::new();
    for description in descriptions {
        let Some(state) = inet_of(description) else {
            continue;
        };
        for one in state.waiting.iter_mut().filter(|one| one.broken.is_none()) {
            let ends = (plain(&one.remote), plain(&one.local));
            open.push((ends, one.next, &mut one.closing));
        }
        let ends = (plain(&state.remote), plain(&state.local));
        if let Some(one) = state.connection.as_mut().filter(|one| !one.ended) {
            open.push((ends, one.next, &mut one.closing));
        }
    }
    open.retain(|(ends, ..)| {
        !by_pair.contains_key(ends) && everyone.closed(ends, &closing::STATES)
    });
    let wanted: HashSet<Ends> = open.iter().map(|(ends, ..)| ends.clone()).collect();
    let refuse = |why: String| FreezerError::refuse(Pid(0), "TCP connection", why);
    let text = "an end of it was closed with more to send than the other one has room for";
    let mut found = closing::find(&wanted).map_err(|why| refuse(format!("{text} ({why})")))?;
    for (ends, next, place) in open {
        if let Some(unsent) = found.remove(&ends) {
            let rest = rest_of(unsent, next);
            *place =
                Some(rest.ok_or_else(|| refuse("it was sending while it was looked at".into()))?);
        }
    }
    Ok(())
}

/// What is left of what an end has to send, when the other one has received up to `next`.
fn rest_of(unsent: Unsent, next: u32) -> Option<Vec<u8>> {
    let known = usize::try_from(next.wrapping_sub(unsent.first)).ok()?;
    unsent.bytes.get(known..).map(<[u8]>::to_vec)
}

fn inet_of(description: &mut Description) -> Option<&mut InetSocket> {
    match &mut description.kind {
        DescriptionKind::Socket(socket) => match &mut socket.state {
            SocketState::Inet(state) => Some(state),
            _ => None,
        },
        _ => None,
    }
}

/// Sequence numbers behind what was received, by the receiver's ends.
fn received(descriptions: &mut [Description]) -> HashMap<Ends, u32> {
    let mut found = HashMap::new();
    for description in descriptions {
        if let Some(state) = connected(description)
            && let Some(connection) = &state.connection
        {
            found.insert((plain(&state.local), plain(&state.remote)), connection.next);
        } else if let Some(state) = accepting(description) {
            let one = |one: &WaitingConnection| ((plain(&one.local), plain(&one.remote)), one.next);
            let whole = state.waiting.iter().filter(|one| one.broken.is_none());
            found.extend(whole.map(one));
        }
    }
    found
}

/// What the other end has received is not sent again, though it has not been acknowledged.
fn leave_out_received(
    connection: &mut Connection,
    received: Option<u32>,
) -> Result<(), &'static str> {
    if connection.unsent.is_empty() {
        return Ok(());
    }
    let Some(next) = received else {
        return Err("it has sent what nobody will receive");
    };
    let known = next.wrapping_sub(connection.first) as usize;
    // An end that was received counts as a byte.
    let known = known.min(connection.unsent.len() + 1);
    if next.wrapping_sub(connection.first) >= 1 << 31 {
        return Err("it was sending while it was looked at");
    }
    connection
        .unsent
        .drain(..known.min(connection.unsent.len()));
    connection.first = next;
    Ok(())
}

/// Connections whose listening socket waits for their first data (`TCP_DEFER_ACCEPT`): for the client they are
/// made, for the other side only asked for.
fn link_requests(
    everyone: &nettcp::Table,
    by_pair: &HashMap<Ends, DescriptionId>,
    descriptions: &mut [Description],
    waits: &mut HashMap<DescriptionId, DescriptionId>,
) {
    for ((local, remote), client) in by_pair {
        let reversed = (remote.clone(), local.clone());
        if !everyone.asked_for(&reversed) {
            continue;
        }
        let of_host = |description: &mut Description| {
            let state = accepting(description)?;
            nettcp::hears(&plain(&state.local), remote).then_some(())
        };
        let listener = descriptions
            .iter_mut()
            .find_map(|one| of_host(one).map(|()| one.id));
        if let Some(listener) = listener {
            waits.insert(*client, listener);
        }
    }
}

fn accepting(description: &mut Description) -> Option<&mut InetSocket> {
    let DescriptionKind::Socket(socket) = &mut description.kind else {
        return None;
    };
    match &mut socket.state {
        SocketState::Inet(state) if state.backlog.is_some() => Some(state),
        _ => None,
    }
}

fn is_inet(description: &Description) -> bool {
    matches!(&description.kind, DescriptionKind::Socket(socket) if matches!(socket.state, SocketState::Inet(_)))
}

fn connected(description: &mut Description) -> Option<&mut InetSocket> {
    let DescriptionKind::Socket(socket) = &mut description.kind else {
        return None;
    };
    match &mut socket.state {
        SocketState::Inet(state) if state.connection.is_some() => Some(state),
        _ => None,
    }
}
