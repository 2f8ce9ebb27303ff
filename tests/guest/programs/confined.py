#!/usr/bin/env python3
"""Threads and a child in profiles of AppArmor, which look at them whenever they are asked.

confined.py PREFIX: writes PREFIX.ready, and for every PREFIX.ask-N that appears what is wrong to PREFIX.told-N.
The first thread is in `shop`, one in `inn`, one in none; the child, of another user, is in `inn`.
"""

import os
import sys
import threading
import time

FORBIDDEN = "/var/lab/forbidden"


def label_now():
    with open("/proc/thread-self/attr/current") as file:
        return file.read().strip("\0\n")


def enter(profile):
    with open("/proc/thread-self/attr/current", "wb", buffering=0) as file:
        file.write(b"changeprofile " + profile.encode())


def denied():
    try:
        open(FORBIDDEN, "w").close()
    except PermissionError:
        return True
    return False


def wrong(who, label, is_denied):
    found = []
    if (now := label_now()) != label:
        found.append(f"{who}: {now} for {label}")
    if denied() != is_denied:
        found.append(f"{who}: what is forbidden is {'allowed' if is_denied else 'denied'}")
    return found


def child(asked, told):
    os.setgroups([])
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)
    enter("inn")
    while os.read(asked, 1):
        found = wrong("the child", "inn (enforce)", True)
        os.write(told, ("\n".join(found) or "right").encode())
    os._exit(0)


class Guest(threading.Thread):
    """A thread in a profile, or in none."""

    def __init__(self, name, profile):
        super().__init__(name=name, daemon=True)
        self.profile = profile
        self.asked, self.told = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self.ask()

    def run(self):
        label, is_denied = "unconfined", False
        if self.profile:
            enter(self.profile)
            label, is_denied = self.profile + " (enforce)", True
        while True:
            self.asked.acquire()
            self.found = wrong(self.name, label, is_denied)
            self.told.release()

    def ask(self):
        self.asked.release()
        self.told.acquire()
        return self.found


def main(prefix):
    asked, ask = os.pipe()
    hear, told = os.pipe()
    if os.fork() == 0:
        os.close(ask)
        child(asked, told)
    guests = [Guest("a thread in inn", "inn"), Guest("a thread in no profile", None)]
    enter("shop")
    look = 0
    open(prefix + ".ready", "w").close()
    while True:
        while not os.path.exists(f"{prefix}.ask-{look}"):
            time.sleep(0.05)
        found = wrong("the first thread", "shop (enforce)", True)
        for guest in guests:
            found += guest.ask()
        os.write(ask, b"x")
        if (said := os.read(hear, 10000).decode()) != "right":
            found.append(said)
        with open(f"{prefix}.new", "w") as file:
            file.write("\n".join(found) or "right")
        os.rename(f"{prefix}.new", f"{prefix}.told-{look}")
        look += 1


main(sys.argv[1])
