"""Works off a queue: a long poll, a lease for each message, an acknowledgement once the work is done.

A message that is not acknowledged comes again, so the work must bear to be done twice. On SIGTERM it finishes what it
has leased and ends.
"""

import argparse
import signal
import threading
import time

from calls import Calls, Failed, connect, now
from trefoil.queue.v1 import queue_pb2, queue_pb2_grpc

# As many as are done in a small part of the lease.
MESSAGES = 4
# How soon it hears of SIGTERM. A poll that is cut off might leave messages leased, so it is not.
WAIT_MS = 2_000


def work(delivery):
    """Stands for the work."""
    time.sleep(0.1)


def poll(calls, queue, name, lease_ms):
    """Messages to work on, each with the moment at which its lease ends."""
    request = queue_pb2.DequeueRequest(queue=name, max_messages=MESSAGES, wait_ms=WAIT_MS, lease_ms=lease_ms)
    try:
        answer, sent = calls.timed(queue.Dequeue, request)
    except Failed as failed:
        if not failed.is_transient:
            raise
        # Whatever it leased after all comes again when the lease is over.
        print("cannot poll:", failed, flush=True)
        return []
    return [(delivery, sent + (answer.waited_ms + delivery.lease_ms) / 1000) for delivery in answer.deliveries]


def acknowledge(calls, queue, name, delivery):
    try:
        calls.call(queue.Ack, queue_pb2.AckRequest(queue=name, lease_id=delivery.lease_id))
        print("done", delivery.value.text, "delivery", delivery.delivery_count, flush=True)
    except Failed as failed:
        # Too late, or its end was not seen: the message is gone or comes again, and the work bears both.
        print("perhaps not acknowledged:", delivery.value.text, failed, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue", nargs="?", default="jobs")
    parser.add_argument("--lease-ms", type=int, default=30_000)
    args = parser.parse_args()

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with connect() as channel:
        calls, queue = Calls(), queue_pb2_grpc.QueueServiceStub(channel)
        while not stopping.is_set():
            for delivery, lease_end in poll(calls, queue, args.queue, args.lease_ms):
                # After that another worker may have it.
                if now() < lease_end:
                    work(delivery)
                    acknowledge(calls, queue, args.queue, delivery)


if __name__ == "__main__":
    main()
