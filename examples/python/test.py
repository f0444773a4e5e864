"""Runs what docs/python.md and docs/routing.md show against three real nodes, and ends at the first claim that does not hold.

Takes the path of trefoil; the Python that runs it has grpcio, grpcio-status, grpcio-tools and xxhash.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = (ROOT / "docs/python.md").read_text()
ROUTING = (ROOT / "docs/routing.md").read_text()
FOLDER = tempfile.TemporaryDirectory()
STUBS = pathlib.Path(FOLDER.name) / "stubs"


def check(claim, holds, found=""):
    """One line for each claim."""
    print("ok  " if holds else "FAIL", claim, flush=True)
    if not holds:
        sys.exit(f"Found: {found}")


def blocks(language, page=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def make_stubs():
    """By the command of the page, in a folder that has nothing but proto/."""
    (STUBS.parent / "proto").symlink_to(ROOT / "proto")
    (command,) = [block for block in blocks("sh") if "grpc_tools.protoc" in block]
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["sh", "-ec", command], cwd=STUBS.parent, env=os.environ | {"PATH": path}, check=False)
    check("the command of the page makes the stubs", done.returncode == 0)


make_stubs()
sys.dont_write_bytecode = True
sys.path[:0] = [str(STUBS), str(HERE)]

import calls  # noqa: E402
import routing  # noqa: E402
from trefoil.cache.v1.cache_pb2 import GetRequest, PutRequest  # noqa: E402
from trefoil.cache.v1.cache_pb2_grpc import CacheServiceStub  # noqa: E402
from trefoil.common.v1.common_pb2 import Fence, RequestId, Value  # noqa: E402
from trefoil.lock.v1.election_pb2 import LeaderRequest  # noqa: E402
from trefoil.lock.v1.election_pb2_grpc import ElectionServiceStub  # noqa: E402
from trefoil.lock.v1.lock_pb2 import CloseSessionRequest, OpenSessionRequest  # noqa: E402
from trefoil.lock.v1.lock_pb2_grpc import LockServiceStub  # noqa: E402
from trefoil.queue.v1.queue_pb2 import AckRequest, DequeueRequest, EnqueueRequest, Message  # noqa: E402
from trefoil.queue.v1.queue_pb2_grpc import QueueServiceStub  # noqa: E402


def until(seconds, look):
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class Program:
    """A process of this test, and the lines that it has printed. It is ended with its block, by its pid."""

    def __init__(self, *command, **variables):
        usual = {name: value for name, value in os.environ.items() if not name.startswith("TREFOIL_")}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, env=usual | variables, **pipe)
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.append(line.rstrip("\n"))

    def having(self, words):
        return [line for line in self.lines if words in line]

    def ended(self, seconds):
        """Its exit code, once all its lines are read; none while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            self._reader.join()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # One that stands still would not hear that it has to end.
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.process.send_signal(number)
        if self.ended(25) is None:
            self.process.kill()
            self.ended(None)


def see_page():
    def bare(text):
        return "\n".join(line.strip() for line in text.strip().splitlines())

    programs = [bare(path.read_text()) for path in HERE.glob("*.py") if path.name != "test.py"]
    for name, page in (("python", PAGE), ("routing", ROUTING)):
        quoted = blocks("python", page)
        foreign = [block for block in quoted if not any(bare(block) in program for program in programs)]
        check(f"what docs/{name}.md quotes stands in the programs", quoted and not foreign, "".join(foreign))

    vectors = re.findall(r"^\| `(\w+)` \| `(\[.*\])` \| (\d+) \|$", ROUTING, re.MULTILINE)
    found = [row for row in vectors if getattr(routing, row[0])(*json.loads(row[1])) != int(row[2])]
    check("the vectors of docs/routing.md are what the program computes", len(vectors) >= 18 and not found, found)

    table = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| \w+ \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
    again = {reason for reason, retry, _ in rows if retry in ("yes", "yes, elsewhere")}
    unseen = {reason for reason, retry, _ in rows if retry == "with the same request id"}
    unknown = {reason for reason, _, effect in rows if effect == "unknown"} - unseen
    found = (again ^ calls.AGAIN, unseen ^ calls.UNSEEN, unknown ^ calls.UNKNOWN)
    check("what is retried is what docs/errors.md says", len(rows) > 40 and not any(found), found)


def see_channels(addresses):
    def answers(target, options):
        """The nodes that answer some calls, and the codes of calls that fail."""
        found = set()
        with grpc.insecure_channel(target, options=options) as channel:
            cache = CacheServiceStub(channel)
            # Not all connections are there at once.
            for _ in range(40):
                try:
                    found.add(cache.Get(GetRequest(key="any"), timeout=5, wait_for_ready=True).header.node_id)
                except grpc.RpcError as error:
                    found.add(error.code())
                if len(found) == len(addresses):
                    break
                time.sleep(0.05)
        return found

    several, one = f"ipv4:{','.join(addresses)}", f"dns:///localhost:{addresses[0].split(':')[1]}"
    plain = [option for option in calls.OPTIONS if option[0] != "grpc.default_authority"]
    found = answers(several, plain)
    check("several addresses fail without grpc.default_authority", found == {grpc.StatusCode.INTERNAL}, found)
    found = answers(several, calls.OPTIONS)
    check("with it every node answers", found == {1, 2, 3}, found)
    found = answers(one, plain)
    check("a DNS name needs none", found == {1}, found)


class Lost(grpc.RpcError):
    """What a call ends with when the connection breaks before its answer."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "lost"

    def trailing_metadata(self):
        return ()


def see_errors(channel):
    try:
        found = CacheServiceStub(channel).Put(PutRequest(key=""), timeout=5)
    except grpc.RpcError as error:
        found = calls.error_info(error)
    check("an error has its reason and metadata", (found.reason, found.metadata["field"]) == ("INVALID_FIELD", "key"))

    def enqueue(text, attempt):
        request_id = RequestId(client="test", sequence=1, first_unacknowledged=1, attempt=attempt)
        request = EnqueueRequest(queue="ids", messages=[Message(value=Value(text=text))], request_id=request_id)
        return list(QueueServiceStub(channel).Enqueue(request, timeout=5).message_ids)

    found = [enqueue("one", attempt) for attempt in range(3)]
    check("a retry under its request id has one effect", found[0] and found == [found[0]] * 3, found)
    try:
        found = enqueue("another", 1)
    except grpc.RpcError as error:
        found = calls.error_info(error).metadata["field"]
    check("a request id is good for one operation", found == "request_id", found)

    answers = []

    def loses_its_first_answer(request, **options):
        answers.append(QueueServiceStub(channel).Enqueue(request, **options))
        if len(answers) == 1:
            raise Lost
        return answers[-1]

    request = EnqueueRequest(queue="ids", messages=[Message(value=Value(text="two"))])
    with contextlib.suppress(calls.Failed):
        calls.Calls().call(loses_its_first_answer, request)
    found = [list(answer.message_ids) for answer in answers]
    check("a call whose answer is lost is sent again, and stored once", found == [found[0]] * 2, found)


def see_routing(addresses):
    def forwarded():
        """Calls that the nodes have sent on to leaders."""
        pages = []
        for address in addresses:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
                pages.append(page.read().decode())
        counts = re.findall(r"^trefoil_calls_forwarded_total\{.*\} (\d+)$", "\n".join(pages), re.MULTILINE)
        return sum(map(int, counts))

    def enqueue(channel, key, sequence=0):
        request = EnqueueRequest(queue="routed", messages=[Message(key=key, value=Value(text="v"))])
        if sequence:
            request.request_id.CopyFrom(RequestId(client=client, sequence=sequence, first_unacknowledged=sequence))
        return QueueServiceStub(channel).Enqueue(request, timeout=5).layout

    def straight():
        """Sends 120 calls to the leaders: how many of them were sent on."""
        leaders.refresh()
        # Each node asks once about a queue.
        for n in range(24):
            layout = enqueue(leaders.channel(addresses[n % 3]), f"key-{n}")
        leases = []
        while len(leases) < 24:
            request = DequeueRequest(queue="routed", max_messages=24 - len(leases), wait_ms=5_000)
            taken = QueueServiceStub(leaders.channel(addresses[0])).Dequeue(request, timeout=10).deliveries
            leases += [delivery.lease_id for delivery in taken]
        before, last = forwarded(), next(sequences)
        for n in range(24):
            cache = CacheServiceStub(leaders.of_cache(f"routed-{n}"))
            cache.Put(PutRequest(key=f"routed-{n}", value=Value(text="v")), timeout=5)
            cache.Get(GetRequest(key=f"routed-{n}"), timeout=5)
            key, sequence = ("", last + n) if n % 2 else (f"key-{n}", 0)
            if key:
                into = routing.partition(key, layout.partitions)
            else:
                into = routing.keyless(client, sequence, layout.partitions)
            enqueue(leaders.of_partition(layout.queue_id, into), key, sequence)
            queue = QueueServiceStub(leaders.of_partition(*routing.place(leases[n])))
            queue.Ack(AckRequest(queue="routed", lease_id=leases[n]), timeout=5)
        for _ in range(12):
            locks = LockServiceStub(leaders.of_locks())
            session_id = locks.OpenSession(OpenSessionRequest(ttl_ms=10_000), timeout=5).session_id
            locks.CloseSession(CloseSessionRequest(session_id=session_id), timeout=5)
        counts.append(forwarded() - before)
        # What the next try dequeues shall be its own.
        left = DequeueRequest(queue="routed", max_messages=24, lease_ms=600_000)
        while QueueServiceStub(leaders.channel(addresses[0])).Dequeue(left, timeout=5).deliveries:
            pass
        return counts[-1] == 0

    client, sequences, counts = "routing", iter(range(1, 10_000, 100)), []
    leaders = routing.Leaders(addresses[0])
    # A leader may move once more after the start.
    check("a node sends on none of 120 calls that go to the leaders", until(20, straight), counts)
    before = forwarded()
    for n in range(24):
        CacheServiceStub(leaders.channel(addresses[0])).Get(GetRequest(key=f"routed-{n}"), timeout=5)
    check("and calls to one node show that they are counted", 0 < forwarded() - before <= 24, forwarded() - before)
    leaders.close()


def see_lookups(run):
    def look_up(*arguments):
        with run("cached_lookup.py", *arguments) as program:
            program.ended(30)
            return program.lines[-1].split()

    (first, loaded), (second, cached) = look_up("usual"), look_up("usual")
    check("a look-up misses, and hits the second time", (first, second) == ("miss", "hit"), (first, second))
    check("a hit is what was loaded", loaded == cached)
    brief = ("brief", "--ttl-ms", "300")
    look_up(*brief)
    time.sleep(0.5)
    check("it misses again after its TTL", until(5, lambda: look_up(*brief)[0] == "miss"))


def see_leaders(run, channel):
    def leader():
        return ElectionServiceStub(channel).Leader(LeaderRequest(name="job"), timeout=5).leader

    def proclaims(program):
        return leader().value.text.endswith(f" {program.process.pid}")

    def leads(*programs):
        return next((program for program in programs if program.having("leads with token")), None)

    def counts(program):
        return [int(line.split()[1]) for line in program.having("count")]

    def job():
        return run("leader_job.py", "job", "--ttl-ms", "3000")

    with job() as one, job() as other:
        old = until(20, lambda: leads(one, other))
        check("one of two jobs leads", old and until(5, lambda: 2 in counts(old)), one.lines + other.lines)
        check("and proclaims itself", proclaims(old), leader())
        token = leader().fencing_token
        new = other if old is one else one
        # Beyond its TTL it leads because it is renewed.
        time.sleep(3.5)
        check("its session is renewed in the background", proclaims(old) and not leads(new), new.lines)

        old.process.kill()
        check("the other takes over after kill -9", until(20, lambda: leads(new)), new.lines)
        last, found = counts(old)[-1], until(10, lambda: counts(new))
        # The last count may have been written and not printed.
        check("and goes on where the first was", found and found[0] in (last + 1, last + 2), (last, found))
        try:
            late = PutRequest(key="job", value=Value(text="0"), fence=Fence(lock="job", token=token))
            found = CacheServiceStub(channel).Put(late, timeout=5)
        except grpc.RpcError as error:
            found = calls.error_info(error)
        check("the old token is refused with FENCED", found.reason == "FENCED", found)
        # The mark is of what the job itself has shown to the shard.
        check("as the new leader works under its own", found.metadata["mark"] == str(leader().fencing_token), found)

        with job() as third:
            # It stands in line before the leader stands still.
            time.sleep(1)
            new.process.send_signal(signal.SIGSTOP)
            check("a leader that stands still is replaced", until(20, lambda: leads(third)), third.lines)
            until(10, lambda: len(counts(third)) > 2)
            new.process.send_signal(signal.SIGCONT)
            check("and ends when it wakes up", new.ended(15) == 1, new.lines)
            found = counts(third)
            in_turn = found == list(range(found[0], found[0] + len(found)))
            check("without writing over its successor", in_turn and not set(found) & set(counts(new)), found)

            LockServiceStub(channel).CloseSession(CloseSessionRequest(session_id=leader().session_id), timeout=5)
            found = (third.ended(10), third.lines[-1])
            check("a leader whose session is over ends by itself", found == (1, "the session is lost"), found)
    with job() as last:
        until(10, lambda: leads(last))
        last.process.terminate()
        check("SIGTERM ends a leader", last.ended(10) == 0, last.lines)
        check("which has resigned", last.having("leads") and not leader().fencing_token, leader())


def see_hung_node(channel, pid):
    # One at each node.
    request = DequeueRequest(queue="hung", wait_ms=30_000)
    polls = [QueueServiceStub(channel).Dequeue.future(request, timeout=40) for _ in range(3)]
    time.sleep(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(15, lambda: any(poll.done() for poll in polls))
    finally:
        os.kill(pid, signal.SIGCONT)
    found = [poll.code() for poll in polls if poll.done()]
    check("a node that hangs is left in the middle of a wait", set(found) == {grpc.StatusCode.UNAVAILABLE}, found)
    for poll in polls:
        poll.cancel()


def see_worker(run, channel, pid):
    queue, requests = QueueServiceStub(channel), calls.Calls()
    texts = {f"job-{n}" for n in range(40)}
    messages = [Message(value=Value(text=text)) for text in texts]
    requests.call(queue.Enqueue, EnqueueRequest(queue="jobs", messages=messages))

    def worker():
        return run("queue_worker.py", "jobs", "--lease-ms", "3000")

    def done(*programs):
        return [line.split()[1] for program in programs for line in program.having("done ")]

    with worker() as first:
        until(20, lambda: len(done(first)) >= 6)
        first.process.terminate()
        check("SIGTERM ends a worker", first.ended(10) == 0, first.lines)
        check("in the middle of its work", 6 <= len(done(first)) < len(texts), first.lines)
    with worker() as second:
        until(20, lambda: len(done(second)) >= 4)
        os.kill(pid, signal.SIGKILL)
        until(30, lambda: set(done(first, second)) == texts)
        check("kill -9 of a node stops no worker: all is done", set(done(first, second)) == texts, second.lines)
        second.process.terminate()
        check("and it ends on SIGTERM", second.ended(15) == 0, second.lines)
    check("what the first had leased it did", not set(done(first)) & set(done(second)), second.lines)
    # What was not acknowledged would come again within that time.
    found = requests.call(queue.Dequeue, DequeueRequest(queue="jobs", wait_ms=3_500)).deliveries
    check("all is acknowledged: nothing comes again", not found, found)


def main():
    see_page()
    binary = str(pathlib.Path(sys.argv[1]).resolve())
    any_port = ",".join(["127.0.0.1:0"] * 3)
    data = str(STUBS.parent / "data")
    with Program(binary, "dev", "--output", "json", "--listen", any_port, "--data-dir", data) as dev:
        # The end of the document that it prints when all nodes serve.
        until(60, lambda: "}" in dev.lines or dev.process.poll() is not None)
        check("three nodes run", "}" in dev.lines, dev.lines)
        nodes = json.loads("\n".join(dev.lines))["nodes"]
        addresses = [node["endpoint"].removeprefix("http://") for node in nodes]
        target = f"ipv4:{','.join(addresses)}"

        def run(program, *arguments):
            command = [sys.executable, str(HERE / program), *arguments]
            return Program(*command, TREFOIL_TARGET=target, PYTHONPATH=str(STUBS), PYTHONDONTWRITEBYTECODE="1")

        with calls.connect(target) as channel:
            see_channels(addresses)
            see_errors(channel)
            see_routing(addresses)
            see_lookups(run)
            see_leaders(run, channel)
            see_hung_node(channel, nodes[2]["pid"])
            see_worker(run, channel, nodes[0]["pid"])


if __name__ == "__main__":
    # So that what it has started is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
