"""Making a tiny LVLM folder: with random weights in seconds, or trained from scratch on the drawn world."""

import tempfile
import time
from functools import partial
from pathlib import Path

from plast_train.tiny.architecture import TinySizes, build_model, build_processor, save_model
from plast_train.tiny.card import write_card
from plast_train.tiny.measure import accuracy, describe
from plast_train.tiny.rows import RowBuilder
from plast_train.tiny.samples import tokenizer_texts
from plast_train.tiny.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from plast_train.tiny.training import Plan, run_workers, train_stage
from plast_train.tiny.vision import pretrain_tower
from plast_train.tiny.world import benchmark_items

# The tokenizer and the trained model that the package ships.
SHIPPED = Path(__file__).parent / "model"
# So that nearly every word of the world, in every language, is one token.
VOCABULARY = 1700
PROGRESS_ITEMS = 144


def make_tiny(
    out: Path,
    seed: int = 0,
    tokenizer: Path | None = None,
    random_weights: bool = False,
    sizes: TinySizes | None = None,
    plan: Plan | None = None,
) -> None:
    """Write a tiny LLaVA-1.5 folder that plain transformers loads.

    With `random_weights` that is all; the tokenizer is then the shipped one. Otherwise a tokenizer, the
    vision tower and the language model are trained, which takes most of an hour on two cores. `tokenizer`
    names another folder with a SentencePiece `tokenizer.model`. Raises UserError where that is missing.
    """
    sizes, plan = sizes or TinySizes(), plan or Plan()
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is None and not random_weights:
        tokenizer = out
        train_tokenizer(tokenizer_texts(seed), out, VOCABULARY)
    folder = tokenizer or SHIPPED
    text = load_tokenizer(folder)
    save_tokenizer(text, folder / "tokenizer.model", out)
    model = build_model(sizes, text, seed)
    if random_weights:
        save_model(model, build_processor(sizes, text), out)
        return
    with tempfile.TemporaryDirectory() as meeting:
        work = partial(_train, out=out, sizes=sizes, plan=plan, seed=seed)
        run_workers(work, plan.workers, Path(meeting) / "workers")


def _train(rank: int, out: Path, sizes: TinySizes, plan: Plan, seed: int) -> None:
    """One worker: the same model and tower on every rank, then the base together; rank 0 saves."""
    start = time.monotonic()
    text = load_tokenizer(out)
    model = build_model(sizes, text, seed)
    builder = RowBuilder(text, sizes.image_tokens)
    tower_right = pretrain_tower(model.model.vision_tower, seed, plan.tower_steps, verbose=rank == 0)
    progress = benchmark_items(seed - 1)[:PROGRESS_ITEMS]
    processor = build_processor(sizes, text)

    def report(step: int) -> None:
        model.eval()
        print(f"step {step}: {describe(accuracy(model, builder, progress))}", flush=True)
        save_model(model, processor, out)
        model.train()

    for number in range(len(plan.stages)):
        train_stage(model, builder, plan, number, seed, rank, report)
    if rank == 0:
        model.eval()
        minutes = (time.monotonic() - start) / 60
        found = accuracy(model, builder, benchmark_items(seed))
        save_model(model, processor, out)
        write_card(out, sizes, plan, seed, minutes, tower_right, found)
        print(describe(found), flush=True)
