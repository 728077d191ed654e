"""SentencePiece tokenizers of the LLaMA kind, with the two tokens LLaVA adds: `<image>` and `<pad>`."""

import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import sentencepiece as spm
from transformers import LlamaTokenizer

from plast_train.errors import UserError

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"


def load_tokenizer(folder: Path) -> LlamaTokenizer:
    """Read `folder/tokenizer.model` (SentencePiece BPE) and add `<image>` and `<pad>` after its vocabulary.

    `<s>` is put before every text, as LLaVA-1.5 does. Raises UserError where the file is missing.
    """
    if not (folder / "tokenizer.model").is_file():
        raise UserError(
            f"{folder}/tokenizer.model: no such file; name a folder with a SentencePiece tokenizer.model"
        )
    tokenizer = LlamaTokenizer.from_pretrained(
        folder, add_bos_token=True, legacy=False, padding_side="left", model_max_length=2048
    )
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN], "pad_token": PAD_TOKEN})
    return tokenizer


def save_tokenizer(tokenizer: LlamaTokenizer, model_file: Path, out: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and a copy of `tokenizer.model` into `out`."""
    tokenizer.save_pretrained(out)
    target = out / "tokenizer.model"
    if model_file.resolve() != target.resolve():
        shutil.copyfile(model_file, target)


def train_tokenizer(texts: Iterable[str], out: Path, vocabulary: int) -> None:
    """Train a SentencePiece BPE tokenizer with byte fallback on `texts`, as `out/tokenizer.model`."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").unlink(missing_ok=True)  # an older one would be read in its place
    (out / "tokenizer.model").write_bytes(model.getvalue())
