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
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (default: 0)")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..data import create_dataset
    from ..data.shard_writing import write_shards
    from ..training.recipe import parse_options

    dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
    folder = write_shards(dataset, options.out, options.split, options.images_per_shard, options.seed)
    shards = sorted(folder.glob("*.tar"))
    megabytes = sum(path.stat().st_size for path in shards) / 1e6
    print(
        f"{len(dataset)} images of {len(dataset.classes)} classes in {len(shards)} shards ({megabytes:.1f} MB), "
        f"{shards[0].name} to {shards[-1].name} → {folder}; classes → {options.out / 'classes.json'}"
    )
