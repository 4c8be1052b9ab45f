#!/usr/bin/env python3
"""pkv-run serve as a program: many clients of whom a third leave at random, memory halved and restored,
bad requests, slow clients, keys, and a cache that is whole and empty at the end.

    test_serve.py PKV-RUN [--seconds N] [--clients N] [--fuzz N] [--memory BYTES] [--threads N]

Needs a model: the file that PKV_RUN_MODEL names. Without one it is skipped (exit status 77).
"""
import argparse
import atexit
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

MODEL = os.environ.get("PKV_RUN_MODEL", "")
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))
KEY = "admin"
COMMON = "You are a patient librarian who answers every question in one short sentence. " * 6
FIXED = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
EXPECTED_STATUS = {200, 400, 401, 404, 405, 408, 413, 429}


class Server:
    def __init__(self, program, memory, threads, *more):
        self.process = subprocess.Popen(
            [program, "serve", "--model", MODEL, "--port", "0", "--memory", str(memory), "--threads",
             str(threads), "--admin-key", KEY, *more], stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)  # where a test fails
        line = self.process.stdout.readline()
        assert line.startswith("listening on"), f"no server: {line!r}"
        self.port = int(line.rsplit(":", 1)[1])

    def request(self, method, path, body=None, key=None, timeout=600):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, data, {"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        text, retry = response.read(), response.getheader("Retry-After")
        connection.close()
        return response.status, text, retry

    def complete(self, body, key=None):
        status, text, _ = self.request("POST", "/v1/completions", body, key)
        return status, json.loads(text)

    def resident(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        output = self.process.stdout.read()
        status = self.process.wait(120)
        assert status == 0 and "whole and empty" in output, f"status {status}: {output}"


class Load:
    """Clients that ask, stream and leave."""

    def __init__(self, server, clients):
        self.server, self.stopping = server, False
        self.counts = {"finished": 0, "left": 0, "refused": 0, "same": 0}
        self.wrong, self.lock = [], threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def note(self, what):
        with self.lock:
            self.counts[what] += 1

    def client(self, number):
        random_ = random.Random(SEED + number)
        while not self.stopping:
            try:
                if random_.random() < 0.1:
                    self.ask_fixed()
                else:
                    self.stream(random_)
            except Exception as trouble:  # the test's verdict, not its end
                self.wrong.append(f"client {number}: {trouble!r}")

    def ask_fixed(self):
        status, answer = self.server.complete(FIXED)
        if status == 429:
            self.note("refused")
            return time.sleep(0.2)
        text = answer["choices"][0]["text"] if status == 200 else answer
        if text != EXPECTED["text"]:
            self.wrong.append(f"greedy text differs: {text!r}")
        self.note("same")

    def stream(self, random_):
        leaves = random_.randrange(1, 6) if random_.random() < 1 / 3 else None
        words = " ".join(random_.choice(["why", "is", "the", "sea", "blue", "old", "and", "what", "moves"])
                         for _ in range(random_.randrange(1, 60)))
        body = {"prompt": (COMMON if random_.random() < 0.6 else "") + words, "stream": True,
                "max_tokens": random_.randrange(2, 24), "temperature": random_.choice([0, 0.8]),
                "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body))
        if leaves == 1:  # before anything came
            time.sleep(random_.random() * 0.3)
            connection.close()
            return self.note("left")
        response = connection.getresponse()
        if response.status == 429:
            assert response.getheader("Retry-After"), "429 without Retry-After"
            connection.close()
            self.note("refused")
            return time.sleep(0.2)
        assert response.status == 200, f"{response.status}: {response.read()[:200]}"
        events, last = 0, b""
        for line in response:
            if not line.startswith(b"data: "):
                continue
            last = line[6:].strip()
            if last != b"[DONE]":
                assert "error" not in json.loads(last.decode("utf-8")), last
            events += 1
            if events == leaves:
                connection.close()
                return self.note("left")
        assert last == b"[DONE]", f"the stream ended with {last!r}"
        connection.close()
        self.note("finished")

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


EXPECTED = {}


def quantile(metrics, name, q):
    """Upper bound of a quantile of one of the server's histograms."""
    buckets = [(line.split('"')[1], float(line.rsplit(" ", 1)[1])) for line in metrics.splitlines()
               if line.startswith(f"pkv_run_{name}_bucket")]
    total = buckets[-1][1]
    return next(bound for bound, count in buckets if count >= q * total), int(total)


def test_load(server, options):
    slow = []
    for _ in range(5):  # they begin a request and never go on
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        slow.append(client)
    load, memory = Load(server, options.clients), options.memory
    begin, warm = time.monotonic(), None
    for step in range(5):
        until = begin + options.seconds * (step + 1) / 5
        time.sleep(max(0, until - time.monotonic()))
        if step < 4:
            size = memory // 2 if step % 2 == 0 else memory
            status, text, _ = server.request("POST", "/admin/memory", {"bytes": size}, KEY)
            assert status == 200, text
            status, text, _ = server.request("POST", "/admin/verify", "", KEY)
            assert status == 200, text
        if step == 1:
            warm = server.resident()
    patience = time.monotonic() + 300  # a busy machine may not have come to everything yet
    while not all(load.counts[what] for what in ("finished", "left", "same")) and time.monotonic() < patience:
        time.sleep(1)
    load.stop()
    end = server.resident()
    for client in slow:
        client.close()
    _, metrics, _ = server.request("GET", "/metrics")
    p99, n = quantile(metrics.decode(), "between_tokens_seconds", 0.99)
    print(f"{options.clients} clients, {time.monotonic() - begin:.0f} s: {load.counts}, p99 between tokens <= "
          f"{p99} s ({n}), resident {warm >> 20} -> {end >> 20} MiB", flush=True)
    assert not load.wrong, load.wrong[:5]
    assert load.counts["finished"] and load.counts["left"] and load.counts["same"]
    assert end < 1.25 * warm + (32 << 20), "resident size grew"


def mutated(random_, text):
    data = bytearray(text)
    for _ in range(random_.randrange(1, 5)):
        at = random_.randrange(len(data) + 1)
        kind = random_.randrange(4)
        if kind == 0:
            data[at:at + random_.randrange(4)] = b""
        elif kind == 1:
            data[at:at] = bytes(random_.randrange(256) for _ in range(random_.randrange(1, 5)))
        elif kind == 2:
            data[at:at] = random_.choice([b"null", b"1e999", b"-1", b'"', b"[", b"{}", b"\\ud800", b"99999999999"])
        elif data:
            data[at % len(data)] ^= 1 << random_.randrange(8)
    return bytes(data)


def test_fuzz(server, n):
    random_ = random.Random(SEED)
    seeds = [(path, json.dumps(body).encode()) for path, body in [
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "temperature": 0.5, "stop": ["x", "\n"]}),
        ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 1, "top_p": 0.5, "seed": 7, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "b"}], "max_tokens": 1})]]
    statuses, connection = {}, None
    for _ in range(n):
        path, body = random_.choice(seeds)
        body = mutated(random_, body)
        if random_.random() < 0.02:
            path = random_.choice(["/", "/nothing", "/admin/memory", "/v1/models", "/%00", "/v1/completions?x=1"])
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request(random_.choices(["POST", "GET", "PUT"], [50, 1, 1])[0], path, body)
        response = connection.getresponse()
        response.read()
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status in EXPECTED_STATUS, f"{response.status} for {body!r}"
        if response.will_close:
            connection = connection.close()
    print(f"{n} mutated requests: {dict(sorted(statuses.items()))}", flush=True)
    for _ in range(max(1, n // 100)):  # not even HTTP
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(bytes(random_.randrange(256) for _ in range(random_.randrange(1, 200))) + b"\r\n\r\n")
            raw.shutdown(socket.SHUT_WR)
            try:
                while raw.recv(4096):
                    pass
            except ConnectionResetError:
                pass


def test_answers(server):
    status, answer = server.complete(FIXED)
    assert status == 200, answer
    EXPECTED["text"] = answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 12
    for body, path, want in [
            (b"{", "/v1/completions", 400), (b"[]", "/v1/completions", 400), (b"", "/v1/completions", 400),
            (b'{"prompt":"\xff"}', "/v1/completions", 400), ({"prompt": ""}, "/v1/completions", 400),
            ({"prompt": [-1]}, "/v1/completions", 400), ({"prompt": [10**9]}, "/v1/completions", 400),
            ({"prompt": "a", "max_tokens": 0}, "/v1/completions", 400),
            ({"prompt": "a", "max_tokens": 10**6}, "/v1/completions", 400),
            ({"prompt": "a " * 20000}, "/v1/completions", 400),
            ({"prompt": "a", "temperature": "hot"}, "/v1/completions", 400),
            ({"prompt": "a", "n": 2}, "/v1/completions", 400),
            ({"messages": []}, "/v1/chat/completions", 400),
            ({"messages": [{"role": "user"}]}, "/v1/chat/completions", 400),
            ({"prompt": "a" * (2 << 20)}, "/v1/completions", 413),
            ({"bytes": 1 << 30}, "/admin/memory", 401)]:
        status, text, _ = server.request("POST", path, body)
        assert status == want and json.loads(text)["error"]["message"], f"{body!r:.80}: {status} {text[:200]}"
    assert server.request("GET", "/v1/completions")[0] == 405
    assert server.request("POST", "/admin/memory", {"bytes": 1}, KEY)[0] == 409
    stop = dict(FIXED, max_tokens=40, stop=["States"])
    text = server.complete(stop)[1]["choices"][0]
    assert text["finish_reason"] == "stop" and "States" not in text["text"], text
    status, text, _ = server.request("GET", "/metrics")
    assert status == 200 and b"pkv_run_generated_tokens_total" in text
    assert server.request("GET", "/health")[0] == 200 and b"<svg" in server.request("GET", "/")[1]
    print("answers: as expected", flush=True)


def test_too_large_and_full(program, options):
    server = Server(program, 8 << 20, options.threads, "--max-jobs", "2")
    status, answer = server.complete({"prompt": "a " * 600, "max_tokens": 4000})
    assert status == 400 and "memory limit" in answer["error"]["message"], answer
    body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True}
    found = []
    threads = [threading.Thread(target=lambda: found.append(server.request("POST", "/v1/completions", body)))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(status for status, _, _ in found)
    assert set(statuses) == {200, 429} and all(retry for status, _, retry in found if status == 429), statuses
    server.stop()
    print("too large, too many: as expected", flush=True)


def test_keys(program, options):
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("# two tenants\nalpha-key alpha 64 128\nbeta-key beta\n")
        file.flush()
        server = Server(program, 64 << 20, options.threads, "--api-keys", file.name)
        body = {"prompt": COMMON, "max_tokens": 1}
        cached = lambda: json.loads(server.request("GET", "/stats")[1])["cached"]
        assert server.complete(body)[0] == 401 and server.complete(body, "no-key")[0] == 401
        assert server.complete(body, "alpha-key")[0] == 200
        before = cached()
        assert server.complete(body, "beta-key")[0] == 200 and cached() == before, "a tenant saw another's prefix"
        assert server.complete(body, "alpha-key")[0] == 200 and cached() > before, "a tenant lost its prefix"
        server.stop()
    print("keys: as expected", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--fuzz", type=int, default=500)
    parser.add_argument("--memory", type=int, default=48 << 20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not os.path.isfile(MODEL):
        print("PKV_RUN_MODEL names no file: skipped")
        return 77
    print(f"PKV_SEED={SEED}", flush=True)
    server = Server(options.program, options.memory, options.threads)
    test_answers(server)
    test_load(server, options)
    test_fuzz(server, options.fuzz)
    assert server.complete(FIXED)[1]["choices"][0]["text"] == EXPECTED["text"]
    server.stop()
    test_too_large_and_full(options.program, options)
    test_keys(options.program, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
