# Runs a subject: builds its state, says "ready", waits for SIGUSR1, checks its state, says "good".
import os, signal, socket, struct, sys, time

os.closerange(3, 9999)
exec(open(sys.argv[1]).read())
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
check()
print("good", flush=True)
