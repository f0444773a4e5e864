"""Where a call goes straight to the leader of what it asks for: the functions of docs/routing.md.

Needs xxhash and what calls.py needs. Any node answers any call, so a wrong guess costs a hop and nothing else.
"""

import threading

import grpc
import xxhash
from trefoil.cluster.v1 import cluster_pb2
from trefoil.cluster.v1.cluster_pb2_grpc import ClusterServiceStub

MAP_EPOCH = 1
SLOTS = 16_384
SHARDS_MAX = 64


def hash_of(data):
    return xxhash.xxh3_64_intdigest(data)


def slot_of(*parts):
    return hash_of(b"".join(len(part).to_bytes(8, "big") + part for part in parts)) % SLOTS


def of_locks(namespace):
    """The slot of all locks and sessions of a namespace."""
    return slot_of(b"lock", namespace.encode())


def of_cache(namespace, key):
    """The slot of a key of the cache."""
    return slot_of(b"cache", namespace.encode(), key.encode())


def of_partition(queue_id, partition, shards):
    """The slot of a partition of a queue."""
    return (slot_of(b"queue", queue_id.to_bytes(8, "big")) + partition * (SLOTS // shards)) % SLOTS


def shard(slot, shards):
    """The shard of a slot."""
    return 1 + slot * shards // SLOTS


def partition(key, partitions):
    """The partition of a message with a key: jump consistent hash."""
    state, bucket, following = hash_of(key.encode()), 0, 0
    while following < partitions:
        bucket = following
        state = (state * 2_862_933_555_777_941_757 + 1) % 2**64
        following = ((bucket + 1) << 31) // ((state >> 33) + 1)
    return bucket


def keyless(client, sequence, partitions):
    """The partition of the messages without key of an Enqueue with this request id."""
    return partition(f"{client}/{sequence}", partitions)


def place(message_or_lease_id):
    """Queue and partition of a message or of a lease."""
    queue_id, of_queue, _ = message_or_lease_id.split("-", 2)
    return int(queue_id), int(of_queue)


class Leaders:
    """A channel to each node, and which of them leads a shard. Threads may share one."""

    def __init__(self, endpoint):
        self._channels = {}
        self._lock = threading.Lock()
        self._endpoint = endpoint
        self.refresh()

    def refresh(self):
        """Asks who leads: at first, and when a header has another `node_id` than was asked, or a call fails."""
        status = ClusterServiceStub(self.channel(self._endpoint)).Status(cluster_pb2.StatusRequest(), timeout=5)
        known = status.slot_map
        is_readable = known.epoch == MAP_EPOCH and known.slots == SLOTS and 1 <= known.data_shards <= SHARDS_MAX
        self.shards = known.data_shards if is_readable else None
        nodes = {member.id: member.endpoint.removeprefix("http://") for member in status.members}
        self._leaders = {told.shard: nodes.get(told.leader_id) for told in status.shards}

    def channel(self, endpoint):
        with self._lock:
            if endpoint not in self._channels:
                self._channels[endpoint] = grpc.insecure_channel(endpoint)
            return self._channels[endpoint]

    def of(self, slot):
        """The channel to the leader of a slot, or to any node where that is not known."""
        leader = self._leaders.get(shard(slot, self.shards)) if self.shards else None
        return self.channel(leader or self._endpoint)

    def of_locks(self, namespace="default"):
        return self.of(of_locks(namespace))

    def of_cache(self, key, namespace="default"):
        return self.of(of_cache(namespace, key))

    def of_partition(self, queue_id, of_queue):
        return self.of(of_partition(queue_id, of_queue, self.shards or 1))

    def close(self):
        for channel in self._channels.values():
            channel.close()
