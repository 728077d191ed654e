"""The mutants of `mutation.py`: mistakes in the formulas that the results rest on.

`place` is the file or folder in which the snippet `old` must be found exactly once, so that the list follows
code that moves within its room. A mutant whose change nobody could observe says why in `equivalent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    place: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""


def _group(
    name: str, place: str, tests: tuple[str, ...], changes: dict[str, tuple[str, str]]
) -> Iterator[Mutant]:
    for what, (old, new) in changes.items():
        yield Mutant(f"{name}: {what}", place, old, new, tests)


UNIT = "tests/unit"
TREE = f"{UNIT}/data/test_token_tree.py"
PARITY = f"{UNIT}/data/test_packing_parity.py"

EVALUATE = "tests/distributed/evaluation/test_evaluate.py"

MUTANTS: list[Mutant] = [
    *_group(
        "mask",
        "plast_train/lvlm",
        (f"{PARITY}::test_hidden_states_of_a_packed_row",),
        {
            "the future is seen": ("same_tree & own_branch & (key <= query)", "same_tree & own_branch"),
            "a token does not see itself": ("own_branch & (key <= query)", "own_branch & (key < query)"),
            "trees see each other": ("return same_tree & own_branch &", "return own_branch &"),
            "branches see each other": ("same_tree & own_branch & (key", "same_tree & (key"),
            "branches do not see the prefix": (
                "(branch[key] == 0) | (branch[key] == branch[query])",
                "branch[key] == branch[query]",
            ),
        },
    ),
    *_group(
        "packing",
        "plast_train/data/packing.py",
        (TREE, f"{PARITY}::test_loss_and_gradients_of_a_packed_row"),
        {
            "positions do not restart": (
                "positions += range(tree.prefix, sequence.length)",
                "positions += range(len(ids) - len(rest), len(ids))",
            ),
            "prefix one longer": ("if position < self.prefix", "if position <= self.prefix"),
            "first branch is the prefix": ("enumerate(tree.sequences, start=1)", "enumerate(tree.sequences)"),
            "labels predicted from themselves": (
                "placed.span(sequence.last_prompt_position, sequence.length - 1)",
                "placed.span(sequence.last_prompt_position + 1, sequence.length)",
            ),
            "budget exceeded by one tree": ("used[kind] + tree.tokens > budget", "used[kind] > budget"),
            "rows of two kinds": ("kind = tree.image is not None", "kind = True"),
            "shortest first": ("key=lambda t: -t.tokens", "key=lambda t: t.tokens"),
            "a repeated row of a round counts": (
                "RankRow(number, tuple(rows[number]), counts)",
                "RankRow(number, tuple(rows[number]), True)",
            ),
            "a repeated row of a step counts": (
                "RankRow(chosen, tuple(rows[chosen]), counts)",
                "RankRow(chosen, tuple(rows[chosen]), True)",
            ),
            "an empty row is run": ("number < len(rows) and bool(rows[number])", "number < len(rows)"),
        },
    ),
    *_group(
        "token tree",
        "plast_train/data/token_tree.py",
        (TREE,),
        {
            "prefix swallows what is read": (
                "min(shared, *(s.last_prompt_position for s in sequences))",
                "shared",
            ),
            "prefix of the first and last": (
                "first, last = min(tokens), max(tokens)",
                "first, last = tokens[0], tokens[-1]",
            ),
            "reply's first token is read": ("self.length - 1 - self.labels", "self.length - self.labels"),
            "prefix counted for each branch": (
                "self.prefix + sum(s.length - self.prefix for s in self.sequences)",
                "sum(s.length for s in self.sequences)",
            ),
            "a tree of the budget is split": ("if tree.tokens <= budget", "if tree.tokens < budget"),
        },
    ),
    *_group(
        "tokens",
        "plast_train/lvlm/prompts.py",
        (
            f"{PARITY}::test_prompts_are_the_processors_own_tokens",
            f"{PARITY}::test_labels_are_the_reply_and_the_end",
        ),
        {
            "question one token longer": ("if a < stop and b > start", "if a <= stop and b > start"),
            "question begins a token early": ("if a < stop and b > start", "if a < stop and b >= start"),
            "first label is lost": ("sum(a >= len(text.prompt)", "sum(a > len(text.prompt)"),
            "question moved by the placeholder too": ("first += count - 1", "first += count"),
            "English is translated to English": (
                'if language != "en" and language in records',
                "if language in records",
            ),
        },
    ),
    Mutant(
        "tokens: question before the image is moved",
        "plast_train/lvlm/prompts.py",
        "if first > at:",
        "if True:",
        (f"{PARITY}::test_prompts_are_the_processors_own_tokens",),
        equivalent="in every chat format the image comes before the question",
    ),
    *_group(
        "sampling",
        "plast_train/data/sampling.py",
        (TREE,),
        {
            "held-back records are trained on": (
                "return [i for i in range(total) if i not in held], sorted(held)",
                "return list(range(total)), sorted(held)",
            ),
            "nothing left to train on": ("min(held_back, total - 1)", "min(held_back, total)"),
            "every epoch in one order": ('f"order {seed} {epoch}"', 'f"order {seed}"'),
            "order without the seed": ('f"order {seed} {epoch}"', 'f"order {epoch}"'),
            "last part of an epoch is lost": ("math.ceil(epochs * sum(", "math.floor(epochs * sum("),
            "samples counted as labels": ("labels=sum(s.labels for s in sequences)", "labels=len(sequences)"),
            "incomplete records are probed": (
                "numbers = complete(records, languages)",
                "numbers = list(range(len(records)))",
            ),
            "rows for the smallest step": ("rows = max(_rows_needed", "rows = min(_rows_needed"),
        },
    ),
    *_group(
        "mixing",
        "plast_train/data/mixing.py",
        (f"{UNIT}/data/test_mixing.py",),
        {
            "temperature upside down": (
                "count ** (1.0 / sampling.temperature)",
                "count ** sampling.temperature",
            ),
            "more of what overlaps": ("(1.0 - sum(ratios) / len(ratios))", "(sum(ratios) / len(ratios))"),
            "easiest for hardest": (
                '-1.0 if sampling.keep_by == "hardest" else 1.0',
                '1.0 if sampling.keep_by == "hardest" else -1.0',
            ),
            "share rounded down": ("round(sampling.keep * len(keys))", "int(sampling.keep * len(keys))"),
            "drawn with replacement": (
                "rng.sample(own[language], rest)",
                "rng.choices(own[language], k=rest)",
            ),
            "smallest remainder first": (
                "(quotas[language] - shares[language] * total, language)",
                "(shares[language] * total - quotas[language], language)",
            ),
            "weights are not used": (
                "sampling.language_weights.get(languages[language], 1.0) * size",
                "1.0 * size",
            ),
        },
    ),
    *_group(
        "counts",
        "plast_train/neurons/counts.py",
        (f"{UNIT}/neurons/test_counts.py",),
        {
            "a gate of zero is open": ("[row.last] > 0", "[row.last] >= 0"),
            "shared by either": ("fires & fires[row.english]", "fires | fires[row.english]"),
            "shared with the first sequence": (
                "english_at[key.record] for key in keys",
                "0 for key in keys",
            ),
            "negative gates count in the text": ("[row.text] > 0)", "[row.text] != 0)"),
            "read where the branch begins": (
                "p.at(p.sequence.last_prompt_position) for p",
                "p.branch_at for p",
            ),
            "text of one language": ("[language for _, language in text]", "[0 for _ in text]"),
            "merged tables replace": ("table += other[name].to(table.device)", "table.copy_(other[name])"),
            "slots in the order met": (
                "slots[key.record] for key in keys",
                "list(slots.values())[0] for key in keys",
            ),
        },
    ),
    *_group(
        "parts",
        "plast_train/activations/collect.py",
        (f"{UNIT}/activations/test_parts.py",),
        {
            "counted again in the next part": ("            table.zero_()", "            pass"),
            "every rank adds all parts": ("names[self.rank :: self.world]", "names"),
            "parts of another collection": ('part.metadata()["identity"] == self.identity', "True"),
        },
    ),
    *_group(
        "statistics",
        "plast_train/neurons/statistics.py",
        (f"{UNIT}/neurons/test_selection.py",),
        {
            "MSD with one degree less": (
                "for n in deviations) / len(deviations)",
                "for n in deviations) / (len(deviations) - 1)",
            ),
            "MSD of absolute deviations": ("(n - centre) ** 2", "abs(n - centre)"),
            "MSD counts English itself": ("row[:english] + row[english + 1 :]", "row"),
            "union counts the shared twice": ("size + size_en - both", "size + size_en"),
            "overlap relative to the other": ("_ratio(both, size_en)", "_ratio(both, size)"),
            "empty sets share nothing": ("np.where(whole == 0, 1.0,", "np.where(whole == 0, 0.0,"),
            "frequencies not on one denominator": ("np.minimum(scaled_p, scaled_q)", "np.minimum(p, q)"),
            "active relative to English's tokens": ("/ int(tokens[g])", "/ int(tokens[english])"),
            "curve divided by all languages": (
                "row[others].tolist()) / len(others)",
                "row[others].tolist()) / len(row)",
            ),
        },
    ),
    *_group(
        "selection",
        "plast_train/neurons/strategies.py",
        (f"{UNIT}/neurons/test_selection.py",),
        {
            "threshold itself exceeds": ("msd[layer] > threshold]", "msd[layer] >= threshold]"),
            "threshold over the other layers": ('if over == "all_layers"', 'if over != "all_layers"'),
            "plateau of fewer layers": ("curve[len(curve) // 2 :]", "curve[len(curve) // 2 + 1 :]"),
            "plateau is the mean": ("np.median(curve", "np.mean(curve"),
            "plateau reached from above alone": (
                "curve >= plateau - tolerance",
                "curve > plateau - tolerance",
            ),
            "tolerance is not used": ("curve >= plateau - tolerance", "curve >= plateau"),
            "first layer of the plateau too": ("tuple(range(reached))", "tuple(range(reached + 1))"),
            "lowest MSD": ("key=lambda layer: (-msd[layer], layer)", "key=lambda layer: (msd[layer], layer)"),
            "deeper of equals": (
                "key=lambda layer: (-msd[layer], layer)",
                "key=lambda layer: (-msd[layer], -layer)",
            ),
            "seed is not used": ("random.Random(seed).sample(", "random.Random(0).sample("),
        },
    ),
    *_group(
        "Holm",
        "plast_train/scoring/significance.py",
        (f"{UNIT}/scoring/test_significance.py::test_holm_on_random_values",),
        {
            "Bonferroni": ("(len(values) - rank) * values[at]", "len(values) * values[at]"),
            "not monotone": (
                "max(highest, min(1.0, (len(values) - rank) * values[at]))",
                "min(1.0, (len(values) - rank) * values[at])",
            ),
            "above 1": (
                "min(1.0, (len(values) - rank) * values[at])",
                "(len(values) - rank) * values[at]",
            ),
        },
    ),
    *_group(
        "significance",
        "plast_train/scoring/significance.py",
        (f"{UNIT}/scoring/test_significance.py", f"{UNIT}/scoring/test_comparisons.py"),
        {
            "McNemar one-sided": (
                "stats.binomtest(only_base, differing, 0.5)",
                'stats.binomtest(only_base, differing, 0.5, alternative="less")',
            ),
            "McNemar over all": (
                "differing = only_base + only_trained",
                "differing = only_base + only_trained + 1",
            ),
            "units weigh as many rows": ("(gains / counts.sum(1, keepdims=True))", "(gains)"),
            "interval of 90 %": ("LEVEL = 0.95", "LEVEL = 0.90"),
            "not paired": ("paired=True", "paired=False"),
            "one unit is enough": ("if units < 2:", "if units < 1:"),
            "rows weigh, not languages": (
                "np.mean([g / n for g, n in zip(sums[:languages], sums[languages:], strict=True)], axis=0)",
                "sum(sums[:languages]) / sum(sums[languages:])",
            ),
        },
    ),
    *_group(
        "circular and pairs",
        "plast_train/scoring",
        (f"{UNIT}/scoring/test_scores.py", f"{UNIT}/scoring/test_comparisons.py"),
        {
            "one right row is enough": ("sum(all(map(right, rows))", "sum(any(map(right, rows))"),
            "changes of any row": ("(all(after) - all(before), 1)", "(any(after) - any(before), 1)"),
            "pairs by the group": ('"pairs": "pair"', '"pairs": "group"'),
            "a row without a pair belongs to none": (
                'questions[record["index"] if question is None else question]',
                "questions[question]",
            ),
            "last of equal logits": ("max(sorted(logits),", "max(sorted(logits, reverse=True),"),
            "first right answer alone": (
                'in (record.get("answers") or [record["answer"]])',
                '== (record.get("answers") or [record["answer"]])[0]',
            ),
            "any gain is formatting": (
                "(generated or 0) > 0 and (option_logits or 0) <= 0",
                "(generated or 0) > 0",
            ),
            "English is among the others": (
                "others = [own for language, own in units.items() if language != ENGLISH]",
                "others = list(units.values())",
            ),
        },
    ),
    *_group(
        "matching",
        "plast_train/tasks/matching.py",
        (f"{UNIT}/tasks/test_matching.py", f"{UNIT}/scoring/test_replies.py"),
        {
            "first of several letters": (
                'if rule == "parrot2024":\n        return letters[0] if len(letters) == 1 else None',
                'if rule == "parrot2024":\n        return letters[0] if letters else None',
            ),
            "letter one word nearer to the end": (
                ">= len(words) - _LAST_WORDS",
                "> len(words) - _LAST_WORDS",
            ),
            "case of the answer counts": ('([ABCD])", re.IGNORECASE)', '([ABCD])")'),
            "long replies are searched for texts": (
                'if rule == "vlmevalkit2026" and len(reply) > 2',
                "if False and len(reply) > 2",
            ),
            "case of the text counts": ("reply = reply.lower()", "reply = reply + ''"),
            "refusal before letters": ("if not letters and REFUSAL in words", "if REFUSAL in words"),
            "characters are not composed": ('unicodedata.normalize("NFC", text)', "text"),
            "case of open answers counts": ("_composed(text).casefold()", "_composed(text)"),
            "an empty reply can be right": ("if said and form(answer) == said", "if form(answer) == said"),
        },
    ),
    *_group(
        "hashes",
        "plast_train/checkpoint",
        (f"{UNIT}/checkpoint",),
        {
            "manifest's own hash": ('manifest.get("sha256") != _content_hash(manifest)', "False"),
            "shard's hash": ('if found != entry["sha256"]', "if False"),
            "manifest's white space": ("if to_json(manifest) != text", "if False"),
        },
    ),
    *_group(
        "benchmark hashes",
        "plast_train/tasks",
        (f"{UNIT}/test_inputs.py",),
        {
            "pictures do not count": ("if not names:", "if True:"),
            "folders count": ("enumerate(sorted(values), start=1)", "enumerate(values, start=1)"),
        },
    ),
    Mutant(
        "question hash: the picture does not count",
        "plast_train/scoring",
        'content.update(self.item.image_bytes or b"")',
        "pass",
        (f"{UNIT}/evaluation/test_predictions.py",),
    ),
    *_group(
        "stage records",
        "plast_train/stages.py",
        (f"{UNIT}/test_stages.py", f"{UNIT}/test_stage_settings.py"),
        {
            "clipping does not count": ('        "train.gradient_clipping",\n', ""),
            "matching does not count": ('        "evaluate.matching",\n', ""),
            "sampling does not count": ('        "sampling",\n', ""),
            "one stage before is enough": (
                "== record_hash(run, needed) and is_current(needed, run)",
                "== record_hash(run, needed)",
            ),
            "a stage needs none before it": ('"evaluate": ("export",)', '"evaluate": ()'),
        },
    ),
    Mutant(
        "stage records: inputs do not count",
        "plast_train/run_folder.py",
        'record["settings"] != settings or record["inputs"] != inputs',
        'record["settings"] != settings',
        (f"{UNIT}/test_stage_settings.py", f"{UNIT}/test_inputs.py"),
    ),
    *_group(
        "freezing",
        "plast_train/lvlm/freezing.py",
        (f"{UNIT}/lvlm/test_freezing.py",),
        {
            "nothing is frozen": (
                "    model.requires_grad_(False)\n    for parameter in trained",
                "    for parameter in trained",
            ),
            "the vision tower is trained": (
                "{id(p) for p in model.get_submodule(family.vision_path).parameters()}",
                "set()",
            ),
            "the projector is always trained": ("if not images:", "if False:"),
            "one layer too many is allowed": ("0 <= number < len(decoder)", "0 <= number <= len(decoder)"),
            "the head is projector": (
                "[model.get_submodule(family.vision_path), family.decoder(model), head]",
                "[model.get_submodule(family.vision_path), family.decoder(model)]",
            ),
        },
    ),
    Mutant(
        "freezing: FFN and attention exchanged",
        "plast_train/lvlm/families.py",
        'ffn_path="mlp",\n        attention_path="self_attn",',
        'ffn_path="self_attn",\n        attention_path="mlp",',
        (f"{UNIT}/lvlm/test_freezing.py",),
    ),
    *_group(
        "frozen proof",
        "plast_train/training/freezing_proof.py",
        (f"{UNIT}/lvlm/test_freezing.py",),
        {
            "trained tensors are hashed": ("if name not in trained", "if name in trained"),
            "no change is a change": ("after[n] != before[n]", "False"),
            "gradients are not compared": ("if with_gradient != set(trained)", "if False"),
        },
    ),
    *_group(
        "LoRA",
        "plast_train/lvlm/lora.py",
        (f"{UNIT}/lvlm/test_freezing.py",),
        {
            "merged without α/r": ("self._scale * (second @ first)", "(second @ first)"),
            "ranks begin with other adapters": ("        torch.manual_seed(seed)\n", ""),
        },
    ),
    *_group(
        "learning rate",
        "plast_train/training/engine.py",
        (f"{UNIT}/training/test_engine.py",),
        {
            "begins at 0": ("(step + 1) / warmup", "step / warmup"),
            "linear decay": ("0.5 * (1.0 + math.cos(math.pi * progress))", "(1.0 - progress)"),
            "never reaches 0": ("max(1, total_steps - warmup)", "max(1, total_steps)"),
            "warm-up one step longer": ("if step < warmup", "if step <= warmup"),
            "warm-up is rounded down": (
                "math.ceil(train.warmup_fraction * total_steps)",
                "math.floor(train.warmup_fraction * total_steps)",
            ),
        },
    ),
    *_group(
        "loss",
        "plast_train/training",
        (f"{UNIT}/training/test_loop.py",),
        {
            "weight without the ranks": (
                "ranks.world * len(batch.rows) / batch.step.labels",
                "len(batch.rows) / batch.step.labels",
            ),
            "weight without the rows": (
                "ranks.world * len(batch.rows) / batch.step.labels",
                "ranks.world / batch.step.labels",
            ),
            "mean over samples": (
                "ranks.world * len(batch.rows) / batch.step.labels",
                "ranks.world * len(batch.rows) / batch.step.samples",
            ),
            "repeated rows have a gradient": ("(weight if rank_row.counts else 0.0)", "weight"),
            "logged for one rank": (
                "float(ranks.sum(total)) / batch.step.labels",
                "float(total) / batch.step.labels",
            ),
            "rate of the next step": ("learning_rate(step - 1, total", "learning_rate(step, total"),
            "rate is not set": ("            set_learning_rate(engine, rate)\n", ""),
            "resumed at the first row": (
                "batches(training.plan.steps[start:]",
                "batches(training.plan.steps[:]",
            ),
            "resumed one step early": ("ranks), start + 1)", "ranks), start)"),
        },
    ),
    *_group(
        "validation",
        "plast_train/training/losses.py",
        (f"{UNIT}/training/test_loop.py",),
        {
            "mean over records": ("float(part.sum()), len(part)", "float(part.mean()), 1.0"),
            "repeated rows count": (
                "if rank_row.counts:\n                for key, part",
                "if True:\n                for key, part",
            ),
        },
    ),
    *_group(
        "metrics",
        "plast_train/training/meters.py",
        (f"{UNIT}/training/test_loop.py",),
        {
            "last step is lost": ('["step"] <= start', '["step"] < start'),
            "steps appear twice": ('if json.loads(line)["step"] <= start', 'if json.loads(line)["step"]'),
        },
    ),
    *_group(
        "DeepSpeed",
        "plast_train/runtime/deepspeed_config.py",
        (f"{UNIT}/runtime/test_deepspeed_config.py",),
        {
            "batch of one rank": (
                '"train_batch_size": world * micro_steps',
                '"train_batch_size": micro_steps',
            ),
            "micro-steps of all ranks": (
                '"gradient_accumulation_steps": micro_steps',
                '"gradient_accumulation_steps": world * micro_steps',
            ),
            "DeepSpeed's own clipping": (
                'settings["gradient_clipping"] = config.train.gradient_clipping',
                'settings.setdefault("gradient_clipping", 1.0)',
            ),
            "overflow is not checked": ('"check_grad_overflow": True}', '"check_grad_overflow": False}'),
            "precision of the other kind": (
                'wanted = config.model.dtype == "bfloat16"',
                'wanted = config.model.dtype != "bfloat16"',
            ),
            "auto is left": ("elif value == AUTO:", "elif False:"),
            "offload anywhere": ('if device not in ("none", "cpu")', "if False"),
            "one stage too many": ("not in (1, 2, 3):", "not in (0, 1, 2, 3):"),
        },
    ),
    *_group(
        "resuming",
        "plast_train/checkpoint",
        (f"{UNIT}/checkpoint",),
        {
            "values at another place": (
                "view[low - owned.start : high - owned.start].copy_(values)",
                "view[: high - low].copy_(values)",
            ),
            "values from another place": ("part[:, low - start : high - start]", "part[:, : high - low]"),
            "masters at another place": (
                "masters[name].view(-1)[start : start + len(values)] = values",
                "masters[name].view(-1)[: len(values)] = values",
            ),
            "Adam begins anew": ('set_adam_step(engine, manifest["step"])', "set_adam_step(engine, 0)"),
            "oldest first": (
                "if _STEP_FOLDER.fullmatch(p.name)), reverse=True)",
                "if _STEP_FOLDER.fullmatch(p.name)))",
            ),
            "one more is kept": ("if p.name <= final.name][keep:]", "if p.name <= final.name][keep + 1 :]"),
            "another base is taken": ('if found.get("base") != wanted.get("base")', "if False"),
            "other tensors are taken": ('if found.get("parameters") != wanted.get("parameters")', "if False"),
            "random state of other ranks": (
                'manifest["world_size"] == ranks.world',
                'manifest["world_size"] != ranks.world',
            ),
            "room of one shard": ("room = checkpoint_bytes(identity.num_elements, ranks.world)", "room = 0"),
        },
    ),
    Mutant(
        "evaluation: the end's own tie does not count",
        "plast_train/evaluation",
        "ended.cumsum(1) - ended == 0",
        "ended.cumsum(1) == 0",
        (f"{UNIT}/evaluation/test_near_ties.py",),
    ),
    *_group(
        "evaluation",
        "plast_train/scoring",
        (
            f"{EVALUATE}::test_inputs_are_the_processors_own",
            f"{EVALUATE}::test_batches_are_of_like_length_longest_first",
            f"{EVALUATE}::test_letters_are_the_tokens_of_replies",
        ),
        {
            "shortest first": ("own.sort(key=lambda pair: -pair[0])", "own.sort(key=lambda pair: pair[0])"),
            "padded on the right": ('padding_side="left"', 'padding_side="right"'),
            "a reply's last token": ("tokens[letter] = whole[len(before)]", "tokens[letter] = whole[-1]"),
        },
    ),
]
