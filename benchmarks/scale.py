"""The sampler of an epoch of 14 million and of a billion images, simulated: its memory, and shards read at a time.

Run: python benchmarks/scale.py

`data/order.py` makes the real order; no image is read. Of each case: how long the first batch takes to come, indices a
second after it, what the process holds meanwhile, and from how many shards 1,000 batches in a row read.
"""

import resource
import time
from itertools import islice

from glasszoo.common.processes import Place
from glasszoo.data.order import Order

PER_SHARD, BATCH = 10_000, 4096
CASES = {"ImageNet-21k": 14_197_122, "a billion": 10**9}


def main() -> None:
    for name, images in CASES.items():
        sizes = [PER_SHARD] * (images // PER_SHARD) + [images % PER_SHARD] * (images % PER_SHARD > 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        order = Order(images, BATCH, shuffle=True, shard_sizes=sizes, place=Place(3, 64))
        order.first = len(order) // 2  # as a run that is resumed in the midst
        began = time.perf_counter()
        batches = iter(order)
        next(batches)
        first = time.perf_counter() - began
        began, shards = time.perf_counter(), set()
        for batch in islice(batches, 1000):
            shards |= {index // PER_SHARD for _, index in batch}
        rate = 1000 * BATCH / (time.perf_counter() - began)
        held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{name}: {len(sizes):,} shards, {len(order):,} batches; first batch after {first:.2f} s, then "
            f"{rate:,.0f} indices/s of all processes; {held:.0f} MiB more; {len(shards)} shards in 1,000 batches"
        )


if __name__ == "__main__":
    main()
