"""How fast the trainer is against a bare loop: the same loader, model, optimizer and autocast, in turn in one process.

Run: python benchmarks/training.py [--backbone resnet18 --size 96 --batch 32 --steps 8 --rounds 5 --heads cam,black_box]

Prints a row a head: images a second of the bare loop (timm's own model, cross entropy, backward, step) and of the
trainer, the median over rounds of their ratio, and the share of time that the trainer waited for data; and once the
rate of the loader alone. On a GPU also the trainer's peak memory, and its share of the rate of a large matrix product
(the operations of timm's model alone; on a CPU libraries for the two differ too much to say anything).
"""

import argparse
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path

import timm
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from glasszoo.heads import Phase
from glasszoo.training import Recipe, Trainer
from glasszoo.training.phases import optimizer_for, scheduler_for
from glasszoo.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe
from glasszoo.training.totals import EpochTotals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", default="black_box,cam,gmp,lse,topk,gated_attention,protopnet,pipnet")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    for name in options.heads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, options, Path(folder)), flush=True)


def row(head: str, options: argparse.Namespace, folder: Path) -> str:
    images = options.batch * options.steps
    recipe = Recipe(
        # A fifth of the images is held out; what is left fills the steps.
        data=DataRecipe(
            "critters",
            options={"size": options.size, "count": round(images * 1.25) + 16},
            validation=0.2,
            batch_size=options.batch,
            keep_in_memory=True,
        ),
        model=ModelRecipe(options.backbone, head=head, image_size=options.size, crop_pct=1.0),
        optimizer=OptimizerRecipe(lr=1e-4),
        epochs=4,
        compile=options.compile,
    )
    trainer = Trainer(recipe, folder / "run", shows_progress=False)
    device, loader = trainer.device, trainer.loaders.training
    trainer._validate = lambda: {"val_loss": 0.0, "val_top1": 0.0}  # type: ignore[method-assign]
    trainer._record = lambda *arguments: None  # type: ignore[method-assign]

    def trained(phase: Phase) -> int:
        trainer.engine.begin(phase)
        return sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)

    # The bare loop trains all its weights, and so does the phase it is held against.
    phase = max(trainer.plan, key=trained)
    trainer.engine.begin(phase)
    optimizer = optimizer_for(trainer.model, phase, recipe.optimizer)
    scheduler = scheduler_for(optimizer, 4, len(loader), recipe.optimizer)

    network = timm.create_model(options.backbone, num_classes=8).to(device)
    network = network.to(memory_format=torch.channels_last).train()
    forward = torch.compile(network) if options.compile else network
    bare = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def bare_round() -> float:
        began = time.perf_counter()
        for batch in loader:
            # A head that learns from several views of an image has the network see each: so does the bare loop.
            views = batch.images.shape[1] if batch.images.ndim == 5 else 1
            pixels = batch.images.reshape(-1, *batch.images.shape[-3:])
            pixels = pixels.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = batch.labels.repeat_interleave(views).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = functional.cross_entropy(forward(pixels).float(), labels)
            loss.backward()
            bare.step()
            bare.zero_grad()
        loss.item()
        return len(loader) * options.batch / (time.perf_counter() - began)

    def our_round() -> tuple[float, float]:
        trainer.progress.step = 0
        totals = EpochTotals(device)
        began = time.perf_counter()
        means = trainer._train_epoch(optimizer, scheduler, totals, 0)
        return len(loader) * options.batch / (time.perf_counter() - began), means["waiting_for_data"]

    def data_round() -> float:
        began = time.perf_counter()
        for _ in loader:
            pass
        return len(loader) * options.batch / (time.perf_counter() - began)

    bare_round(), our_round()
    pairs = [(bare_round(), *our_round()) for _ in range(options.rounds)]
    theirs, ours, waited = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / bare for bare, mine, _ in pairs)
    on_gpu = ""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        our_round()
        share = ours * operations(network, options.size) / matrix_rate()
        on_gpu = f"  peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB  {share:.0%} of the matrix rate"
    return (
        f"{head:18} bare {theirs:7.1f}  trainer {ours:7.1f} images/s  ratio {ratio:.3f}  waiting {waited:.1%}  "
        f"data alone {data_round():.0f} images/s{on_gpu}"
    )


def operations(network: torch.nn.Module, size: int) -> float:
    """Floating point operations of timm's model on one image, forward and backward; the head's own are not counted."""
    images = torch.randn(2, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / len(images)


@cache
def matrix_rate() -> float:
    """Operations a second of a product of large square matrices in bf16; the best of ten."""
    side = 8192
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for it
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
