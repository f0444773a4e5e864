"""Leads an election and works under a fence while it surely leads. Start it twice: one works, the other stands by.

It ends when its session is lost or a newer leader was there, and resigns on SIGTERM: whoever runs it starts it again.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading

import grpc
from calls import Calls, Failed, connect, error_info, now
from trefoil.cache.v1 import cache_pb2, cache_pb2_grpc
from trefoil.common.v1 import common_pb2
from trefoil.lock.v1 import election_pb2, election_pb2_grpc, lock_pb2, lock_pb2_grpc

# How long it stands in line. A new call would stand at the end.
WAIT_MS = 3_600_000


class Session:
    """A session that a thread renews at a third of its TTL."""

    def __init__(self, calls, locks, ttl_ms):
        request = lock_pb2.OpenSessionRequest(ttl_ms=ttl_ms, owner="leader_job.py")
        opened, sent = calls.timed(locks.OpenSession, request)
        self.id = opened.session_id
        self.over = threading.Event()
        self._calls, self._locks = calls, locks
        self._ttl = opened.ttl_ms / 1000
        self._until = sent + opened.remaining_ms / 1000
        threading.Thread(target=self._renew, daemon=True).start()

    def remaining(self):
        """How many seconds it lives for certain. Counted from before the renewal was sent, so never too long."""
        return 0 if self.over.is_set() else self._until - now()

    def _renew(self):
        pause = self._ttl / 3
        while not self.over.wait(pause):
            sent = now()
            try:
                request = lock_pb2.KeepAliveRequest(session_id=self.id)
                answer = self._locks.KeepAlive(request, timeout=self._ttl / 4, wait_for_ready=True)
                self._until = sent + answer.remaining_ms / 1000
                pause = self._ttl / 3
            except grpc.RpcError as error:
                if error_info(error).reason == "SESSION_EXPIRED":
                    self.over.set()
                pause = self._ttl / 20

    def close(self):
        """Ends it, and all that it holds and waits for."""
        self.over.set()
        with contextlib.suppress(Failed):
            self._calls.call(self._locks.CloseSession, lock_pb2.CloseSessionRequest(session_id=self.id), timeout=2)


def campaign(calls, elections, session, name):
    """Waits in line, and returns the token of the leadership."""
    value = common_pb2.Value(text=f"{socket.gethostname()} {os.getpid()}")
    while True:
        request = election_pb2.CampaignRequest(session_id=session.id, name=name, value=value, wait_ms=WAIT_MS)
        answer = calls.call(elections.Campaign, request)
        if answer.elected:
            return answer.fencing_token


def step(calls, cache, session, fence):
    """A piece of work: counts. Once it has read under its fence, no older leader can write."""
    get = cache_pb2.GetRequest(key=fence.lock, fence=fence)
    count = int(calls.call(cache.Get, get, timeout=session.remaining()).value.text or 0) + 1
    # Any time may pass here. When a newer leader has read meanwhile, the write is refused with FENCED.
    put = cache_pb2.PutRequest(key=fence.lock, value=common_pb2.Value(text=str(count)), fence=fence)
    calls.call(cache.Put, put, timeout=session.remaining())
    print("count", count, flush=True)


def lead(calls, channel, session, name):
    elections = election_pb2_grpc.ElectionServiceStub(channel)
    cache = cache_pb2_grpc.CacheServiceStub(channel)
    token = campaign(calls, elections, session, name)
    print("leads with token", token, flush=True)
    fence = common_pb2.Fence(lock=name, token=token)
    try:
        while session.remaining() > 0:
            step(calls, cache, session, fence)
            session.over.wait(0.5)
        sys.exit("the session is lost")
    finally:
        # The next leader need not wait for the TTL. Of a lost leadership this is refused, which does no harm.
        resign = election_pb2.ResignRequest(session_id=session.id, name=name, fencing_token=token)
        with contextlib.suppress(Failed):
            calls.call(elections.Resign, resign, timeout=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("election", nargs="?", default="job")
    parser.add_argument("--ttl-ms", type=int, default=10_000)
    args = parser.parse_args()

    # Raises wherever the program is, as Ctrl-C does. A call that waits is hung up, which withdraws it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with connect() as channel:
        calls = Calls()
        with contextlib.closing(Session(calls, lock_pb2_grpc.LockServiceStub(channel), args.ttl_ms)) as session:
            try:
                lead(calls, channel, session, args.election)
            except Failed as failed:
                sys.exit(f"given up: {failed}")


if __name__ == "__main__":
    main()
