"""Making a tiny LVLM folder: with random weights in seconds, or trained from scratch on the drawn world."""

from pathlib import Path

from plast_train.lvlm.tiny.architecture import TinySizes, build_model, build_processor, save_model
from plast_train.lvlm.tiny.tokenizer import load_tokenizer, save_tokenizer

# The tokenizer (and the trained model) that the package ships.
SHIPPED = Path(__file__).parent / "model"


def make_tiny(
    out: Path,
    seed: int = 0,
    tokenizer: Path | None = None,
    random_weights: bool = False,
    sizes: TinySizes | None = None,
) -> None:
    """Write a tiny LLaVA-1.5 folder that plain transformers loads.

    `tokenizer` names a folder with a SentencePiece `tokenizer.model`; without it the shipped one is used.
    Raises UserError where the tokenizer is missing.
    """
    sizes = sizes or TinySizes()
    folder = tokenizer or SHIPPED
    text = load_tokenizer(folder)
    model = build_model(sizes, text, seed)
    save_model(model, build_processor(sizes, text), out)
    save_tokenizer(text, folder / "tokenizer.model", out)
