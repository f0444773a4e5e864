"""What the three programs share: a channel to all nodes, the reason of an error, and calls that are sent again safely.

Needs grpcio, grpcio-status and the stubs: see docs/python.md. TREFOIL_TARGET says where the nodes are.
"""

import json
import os
import random
import secrets
import threading
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from trefoil.common.v1 import common_pb2

TARGET = os.environ.get("TREFOIL_TARGET", "ipv4:127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003")

SERVICE_CONFIG = {
    # Any node answers any call. A call that is sent again goes to another one.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            # Only what may happen twice: this resends without a look at the reason or the request id.
            "name": [
                {"service": "trefoil.cache.v1.CacheService", "method": "Get"},
                {"service": "trefoil.lock.v1.LockService", "method": "KeepAlive"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

OPTIONS = [
    # Else a list of addresses becomes the :authority, and one with two ports is malformed.
    ("grpc.default_authority", "trefoil"),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # A node that hangs in the middle of a wait is left after 4 s. It takes all three.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A node that comes back is used again soon, not after two minutes.
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

# Of docs/errors.md. Retry "yes": the try did nothing, so the same may be sent again.
AGAIN = {
    "TOO_MANY_OPEN_REQUESTS", "PARTITION_NOT_OPEN", "STALE_MAP", "NOT_LEADER", "NO_QUORUM", "LOST", "DEADLINE_PASSED",
    "OVERLOADED", "STOPPING", "STATE_DISPUTED", "FENCE_NOT_VALIDATED",
}
# Retry "with the same request id": the try may have had its effect.
UNSEEN = {"MAYBE_APPLIED", "INTERNAL"}
# Effect "unknown" and no retry helps.
UNKNOWN = {"REQUEST_FORGOTTEN", "PARTLY_APPLIED"}
# Without a reason no node has answered: the connection broke, or the time was up.
BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def connect(target=TARGET):
    """One channel for the whole program: it has a connection to each node."""
    return grpc.insecure_channel(target, options=OPTIONS)


def now():
    """Seconds on a clock that goes on while the machine sleeps, as leases and sessions run out meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def error_info(error):
    """Why a call failed: reason and metadata. The reason is empty where no node has said one."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else []:
        if detail.Unpack(info) and info.domain == "trefoil":
            return info
    return error_details_pb2.ErrorInfo()


class Failed(Exception):
    """A call that was given up."""

    def __init__(self, error, info, is_transient, maybe_applied):
        super().__init__(f"{info.reason or error.code().name}: {error.details()}")
        self.reason, self.metadata = info.reason, dict(info.metadata)
        # Only the time was up: the same may work later.
        self.is_transient = is_transient
        # False is certain: nothing has happened.
        self.maybe_applied = maybe_applied


class Calls:
    """Sends calls until they are answered, each under one request id: it takes effect once. One for a process."""

    def __init__(self):
        self._client = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._next = 1
        self._open = set()

    def call(self, method, request, timeout=10.0):
        """The answer. The whole call may take `timeout` seconds and the wait that it asks for."""
        return self.timed(method, request, timeout)[0]

    def timed(self, method, request, timeout=10.0):
        """The answer, and when the try was sent that got it: what the answer promises counts from there."""
        with self._lock:
            sequence = self._next
            self._next += 1
            self._open.add(sequence)
        try:
            return self._try(method, request, sequence, timeout)
        finally:
            with self._lock:
                self._open.remove(sequence)

    def _try(self, method, request, sequence, timeout):
        fields = request.DESCRIPTOR.fields_by_name
        wait_until = now() + getattr(request, "wait_ms", 0) / 1000
        deadline = wait_until + timeout
        attempt, pause = 0, 0.01
        while True:
            if "request_id" in fields:
                request.request_id.CopyFrom(self._id(sequence, attempt))
            sent = now()
            # A node that says nothing gets a quarter of the time, so that others are asked as well.
            patience = timeout / 4
            if "wait_ms" in fields:
                request.wait_ms = max(0, int((wait_until - sent) * 1000))
                patience += request.wait_ms / 1000
            try:
                return method(request, timeout=patience, wait_for_ready=True), sent
            except grpc.RpcError as error:
                info = error_info(error)
                is_unseen = info.reason in UNSEEN or (not info.reason and error.code() in BROKEN)
                attempt += is_unseen
                is_transient = is_unseen or info.reason in AGAIN
                if not is_transient or now() + pause >= deadline:
                    maybe_applied = attempt > 0 or not info.reason or info.reason in UNKNOWN
                    raise Failed(error, info, is_transient, maybe_applied) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 0.5)

    def _id(self, sequence, attempt):
        with self._lock:
            first = min(self._open)
        return common_pb2.RequestId(
            client=self._client, sequence=sequence, first_unacknowledged=first, attempt=attempt
        )
