"""Clients that mean harm, from an address of their own.

paramiko_hostile.py WHAT SSH-PORT PASSWORD
"""

import os
import socket
import statistics
import sys
import threading
import time

import paramiko
from paramiko.common import cMSG_CHANNEL_OPEN

WHAT, PORT, PASSWORD = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# Another address than that of everybody else in the test; all of 127.0.0.0/8 is this machine.
SOURCE = "127.0.0.2"


def dial():
    return socket.create_connection(("127.0.0.1", PORT), 30, (SOURCE, 0))


def transport():
    begun = paramiko.Transport(dial())
    begun.banner_timeout = begun.auth_timeout = 60
    begun.start_client(timeout=60)
    return begun


def logged_in(name):
    begun = transport()
    begun.auth_password(name, PASSWORD, fallback=False)
    return begun


def channels():
    """Opens many more channels than there may be, first one by one, then without waiting."""
    bob = logged_in("bob")
    kept, refused = [], 0
    for _ in range(1_000):
        try:
            kept.append(bob.open_session(timeout=30))
        except paramiko.ChannelException as error:
            assert error.code == 4, error
            refused += 1
    assert (len(kept), refused) == (64, 936), (len(kept), refused)
    for number in range(9_000):
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string("session")
        message.add_int(1_000_000 + number)
        message.add_int(2 << 20)
        message.add_int(32_768)
        bob._send_user_message(message)
    for channel in kept:
        channel.close()
    # Those places are free again, on the same connection.
    end = time.monotonic() + 60
    while True:
        try:
            channel = bob.open_session(timeout=30)
            break
        except paramiko.ChannelException:
            assert time.monotonic() < end, "no place is free again"
            time.sleep(0.1)
    channel.exec_command("nothing")
    assert channel.recv_exit_status() == 255
    bob.close()


def guesses():
    """Asks for instances of others by name: the answer is that of names which do not exist."""
    bob = logged_in("bob")
    answers = set()
    for name in ["one", "alice/one", "none", "alice/none"] + [f"train-{i}" for i in range(200)]:
        try:
            bob.open_channel("direct-tcpip", (name, 22), (SOURCE, 1), timeout=30)
            raise SystemExit(f"{name} is open to bob")
        except paramiko.ChannelException as error:
            answers.add((error.code, error.text))
    assert len(answers) == 1, answers
    bob.close()


def tries(name, count, into):
    """Tries wrong passwords for one name, one on each connection: paramiko asks for the service anew
    at each try, and the server answers that once."""
    for _ in range(count):
        begun = transport()
        began = time.monotonic()
        try:
            begun.auth_password(name, "wrong", fallback=False)
            answer = "let in"
        except paramiko.BadAuthenticationType as error:
            answer = f"other ways: {sorted(error.allowed_types)}"
        except paramiko.AuthenticationException as error:
            answer = f"{type(error).__name__}: {error}"
        into.append((answer, time.monotonic() - began))
        begun.close()


def passwords():
    """Fifty wrong passwords of somebody and fifty of nobody at once, then the right one."""
    told = {"alice": [], "ghost": []}
    threads = [threading.Thread(target=tries, args=(name, 10, told[name])) for name in list(told) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = {name: {answer for answer, _ in all_of} for name, all_of in told.items()}
    assert all(len(all_of) == 50 for all_of in told.values()), told
    assert answers["alice"] == answers["ghost"] and len(answers["alice"]) == 1, answers
    times = {name: statistics.median(took for _, took in all_of) for name, all_of in told.items()}
    assert abs(times["alice"] - times["ghost"]) < 0.15, times
    began = time.monotonic()
    refused = 0
    while True:
        try:
            logged_in("alice").close()
            break
        except paramiko.AuthenticationException:
            refused += 1
            assert time.monotonic() - began < 65, "the right password does not let in"
            time.sleep(0.5)
    assert refused, "the right password was not delayed"
    print(f"let in after {time.monotonic() - began:.1f} s, tries took {times}", file=sys.stderr)


def garbage():
    """Speaks anything but SSH on many connections, and says nothing on as many as there may be."""
    version = b"SSH-2.0-x\r\n"
    for nonsense in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 5_000,
        b"x" * 300_000,
        b"\r\n" * 100_000,
        b"SSH-1.0-old\r\n",
        b"SSH-2.0-" + b"y" * 100_000 + b"\r\n",
        version + b"\xff\xff\xff\xff" + b"z" * 100_000,
        version + b"\0\0\0\0" * 10_000,
        version + b"\0\0\0\x0c\x0a\x14" + b"\0" * 10,
        version + os.urandom(200_000),
    ):
        for _ in range(3):
            one = dial()
            one.settimeout(5)
            try:
                one.sendall(nonsense)
                one.shutdown(socket.SHUT_WR)
                while one.recv(65_536):
                    pass
            except OSError:
                pass
            one.close()
    silent = []
    for _ in range(200):
        try:
            silent.append(dial())
        except OSError:
            pass
    print("silent", flush=True)
    # The test looks at how others fare meanwhile, and says when it has.
    sys.stdin.read()


{"channels": channels, "guesses": guesses, "passwords": passwords, "garbage": garbage}[WHAT]()
