"""glasszoo shard: a data set as tar files."""

import argparse
from pathlib import Path

DESCRIPTION = "Write a data set as shards: tar files as WebDataset has them, with masks, boxes and points."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("data", metavar="DATA", help="data set: a name from 'glasszoo list datasets' or a folder")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards, which --data then names")
    parser.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (default: 0)")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..data import create_dataset
    from ..data.shard_writing import write_shards
    from ..training.recipe import parse_options

    dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
    written = write_shards(
        dataset, options.out, options.split, options.images_per_shard, options.seed, options.skip_unreadable
    )
    megabytes = sum(path.stat().st_size for path in written.folder.glob("*.tar")) / 1e6
    left_out = f", {written.left_out} left out as unreadable" if written.left_out else ""
    print(
        f"{written.images} images of {len(dataset.classes)} classes in {written.shards} shards ({megabytes:.1f} MB)"
        f"{left_out} → {written.folder}; classes → {options.out / 'classes.json'}"
    )
