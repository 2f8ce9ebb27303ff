# Who has not asked for certain processors follows a control group (of version 1) that gets more of them.
mounts = [line.split() for line in open("/proc/mounts")]
roots = [at for _, at, kind, options, *_ in mounts if kind == "cgroup" and "cpuset" in options.split(",")]
everywhere = os.sched_getaffinity(0)
check = lambda: None
if roots and everywhere > {0}:
    group = f"{roots[0]}/kupgrade-processors-{os.getpid()}"
    os.mkdir(group)
    def put(name, text):
        open(f"{group}/{name}", "w").write(text)
    put("cpuset.mems", open(f"{roots[0]}/cpuset.mems").read())
    put("cpuset.cpus", "0")
    put("tasks", str(os.getpid()))
    assert os.sched_getaffinity(0) == {0}
    def check():
        put("cpuset.cpus", open(f"{roots[0]}/cpuset.cpus").read())
        found = os.sched_getaffinity(0)
        open(f"{roots[0]}/tasks", "w").write(str(os.getpid()))
        os.rmdir(group)
        assert found == everywhere, found
