"""A study: one YAML file with a question, and the runs that answer it.

    question: Does the loss follow a power law of compute?
    base: {config: configs/one_gpu.yaml, train_data_dir: data/mine}   # options of all runs
    axes: {depth: [8, 12, 16], base_hps.eta0: [5e-4, 1e-3]}           # every combination
    zip: [{train_model: [transformer, samba], micro_bsz: [8, 4]}]     # lists that go together
    budget: {chinchilla: [0.5, 1, 2]}                                 # or tokens, or flops
    seeds: 3                                                          # or a list of seeds
    conditions:
    - drop: depth > 12 and base_hps.eta0 > 5e-4
    - {if: depth >= 12, set: {micro_bsz: 4}}
    derived: {total_bsz: 2 ** round(log2(tokens / 2000))}             # options, or values for names and conditions;
                                                                      # each on a line of its own where it has commas
    name: d{depth}_lr{base_hps.eta0}_{budget}x_s{seed}

`isoflop:` and `trunk:` are other budgets (see lit_gpt/lab/trunk.py); `refine:` adds rates (see lit_gpt/lab/refine.py).
A CSV table with a column `name` and columns of options is a study, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.config.cli import build_parser
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.expressions import evaluate
from lit_gpt.lab.facts import BUDGETS
from lit_gpt.lab.refine import Refine, check_rates, read_refine
from lit_gpt.lab.rows import OURS, Row, check_rows, of_each, read_table, word_of
from lit_gpt.lab.trunk import trunk_rows
from lit_gpt.lab.values import Values, as_number, filled, is_option
from lit_gpt.utils.files import regular

PARTS = (
    "question",
    "base",
    "axes",
    "zip",
    "budget",
    "isoflop",
    "trunk",
    "seeds",
    "conditions",
    "derived",
    "name",
    "refine",
)
MOST_ROWS = 10_000  # a slip in an axis, and not a study


@dataclass(frozen=True)
class Study:
    """What is to be run. base: options of all rows, which the rows have too. common: words of the command line for all
    rows of a table, which are no part of them. variants: row -> the same row with another value of an option; its name
    and derived values follow.
    """

    rows: tuple[Row, ...]
    question: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)
    common: tuple[str, ...] = ()
    refine: Refine | None = None
    variants: Mapping[str, Callable[[str, Any], Row]] = field(default_factory=dict, compare=False)

    def resolved(self) -> dict[str, Any]:
        """What study.yaml in the output says: every row with its options."""
        rows = [row.note() for row in self.rows]
        facts = {"question": self.question, "base": dict(self.base), "rows": rows}
        return facts | ({"refine": vars(self.refine)} if self.refine else {})


def read_study(path: Path, extra: Mapping[str, Any]) -> Study:
    """The study of a YAML file or a CSV table, with `extra` options for all runs that overrule those of `base`.

    Raises UserError for a file that cannot be read, and for parts that are not those of a study.
    """
    for key in extra:
        _check_option(key, "what follows --", path)
    if path.suffix == ".csv":
        rows = [Row(row.name, {**extra, **row.options}) for row in read_table(path)]
        return Study(tuple(rows), base=extra)
    parts = _read_yaml(path)
    base = {**_options(parts.get("base"), "base", path), **extra}
    refine = read_refine(parts.get("refine"), path)
    if refine and "trunk" in parts:
        raise UserError(f"{path} has both refine and trunk, whose runs go on from one another. Keep one of them.")
    refine = refine and replace(refine, derived=tuple(_mapping(parts.get("derived"), "derived", path)))
    combined = [_Combined(*found) for found in _combinations(parts, base, extra, path)]
    made = list(zip(combined, of_each(combined, lambda one: one.rows(parts, path), _Combined.label)))
    rows = [row for _, of_one in made for row in of_one]
    check_rows(rows, path, {key for row in rows for key in row.options})
    if refine:
        check_rates(refine, rows, path)
    variants = {row.name: partial(_variant, one, parts, path) for one, of_one in made for row in of_one}
    return Study(tuple(rows), str(parts.get("question", "")), base, (), refine, variants)


def _variant(one: _Combined, parts: Mapping[str, Any], path: Path, key: str, value: Any) -> Row:
    (row,) = replace(one, chosen={**one.chosen, key: value}, fixed=(key,)).rows(parts, path)
    return row


@dataclass(frozen=True)
class _Combined:
    """One combination of the axes, before its budget is known.

    chosen: its options, and values of axes that are none. varied: keys that differ between rows. fixed: options that
    are not derived, whatever the study says.
    """

    chosen: dict[str, Any]
    budget: tuple[str, Any] | None
    varied: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    def label(self) -> str:
        """What is particular to it, for messages about it."""
        values = {key: self.chosen.get(key) for key in self.varied if key != "budget"}
        values |= {self.budget[0]: self.budget[1]} if self.budget else {}
        return " ".join(f"{key} {word_of(value)}" for key, value in values.items()) or "the one run"

    def rows(self, parts: Mapping[str, Any], path: Path) -> list[Row]:
        """Its row; those of a trunk; none where a condition drops it."""
        said = _mapping(parts.get("derived"), "derived", path)
        derived = {key: str(text) for key, text in said.items() if key not in self.fixed}
        options = {key: value for key, value in self.chosen.items() if is_option(key)}
        extra = {key: value for key, value in self.chosen.items() if key not in options}
        values = Values(options, derived, self.budget, extra)
        if not _kept(parts.get("conditions") or [], values, path):
            return []
        options = values.settled()
        if "max_tokens" in options and (self.budget or "trunk" in parts):
            raise UserError(f"{path} has max_tokens and a budget, and each says how long runs are. Keep one of them.")
        options |= {"max_tokens": values.tokens()} if self.budget else {}
        name = filled(str(parts.get("name") or _template(self.varied)), values)
        if "trunk" in parts:
            return trunk_rows(name, options, _mapping(parts["trunk"], "trunk", path))
        return [Row(name, options)]


def _combinations(
    parts: Mapping[str, Any], base: Mapping[str, Any], extra: Mapping[str, Any], path: Path
) -> Iterator[tuple[dict[str, Any], tuple[str, Any] | None, tuple[str, ...]]]:
    """(options, budget, varied keys) of every combination of axes, zips, budgets and seeds."""
    factors = [[{key: value} for value in values] for key, values in _axes(parts.get("axes"), "axes", path).items()]
    factors += [_zipped(group, path) for group in _list(parts.get("zip"), "zip", path)]
    budgets, sizes = _budgets(parts, path)
    factors += sizes
    factors += _seeds(parts, path)
    _check_keys([key for factor in factors for key in factor[0]], parts, extra, path)
    total = len(budgets)
    for factor in factors:
        total *= len(factor)
    if total > MOST_ROWS:
        raise UserError(f"{path} means {total:,} runs; a study has at most {MOST_ROWS:,}. Shorten its lists.")
    varied = tuple(key for factor in factors if len(factor) > 1 for key in factor[0])
    varied += ("budget",) if len(budgets) > 1 else ()
    for chosen in product(*factors):
        options = dict(base)
        for one in chosen:
            options |= one
        for budget in budgets:
            yield dict(options), budget, varied


def _seeds(parts: Mapping[str, Any], path: Path) -> list[list[dict[str, Any]]]:
    """The factor of the seeds, none where the study has no such part."""
    given = parts.get("seeds")
    if isinstance(given, bool) or (isinstance(given, int) and not 1 <= given <= MOST_ROWS):
        raise UserError(f"{path}: seeds is {given!r}; it must be a count from 1 to {MOST_ROWS:,}, or a list as [0, 7].")
    seeds = range(given) if isinstance(given, int) else _list(given, "seeds", path)
    return [[{"seed": seed} for seed in seeds]] if seeds else []


def _check_keys(keys: Sequence[str], parts: Mapping[str, Any], extra: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for axes and derived values that do nothing, and for what they would overrule in silence."""
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"{path}: {twice[0]!r} is given twice among axes, zip, isoflop and seeds. Keep one of them.")
    derived = _mapping(parts.get("derived"), "derived", path)
    if taken := [key for key in extra if key in (*keys, *derived)]:
        raise UserError(f"--{taken[0]} would change nothing: {path} gives it to each run. Edit that file.")
    read = f"{list(derived.values())} {parts.get('conditions')} {parts.get('name')}"
    for key in (*keys, *derived):
        if not is_option(key) and not re.search(rf"\b{re.escape(key)}\b", read):
            raise UserError(
                f"{path}: {key!r} is no option of pretrain.py, and nothing under derived, conditions or name reads it."
                f"{did_you_mean(key, build_parser().run_options)}"
            )


def _check_option(key: str, where: str, path: Path) -> None:
    """Raise UserError for a name that is no option of pretrain.py, and for one that the runner gives."""
    if not is_option(key):
        known = build_parser().run_options
        raise UserError(f"{path}: {where} has {key!r}, which is no option of pretrain.py.{did_you_mean(key, known)}")
    if key in OURS:
        raise UserError(f"{path}: {where} has the option {key!r}, which the runner sets itself. Remove it.")


def _budgets(parts: Mapping[str, Any], path: Path) -> tuple[list[tuple[str, Any] | None], list[list[dict[str, Any]]]]:
    """The budgets that every combination gets, and the factors of sizes that `isoflop` adds."""
    if len(both := [key for key in ("budget", "isoflop", "trunk") if key in parts]) > 1:
        raise UserError(f"{path} has both {' and '.join(both)}. Keep one of them: each says how long runs are.")
    if "isoflop" in parts:
        given = dict(_mapping(parts["isoflop"], "isoflop", path))
        flops = _list(given.pop("flops", None), "isoflop: flops", path)
        if not flops or not given:
            raise UserError(f"{path}: isoflop needs 'flops', a list of budgets, and sizes, such as depth: [4, 6, 8].")
        return [("flops", one) for one in flops], [_zipped(given, path)]
    if "budget" not in parts:
        return [None], []
    given = _mapping(parts["budget"], "budget", path)
    if len(given) != 1 or next(iter(given)) not in BUDGETS:
        raise UserError(f"{path}: budget is one of {', '.join(BUDGETS)} and its values, such as chinchilla: [0.5, 1].")
    return [(kind, one) for kind, values in given.items() for one in _list(values, f"budget: {kind}", path)], []


def _kept(conditions: Sequence[Any], values: Values, path: Path) -> bool:
    """Apply the conditions in their order to the options of `values`; False where one drops the row."""
    for condition in _list(conditions, "conditions", path):
        given = {key: value for key, value in _mapping(condition, "a condition", path).items() if value is not None}
        if set(given) == {"drop"}:
            if evaluate(str(given["drop"]), values):
                return False
        elif set(given) == {"if", "set"}:
            if evaluate(str(given["if"]), values):
                values.options.update(_options(given["set"], "set", path))
        else:
            raise UserError(
                f"{path}: the condition {condition} must be 'drop: EXPRESSION' or 'if: EXPRESSION' with 'set: OPTIONS'."
            )
    return True


def _template(varied: Sequence[str]) -> str:
    """The name where the study gives none: what differs, such as depth-8_eta0-0.001."""
    return "_".join(f"{key.rpartition('.')[2]}-{{{key}}}" for key in varied) or "run"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        file = regular(path, "Give the YAML file of a study; launch_scripts/studies has some.")
        parts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    parts = dict(_mapping(parts, "the study", path))
    for key in parts:
        if key not in PARTS:
            raise UserError(
                f"{path}: a study has no part {key!r}.{did_you_mean(key, PARTS)} It has {', '.join(PARTS)}."
            )
    return parts


def _options(given: Any, where: str, path: Path) -> dict[str, Any]:
    """Options with numbers as numbers; base_hps may have lines of its own."""
    found = dict(_mapping(given, where, path))
    inner = found.pop("base_hps", {})
    found |= {f"base_hps.{key}": value for key, value in _mapping(inner, "base_hps", path).items()}
    for key in found:
        _check_option(key, where, path)
    return {key: _read_number(value) for key, value in found.items()}


def _read_number(value: Any) -> Any:
    """YAML takes 1e-3 for a text, so such texts are numbers here; 10B stays as it is typed."""
    number = as_number(value)
    return number if isinstance(value, str) and value[-1:].isdigit() else value


def _axes(given: Any, where: str, path: Path) -> dict[str, list[Any]]:
    axes = {key: _list(values, f"{where}: {key}", path) for key, values in _mapping(given, where, path).items()}
    for key, values in axes.items():
        if not values:
            raise UserError(f"{path}: {where} has no values for {key!r}. Give a list, such as [1, 2].")
    return {key: [_read_number(value) for value in values] for key, values in axes.items()}


def _zipped(group: Any, path: Path) -> list[dict[str, Any]]:
    """Lists that go together: the first values of all, the second ones, and so on."""
    axes = _axes(group, "zip", path)
    if len({len(values) for values in axes.values()}) != 1:
        lengths = ", ".join(f"{key}: {len(values)}" for key, values in axes.items())
        raise UserError(f"{path}: lists that go together must be equally long; found {lengths or 'none'}.")
    return [dict(zip(axes, values)) for values in zip(*axes.values())]


def _mapping(given: Any, where: str, path: Path) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UserError(f"{path}: {where} must be lines such as 'depth: 8', found {given!r}.")
    return given


def _list(given: Any, where: str, path: Path) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list) else [given]
