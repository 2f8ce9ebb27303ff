//! Network interfaces that descriptors of `/dev/net/tun` are open on.

use serde::{Deserialize, Serialize};

/// An interface whose packets a process reads and writes. It goes with its last descriptor, unless it is
/// persistent.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tunnel {
    /// Its name, by which [`super::DescriptionKind::Tunnel`] names it.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// `IFF_*` of if_tun.h that it was made with.
    pub flags: u32,
    /// `TUNSETPERSIST`.
    pub persistent: bool,
    /// `TUNSETOWNER`.
    pub owner: Option<u32>,
    /// `TUNSETGROUP`.
    pub group: Option<u32>,
    /// `TUNSETSNDBUF`.
    pub send_buffer: i32,
    /// `TUNSETVNETHDRSZ`.
    pub header_size: i32,
    /// `TUNSETVNETLE`.
    pub little_endian: bool,
    /// `TUNSETVNETBE`.
    pub big_endian: bool,
    /// `TUNSETOFFLOAD`: `TUN_F_*`.
    pub offloads: u32,
    /// Hardware type (`ARPHRD_*`).
    pub link_type: u16,
    /// Hardware address, empty where the type has none.
    #[serde(with = "serde_bytes")]
    pub hardware: Vec<u8>,
    /// MTU.
    pub mtu: u32,
    /// Length of the queue (`IFLA_TXQLEN`).
    pub queue_len: u32,
    /// `IFF_*` of if.h that users set (netdevice(7)): up, promiscuous and so on.
    pub state: u32,
    /// Settings below `/proc/sys/net` that are its own: path and value, in the order to set them.
    pub settings: Vec<(String, String)>,
    /// Its addresses, as the kernel dumps them (rtnetlink(7)).
    pub addresses: Vec<Vec<u8>>,
    /// Routes through it that the kernel does not make by itself.
    pub routes: Vec<Vec<u8>>,
}
