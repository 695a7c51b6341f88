"""What an epoch of 14 million and of a billion images in shards costs: rates measured, the sampler simulated, a plan.

Run: OMP_NUM_THREADS=1 python benchmarks/scale.py [--data FOLDER] [--images 2000]

Three parts:
- The sampler. `data/order.py` makes the real order; no image is read: how long the first batch takes to come, indices a
  second after it, what the process holds meanwhile, and from how many shards 1,000 batches in a row read.
- Rates. The training split of FOLDER, or `--images` JPEG files of 500 × 375 pixels (parts of docs/coffee.jpg, a sheet
  of leaves and maps, turned and scaled by chance), is written as shards and read in a training epoch's order, decoded
  and cut to 224 × 224 as for training: images a second of one process, the median of three passes each in turn, from
  the files, from shards, and from the same shards by HTTP on this machine.
- The plan: hours and disk of an epoch, computed from the rate of shards and the bytes of an image in them.
"""

import argparse
import functools
import resource
import statistics
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from glasszoo.common.processes import Place
from glasszoo.data import create_dataset
from glasszoo.data.augmentation import Augmentation
from glasszoo.data.loading import Loader
from glasszoo.data.order import Order
from glasszoo.data.samples import ImageDataset
from glasszoo.data.shard_index import INDEX
from glasszoo.data.shard_writing import write_shards

SHEET = Path(__file__).parents[1] / "docs" / "coffee.jpg"
PER_SHARD, BATCH = 10_000, 4096
CASES = {"ImageNet-21k": (14_197_122, 64), "a billion": (10**9, 1024)}  # images, reading processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set on this machine whose training images are read")
    parser.add_argument("--images", type=int, default=2000, help="made where no data are given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (images, _) in CASES.items():  # first, while the process holds little
        simulated(name, images)
    with tempfile.TemporaryDirectory() as folder:
        rate, size = measured(Path(folder), options.data, options.images)
    for name, (images, processes) in CASES.items():
        hours, terabytes, index = (
            images / (rate * processes) / 3600,
            images * size / 1e12,
            images * INDEX.itemsize / 1e9,
        )
        print(
            f"{name}: {processes} reading processes take {hours:.2f} hours an epoch; {terabytes:.2f} TB of "
            f"shards, {index:.1f} GB of index"
        )


def measured(folder: Path, data: str | None, images: int) -> tuple[float, float]:
    """Images a second that one process reads from shards, and the bytes of one."""
    if data is None:
        data = str(folder / "plain")
        write_files(folder / "plain", images)
    plain = create_dataset(data, "train")
    began = time.perf_counter()
    written = write_shards(plain, folder / "shards", "train", images_per_shard=100)
    writing = written.images / (time.perf_counter() - began)
    size = sum(path.stat().st_size for path in written.folder.glob("*.tar")) / written.images
    ThreadingHTTPServer.request_queue_size = 64  # requests come side by side
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Parts, directory=str(folder / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sets = {"files": plain, "shards": create_dataset(str(folder / "shards"), "train")}
    sets["shards by HTTP"] = create_dataset(f"http://127.0.0.1:{server.server_port}", "train")
    passes = [{name: rate_of(data, number) for name, data in sets.items()} for number in range(3)]
    rates = {name: statistics.median(one[name] for one in passes) for name in sets}
    told = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    print(f"{written.images} images of {size / 1000:.0f} kB; written {writing:.0f} images/s; read {told} images/s")
    server.shutdown()
    return rates["shards"], size


def write_files(folder: Path, images: int) -> None:
    """JPEG files in class folders."""
    whole, generator = Image.open(SHEET).convert("RGB"), np.random.default_rng(0)
    for number in range(images):
        path = folder / f"class{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        share = generator.uniform(0.4, 1)
        width, height = (round(share * side) for side in whole.size)
        left, top = (int(generator.integers(0, a - b + 1)) for a, b in zip(whole.size, (width, height), strict=True))
        part = whole.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        part.rotate(180 * int(generator.integers(2))).save(path, quality=92)


def rate_of(dataset: ImageDataset, epoch: int) -> float:
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    prepare = v2.Compose([Augmentation().transform((224, 224), v2.InterpolationMode.BILINEAR), *to_tensor])
    loader = Loader(dataset, prepare, 64, shuffle=True, with_truth=False, seed=epoch)
    began = time.perf_counter()
    count = sum(len(batch.ids) for batch in loader)
    return count / (time.perf_counter() - began)


class Parts(SimpleHTTPRequestHandler):
    """Answers requests for a part of a file."""

    protocol_version = "HTTP/1.1"  # keeps the connection
    disable_nagle_algorithm = True  # else each answer waits for the next, 40 ms

    def do_GET(self) -> None:
        asked, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def simulated(name: str, images: int) -> None:
    """The sampler of one of 64 processes."""
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
