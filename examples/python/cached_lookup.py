"""Looks something up, in the cache first: a miss is loaded and kept there for a while.

The cache makes it quicker and is never needed: where it does not answer in time, that is a miss.
"""

import argparse
import hashlib

import grpc
from calls import connect, error_info
from trefoil.cache.v1 import cache_pb2, cache_pb2_grpc
from trefoil.common.v1 import common_pb2

# Longer than this, and loading is no slower.
TIMEOUT = 0.5


def load(name):
    """Stands for what is slow."""
    return hashlib.pbkdf2_hmac("sha256", name.encode(), b"salt", 500_000)


def look_up(cache, name, ttl_ms):
    """The value, and whether it was in the cache."""
    key = f"digest/{name}"
    try:
        found = cache.Get(cache_pb2.GetRequest(key=key), timeout=TIMEOUT)
        if found.hit:
            return found.value.data, True
    except grpc.RpcError as error:
        print("not read:", error_info(error).reason or error.code())
    value = load(name)
    try:
        # Without a request id: sent once, and if it is lost the next one loads again.
        put = cache_pb2.PutRequest(key=key, value=common_pb2.Value(data=value), ttl_ms=ttl_ms)
        cache.Put(put, timeout=TIMEOUT)
    except grpc.RpcError as error:
        print("not kept:", error_info(error).reason or error.code())
    return value, False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--ttl-ms", type=int, default=60_000)
    args = parser.parse_args()

    with connect() as channel:
        value, was_hit = look_up(cache_pb2_grpc.CacheServiceStub(channel), args.name, args.ttl_ms)
        print("hit" if was_hit else "miss", value.hex())


if __name__ == "__main__":
    main()
