"""A client that starts its server with a socket (sd_listen_fds(3)), as libnbd does, from a thread that ends at once.

passes_socket.py SOCKET COMMAND...: connects, waits for the greeting, and stays.
"""

import os
import signal
import socket
import sys
import threading

listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()


def start():
    if os.fork() == 0:
        os.dup2(listener.fileno(), 3)
        # It may have been 3 before.
        os.set_inheritable(3, True)
        own = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        if os.environ.get("AS_SYSTEMD"):
            own["SYSTEMD_EXEC_PID"] = own["LISTEN_PID"]
        os.execve(sys.argv[2], sys.argv[2:], {**os.environ, **own})


thread = threading.Thread(target=start)
thread.start()
thread.join()
# Without a server, nobody listens.
listener.close()
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect(sys.argv[1])
assert client.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
signal.pause()
