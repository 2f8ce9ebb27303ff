//! What the host's administrator has set of the network, the kernel and its clock, which processes see and no process holds.

use anyhow::Result;

use super::{Pause, Program, SHORT, same};
use crate::guest::Shell;

/// Sets something of every kind, on the loopback interface, which every machine has.
const SET: &str = "ip rule add fwmark 7 lookup 77 priority 777 && ip -6 rule add to 2001:db8::/32 lookup 77 && \
    ip link set lo txqueuelen 777 alias looped group 5 && ip link property add dev lo altname looo && \
    ip rule del lookup default && ip route add 192.0.2.0/24 dev lo table 77 && \
    (cd /proc/sys/net/ipv4 && echo 4711 > tcp_keepalive_time && echo 2 > conf/lo/rp_filter && \
    echo 1 > conf/all/log_martians && echo 7 > neigh/lo/mcast_solicit && echo 123 > icmp_msgs_per_sec) && \
    (cd /proc/sys && echo 77 > kernel/printk_ratelimit_burst && echo 10 > vm/stat_interval && \
    echo $(($(cat vm/min_free_kbytes) + 512)) > vm/min_free_kbytes && echo 9 > net/ipv6/conf/lo/hop_limit) && \
    (cd /proc/sys/user && echo 0 > max_pid_namespaces && echo 0 > max_time_namespaces) && \
    (cd /proc/sys/fs/binfmt_misc && mount -t binfmt_misc binfmt_misc . && cd . && \
    echo ':one:E::kupgrade::/bin/cat:' > register && \
    echo ':two:M:2:\\xaa\\x00:\\xff\\x0f:/bin/true:P' > register && echo 0 > two)";

/// Sets what a daemon of NTP sets (adjtimex(2)): a `struct timex` is 26 words.
const SET_CLOCK: &str =
    "python3 -c 'import ctypes; b = (ctypes.c_long * 26)(); ask = ctypes.CDLL(None).adjtimex
b[0], b[2], b[3], b[4], b[5], b[6], b[11] = 0x603e, 786432, 1234, 777, 1, 7, 10001
assert ask(b) >= 0
b[0], b[6] = 0x80, 37
assert ask(b) >= 0'";

/// Tells frequency, estimated error, status, time constant, tick and offset of CLOCK_TAI.
const TELL_CLOCK: &str = "python3 -c 'import ctypes; b = (ctypes.c_long * 26)()
assert ctypes.CDLL(None).adjtimex(b) >= 0
print(b[2], b[4], b[5], b[6], b[11], b[20])'";

/// Tells all of it. Times and states that change by themselves are left out.
const TELL: &str = "ip link show lo | sed 's, qdisc [^ ]*,,'; ip -o address | sed 's,scope.*,,'; \
    ip rule; ip -6 rule; ip route show table 77; \
    (cd /proc/sys/net/ipv4 && \
    cat tcp_keepalive_time conf/lo/rp_filter conf/all/log_martians tcp_mem neigh/lo/mcast_solicit icmp_msgs_per_sec); \
    (cd /proc/sys && \
    cat kernel/printk_ratelimit_burst vm/stat_interval vm/min_free_kbytes net/ipv6/conf/lo/hop_limit); \
    cat /proc/sys/user/max_*_namespaces; (cd /proc/sys/fs/binfmt_misc && cat status one two)";

/// Addresses, rules, routes, settings and interpreters of programs.
#[derive(Default)]
pub(crate) struct Settings {
    told: String,
}

impl Program for Settings {
    fn name(&self) -> String {
        "the host's settings".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        shell.must(SET_CLOCK, SHORT)?;
        shell.must(SET, SHORT).map(drop)
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.told = tell(shell)?;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        same("it", &self.told, &tell(shell)?)?;
        Ok(format!("{} lines, as before", self.told.lines().count()))
    }
}

fn tell(shell: &mut Shell) -> Result<String> {
    Ok(shell.must(TELL, SHORT)? + &shell.must(TELL_CLOCK, SHORT)?)
}
