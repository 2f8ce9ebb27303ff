"""A compile under make -j: it begins before the upgrade and ends after it."""
import os
import shutil
import subprocess
import time

import kit

UNITS = 40
FUNCTIONS = 12
SEED = 12345


def unit(n):
    """A source with enough in it that the compiler is at work for a while."""
    functions = "\n".join(
        f"static unsigned f{k}(unsigned x) {{ unsigned a[16]; for (unsigned i = 0; i < 16; i++) a[i] = x * {n * 37 + k} + i; "
        f"for (unsigned i = 1; i < 16; i++) a[i] ^= a[i - 1] << {k % 7 + 1} | a[i - 1] >> {n % 11 + 3}; return a[15] + {k}; }}" for k in range(FUNCTIONS))
    calls = " ".join(f"x = f{k}(x);" for k in range(FUNCTIONS))
    return f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{functions}\nunsigned unit{n}(unsigned x) {{ {calls} return x; }}\n"


def expected():
    """What the program prints, reckoned here."""
    x, mask = SEED, 0xffffffff
    for n in range(UNITS):
        for k in range(FUNCTIONS):
            last = None
            for i in range(16):
                value = (x * (n * 37 + k) + i) & mask
                last = value if last is None else value ^ ((last << (k % 7 + 1)) & mask | last >> (n % 11 + 3))
            x = (last + k) & mask
    return str(x)


def write_project(where):
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    for n in range(UNITS):
        with open(f"{where}/unit{n}.c", "w") as out:
            out.write(unit(n))
    with open(f"{where}/main.c", "w") as out:
        out.write("#include <stdio.h>\n" + "".join(f"unsigned unit{n}(unsigned);\n" for n in range(UNITS))
                  + f"int main(void) {{ unsigned x = {SEED}u; " + "".join(f"x = unit{n}(x); " for n in range(UNITS)) + 'printf("%u\\n", x); return 0; }\n')
    objects = " ".join(f"unit{n}.o" for n in range(UNITS))
    with open(f"{where}/Makefile", "w") as out:
        out.write(f"all: sub\n\t./program > result\n\nsub:\n\t+$(MAKE) program\n\nprogram: main.o {objects}\n\tgcc -o $@ $^\n\n"
                  "%.o: %.c\n\tgcc -O2 -Wall -pipe -c -o $@ $<\n\techo $@ >> done\n")


def start():
    """The compile itself begins with the note."""
    kit.save("builder", kit.client("builder"))
    kit.client("witness")


def builder():
    while True:
        if os.path.exists("begin"):
            os.remove("begin")
            with open("make.log", "w") as log:
                status = subprocess.call(["make", "-C", "project", "-j3"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            kit.save("status", status)
        time.sleep(0.1)


def note():
    write_project("project")
    kit.forget()
    if os.path.exists("status"):
        os.remove("status")
    open("begin", "w").close()
    builder = kit.load("builder")
    kit.until("files are compiled", lambda: os.path.exists("project/done") and len(kit.read("project/done").splitlines()) >= 2, 200)
    kit.until("compilers are at work", lambda: len([m for m in kit.family(builder) if m["name"] == "cc1"]) >= 2)
    makes = [m for m in kit.family(builder) if m["name"] in ("python3", "make")]
    kit.same("the number of makes", 2, len([m for m in makes if m["name"] == "make"]))
    kit.save("note", {"family": makes, "done": len(kit.read("project/done").splitlines()), "when": time.time()})


def verify(blackout):
    note = kit.load("note")
    if not os.path.exists("status"):
        kit.same_family(note["family"])
    kit.until("make ends", lambda: os.path.exists("status"), 900)
    kit.lasted("the compile", note["when"], os.path.getmtime("status"))
    kit.same("the status of make", 0, kit.load("status"))
    done = kit.read("project/done").split()
    kit.same("what was compiled", sorted(["main.o"] + [f"unit{n}.o" for n in range(UNITS)]), sorted(done))
    kit.same("the result", expected(), kit.read("project/result").strip())
    kit.clean("make.log")
    print(f"{note['done']} of {UNITS + 1} files were compiled before, the rest afterwards, and the program is right")


kit.main(start=start, note=note, verify=verify, builder=builder, witness=kit.witness)
