"""Paramiko through the jumpbox: commands, files, connections, and several at once.

paramiko_walk.py SSH-PORT PASSWORD ECHO-PORT, where ECHO-PORT listens in the instance.
"""

import hashlib
import os
import sys
import threading

import paramiko

PORT, PASSWORD, ECHO = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
USER = "alice+one"


def connect(password):
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect("127.0.0.1", PORT, USER, password, allow_agent=False, look_for_keys=False, timeout=30)
    return client


def run(client, line, given=b""):
    stdin, stdout, stderr = client.exec_command(line, timeout=60)
    stdin.write(given)
    stdin.channel.shutdown_write()
    written, complained = stdout.read(), stderr.read()
    return stdout.channel.recv_exit_status(), written, complained


def commands(client):
    assert run(client, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert run(client, "wc -c", b"x" * 500_000) == (0, b"500000\n", b"")
    big = run(client, "head -c 5000000 /dev/zero")
    assert (big[0], len(big[1])) == (0, 5_000_000)


def files(client):
    sftp = client.open_sftp()
    sftp.mkdir("/tmp/walk")
    with open("given", "wb") as file:
        file.write(os.urandom(20 << 20))
    said = sftp.put("given", "/tmp/walk/big")
    assert said.st_size == 20 << 20, said
    sftp.get("/tmp/walk/big", "fetched")
    with open("given", "rb") as given, open("fetched", "rb") as fetched:
        whole = given.read()
        assert fetched.read() == whole
    digest = hashlib.sha256(whole).hexdigest().encode()
    assert run(client, "sha256sum </tmp/walk/big")[1].split()[0] == digest
    with sftp.open("/tmp/walk/big", "rb") as file:
        file.prefetch()
        assert hashlib.sha256(file.read()).hexdigest().encode() == digest
        file.seek(5 << 20)
        assert file.read(1000) == whole[5 << 20:][:1000]
        assert [bytes(part) for part in file.readv([(1, 10), (9 << 20, 10)])] == [whole[1:11], whole[9 << 20:][:10]]
    with sftp.open("/tmp/walk/名字", "w") as file:
        file.write("one\n")
    with sftp.open("/tmp/walk/名字", "a") as file:
        file.write("two\n")
    assert run(client, "cat /tmp/walk/名字") == (0, b"one\ntwo\n", b"")
    sftp.symlink("名字", "/tmp/walk/link")
    assert sftp.readlink("/tmp/walk/link") == "名字"
    sftp.chmod("/tmp/walk/big", 0o600)
    sftp.utime("/tmp/walk/big", (1_000_000, 2_000_000))
    told = sftp.stat("/tmp/walk/big")
    assert (told.st_mode & 0o777, told.st_mtime) == (0o600, 2_000_000), told
    sftp.truncate("/tmp/walk/big", 10)
    sftp.posix_rename("/tmp/walk/big", "/tmp/walk/small")
    names = sorted((one.filename, one.st_size) for one in sftp.listdir_attr("/tmp/walk") if one.filename != "link")
    assert names == [("small", 10), ("名字", 8)], names
    assert sorted(sftp.listdir("/tmp/walk")) == ["link", "small", "名字"]
    for missing in (lambda: sftp.stat("/tmp/none"), lambda: sftp.open("/tmp/none"), lambda: sftp.rmdir("/tmp/none")):
        try:
            missing()
            raise SystemExit("what is missing was found")
        except FileNotFoundError:
            pass
    many = 300
    run(client, f"mkdir /tmp/walk/many && cd /tmp/walk/many && seq {many} | xargs touch")
    assert len(sftp.listdir("/tmp/walk/many")) == many
    sftp.close()


def connections(client):
    transport = client.get_transport()

    def echoed(letter, count):
        channel = transport.open_channel("direct-tcpip", ("127.0.0.1", ECHO), ("127.0.0.1", 1), timeout=30)
        channel.settimeout(60)
        sender = threading.Thread(target=lambda: (channel.sendall(letter * count), channel.shutdown_write()))
        sender.start()
        got = b""
        while part := channel.recv(65_536):
            got += part
        sender.join()
        channel.close()
        assert got == letter * count, (letter, len(got))

    echoed(b"a", 3_000_000)
    wrong = []

    def one(at):
        try:
            if at % 3 == 0:
                echoed(bytes([65 + at]), 200_000)
            elif at % 3 == 1:
                assert run(client, f"sleep 1; echo {at}; exit {at}") == (at, f"{at}\n".encode(), b"")
            else:
                sftp = client.open_sftp()
                with sftp.open(f"/tmp/several-{at}", "wb") as file:
                    file.write(bytes([at]) * 1_000_000)
                assert sftp.stat(f"/tmp/several-{at}").st_size == 1_000_000
                sftp.close()
        except BaseException as error:  # told by the thread that waits
            wrong.append((at, repr(error)))

    threads = [threading.Thread(target=one, args=(at,)) for at in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a channel hangs"
    assert not wrong, wrong
    try:
        transport.open_channel("direct-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 1), timeout=30)
        raise SystemExit("nobody listens at port 1")
    except paramiko.ChannelException as refused:
        assert refused.code == 2, refused


def wrong_password():
    try:
        connect("wrong")
        raise SystemExit("a wrong password lets in")
    except paramiko.AuthenticationException:
        pass


def main():
    client = connect(PASSWORD)
    commands(client)
    files(client)
    connections(client)
    wrong_password()
    assert run(client, "echo still")[1] == b"still\n"
    client.close()
    print("walked")


main()
