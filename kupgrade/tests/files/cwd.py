# A current directory that has been removed, shared with a child.
here = os.getcwd() + "/left"
os.mkdir(here)
os.chdir(here)
os.rmdir(here)
child = os.fork()
while child == 0:
    time.sleep(100)

def check():
    assert os.readlink("/proc/self/cwd") == here + " (deleted)"
    assert os.stat(".").st_nlink == 0
    assert os.stat("/proc/%d/cwd" % child).st_ino == os.stat(".").st_ino
    os.kill(child, 9)
