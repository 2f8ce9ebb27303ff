#!/usr/bin/env python3
"""Makes or removes the table "guard" of nftables: nft_table.py add|delete (linux/netfilter/nfnetlink.h)."""

import os
import socket
import struct
import sys

NEW_TABLE, DELETE_TABLE = 10 << 8, 10 << 8 | 2
BEGIN, END = 0x10, 0x11
REQUEST, ACK, CREATE = 1, 4, 0x400
NETLINK_NETFILTER = 12


def message(kind, flags, family, resource, attributes=b""):
    payload = struct.pack(">BBH", family, 0, resource) + attributes
    return struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | flags, 1, 0) + payload


def main():
    kind, flags = {"add": (NEW_TABLE, CREATE), "delete": (DELETE_TABLE, 0)}[sys.argv[1]]
    name = struct.pack("=HH6s2x", 10, 1, b"guard")
    batch = message(BEGIN, 0, 0, 10) + message(kind, flags | ACK, 2, 0, name) + message(END, 0, 0, 10)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(10)
        kernel.send(batch)
        code = struct.unpack_from("=i", kernel.recv(4096), 16)[0]
    if code:
        sys.exit(os.strerror(-code))


main()
