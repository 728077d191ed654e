"""The training samples of a run: which records, which of their pairs, in which steps."""

from __future__ import annotations

from plast_train.context import Context
from plast_train.data.mixing import by_difficulty, language_shares, some_of_each_template
from plast_train.data.sampling import TrainingPlan, plan_training, split_records
from plast_train.data.token_tree import TokenSequence
from plast_train.run_folder import read_json
from plast_train.training.difficulty import pair_losses


def plan_samples(context: Context) -> tuple[TrainingPlan, list[list[TokenSequence]]]:
    """The planned steps, and the samples of each held-back record. To be called by every rank while the model
    is the base: `sampling.keep` asks it how hard the pairs are.

    Raises:
        Interrupted: see `difficulty.pair_losses`.
    """
    config, records, sampling = context.config, context.records, context.config.sampling
    numbers, held_back = split_records(len(records), config.train.validation_records, config.seed)
    if sampling.per_template is not None:
        english = [record.questions["en"] for record in records]
        numbers = some_of_each_template(english, numbers, sampling.per_template, config.seed)
    samples = list(context.prompter.translations(records, numbers, config.train))
    held = list(context.prompter.translations(records, held_back, config.train))
    if sampling.keep_by is not None:
        samples = by_difficulty(samples, pair_losses(context, samples), sampling)
    overlap = read_json(context.run.summary)["overlap"] if sampling.languages == "overlap" else {}
    shares = language_shares(samples, sampling, config.data.languages, overlap)
    if shares is not None:
        told = ", ".join(f"{config.data.languages[k]} {share:.1%}" for k, share in shares.items())
        context.ranks.say(f"shares of the languages in an epoch: {told}")
    plan = plan_training(
        samples,
        config.train.global_batch,
        config.train.tokens_per_row,
        config.seed,
        config.train.epochs,
        config.train.max_steps,
        shares,
    )
    return plan, held
