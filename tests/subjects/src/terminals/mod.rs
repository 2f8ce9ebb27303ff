//! Terminals.

mod control;
mod full;
mod packet;
mod pair;
mod pty;

use crate::registry::{Group, subject};

/// Terminals.
pub(crate) const GROUP: Group = Group {
    name: "terminals",
    subjects: &[
        subject(
            "pty",
            "pty pairs with their settings and sizes",
            pair::start,
        ),
        subject(
            "pty-numbered-high",
            "ptys with numbers above 255, one of them hung up",
            pair::numbered_high,
        ),
        subject(
            "pty-left",
            "a session's terminal that was hung up, opened by /dev/tty, too",
            pair::left,
        ),
        subject(
            "pty-input",
            "unread input and output of a pty",
            pair::queues,
        ),
        subject(
            "pty-line",
            "an unfinished line of a pty in canonical mode",
            pair::line,
        ),
        subject(
            "pty-line-ends",
            "lines of a pty with other ends than a newline, and with several",
            pair::ends,
        ),
        subject(
            "pty-end-mark",
            "a line of a pty that the end-of-file character has ended, when canonical mode is switched off",
            pair::end_mark,
        ),
        subject(
            "pty-signals",
            "F_SETOWN, F_SETSIG and O_ASYNC of both sides of a pty",
            pair::signals,
        ),
        subject(
            "pty-opened-async",
            "a pty opened with O_ASYNC",
            pair::opened_async,
        ),
        subject(
            "pty-echo",
            "echo of a pty that waits while its output is stopped",
            pair::echo,
        ),
        subject(
            "pty-literal",
            "a ^V whose character has not come yet",
            pair::literal,
        ),
        subject(
            "pty-stopped",
            "stopped and full output of a pty",
            full::stopped,
        ),
        subject(
            "pty-full-input",
            "full input of a pty, with more behind it",
            full::full_input,
        ),
        subject(
            "pty-full-lines",
            "full input of a pty in canonical mode, with more behind it",
            full::full_lines,
        ),
        subject(
            "pty-column",
            "the column that output of a pty is in, and where a line began",
            pair::column,
        ),
        subject("pty-packet", "packet mode of a pty", packet::packet),
        subject(
            "pty-packet-status",
            "status of packet mode that nobody has read",
            packet::packet_status,
        ),
        subject(
            "pty-exclusive",
            "exclusive mode and a locked pty",
            pair::exclusive,
        ),
        subject(
            "pty-locked",
            "settings of a pty that are locked (TIOCSLCKTRMIOS)",
            pair::locked,
        ),
        subject(
            "pty-unopened",
            "a pty master with echo whose slave nobody has opened",
            pair::unopened,
        ),
        subject(
            "pty-widowed",
            "a pty master whose slave is closed",
            pair::widowed,
        ),
        subject(
            "controlling",
            "the controlling terminal, /dev/tty and the foreground group",
            control::start,
        ),
        subject(
            "background",
            "a background job of a terminal",
            control::background,
        ),
    ],
};
