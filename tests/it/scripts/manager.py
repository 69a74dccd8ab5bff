"""A service manager as small as can be: the descriptor store of systemd (sd_notify(3), FDSTORE=1), and restarts.

manager.py LOG COMMAND...: starts COMMAND, writes to LOG what happens, and starts it again after exit status 0 if it has
stored descriptors, or after a signal. An order on standard input: a line is a signal's number for the process.
"""

import array
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile

log = open(sys.argv[1], "w", buffering=1)
command = sys.argv[2:]
address = os.path.join(tempfile.mkdtemp(), "notify")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(address)
store = {}
ready = False


def receive():
    """One message, as systemd takes it (src/core/service.c, service_notify_message)."""
    global ready
    data, ancillary, _, _ = notify.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content)
    fields = dict(line.split("=", 1) for line in data.decode().splitlines())
    name = fields.get("FDNAME", "stored")
    if fields.get("FDSTOREREMOVE") == "1":
        for descriptor in store.pop(name, []):
            os.close(descriptor)
    elif fields.get("FDSTORE") == "1":
        assert fields.get("FDPOLL") == "0", fields
        store.setdefault(name, []).extend(descriptors)
    elif descriptors:
        raise SystemExit(f"descriptors without FDSTORE: {fields}")
    if fields.get("READY") == "1":
        log.write("ready " + " ".join(sorted(store)) + "\n")
    if fields.get("STOPPING") == "1":
        log.write("stopping\n")


def drain():
    while select.select([notify], [], [], 0)[0]:
        receive()


def start():
    stored = [(name, descriptor) for name in store for descriptor in store[name]]
    log.write("start " + " ".join(name for name, _ in stored) + "\n")
    # Copies above all others first, so that 3 and so on are free to be overwritten.
    high = [os.dup2(descriptor, 500 + number) for number, (_, descriptor) in enumerate(stored)]
    names = ":".join(name for name, _ in stored)
    listen = f"export LISTEN_PID=$$ LISTEN_FDS={len(stored)} LISTEN_FDNAMES={names}; " if stored else ""
    redirections = " ".join(f"{3 + number}<&{descriptor}" for number, descriptor in enumerate(high))
    closing = " ".join(f"{descriptor}<&-" for descriptor in high)
    script = f'{listen}exec "$@" {redirections} {closing}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=high,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NOTIFY_SOCKET": address},
    )
    for descriptor in high:
        os.close(descriptor)
    log.write(f"pid {process.pid}\n")
    return process


signal.signal(signal.SIGCHLD, lambda *_: None)
wake, waker = os.pipe()
os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)
process = start()
while True:
    readable = select.select([notify, wake, sys.stdin], [], [])[0]
    drain()
    if sys.stdin in readable:
        order = sys.stdin.readline()
        if not order:
            process.kill()
            break
        process.send_signal(int(order))
    if wake in readable:
        os.read(wake, 64)
    status = process.poll()
    if status is None:
        continue
    drain()
    log.write(f"exit {status} {' '.join(sorted(store))}\n")
    if (status == 0 and not store) or status > 0:
        break
    process = start()
log.write("end\n")
