"""A model card from a template of `model_cards/` and the facts of a release."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.files import safe_yaml
from hf_infinite_lr.report.table import NOTHING, count, markdown, number, seconds

from .metadata import card_metadata, scores_of
from .queue import tag_of
from .templates import template_folder

TEMPLATES = {"lm": "lm.md", "mae": "mae.md", "adapter": "adapter.md", "model": "base.md"}
"""Kind of model -> template."""

_OF_A_TRUNK = {"checkpoint": None, "outside": False, "unpickled": False, "parent_published": True}

_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]#~"})
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def render_card(facts: Mapping[str, Any], *, repo_id: str | None = None) -> str:
    """The card of a release.

    Args:
        facts (`Mapping`): From [`~hf_infinite_lr.hub.facts.release_facts`].
        repo_id (`str`, *optional*): The repository; by default what the facts say, and without any the local path.

    Returns:
        `str`: Metadata and Markdown.

    Raises:
        ValueError: if the metadata does not survive huggingface_hub's own reading, or no template can be filled.
        LookupError, TypeError: for facts that are none.
    """
    try:
        return _rendered(_complete(facts), repo_id or facts["hub"]["repo_id"])
    except (jinja2.TemplateError, FileNotFoundError) as error:
        raise ValueError(f"The card cannot be rendered ({type(error).__name__}: {error}).") from error


def _rendered(facts: Mapping[str, Any], repo_id: str | None) -> str:
    repo_id = repo_id if repo_id and "/" in repo_id else None
    metadata = card_metadata(facts, repo_id)
    body = _environment().get_template(TEMPLATES[facts["model"]["kind"]]).render(**_words(facts, repo_id))
    card = f"---\n{metadata.to_yaml()}\n---\n\n{body.strip()}\n"
    block = REGEX_YAML_BLOCK.search(card)
    if block is None or safe_yaml(block.group(2)) != metadata.to_dict():
        raise ValueError("The card's metadata changes when it is read.")
    return card


class WrittenCard(ModelCard):
    """A card for the Hub's validation, of just the text that is committed.

    `ModelCard` parses the metadata and writes them anew, in Python, which holds up a training beside it.
    """

    content = ""

    def __init__(self, content: str) -> None:
        self.content = content


def _complete(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with what those of earlier releases do not say."""
    model = {"base_class": facts["model"]["class"], "base_revision": None, **facts["model"]}
    trunk = facts["trunk"] and {**_OF_A_TRUNK, **facts["trunk"]}
    return {"rewind": "full", "methods": {}, "merge": None, "benchmarks": [], **facts, "model": model, "trunk": trunk}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: what comes from outside passes `text`, `code` or `shell`
    )
    environment.filters |= {"text": text, "code": code, "shell": shlex.quote, "python": _python}
    environment.filters |= {"rate": lambda value: NOTHING if value is None else format_rate(value), "count": count}
    return environment


def text(value: object) -> str:
    r"""Words from outside as Markdown that shows them as they are, on one line.

    >>> print(text("a|b <b>*c*</b>"))
    a|b &lt;b&gt;\*c\*&lt;/b&gt;
    """
    return " ".join(str(value).split()).translate(_MARKDOWN).translate(_HTML)


def code(value: object) -> str:
    """Words from outside as inline code, on one line.

    >>> code("a`b"), code("x")
    ('`` a`b ``', '`x`')
    """
    words = " ".join(str(value).split())
    if "`" not in words:
        return f"`{words}`"
    fence = "`" * (max(map(len, _runs(words))) + 1)
    return f"{fence} {words} {fence}"


def _python(value: str) -> str:
    """A text as a literal of Python, with double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _runs(words: str) -> list[str]:
    return "".join(letter if letter == "`" else " " for letter in words).split()


def _words(facts: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    """What the templates read: the facts, the names under which the model is loaded, and finished tables."""
    tag = tag_of("release", facts["directory"])
    path = f"{facts['output_dir']}/releases/{facts['directory']}"
    trunk_on_hub = _trunk_is_in(repo_id, facts)
    told = scores_of(facts)
    return {
        **facts,
        "repo_id": repo_id,
        "tag": tag,
        "path": repo_id or path,
        "base": _base(facts["model"]),
        "revision": f", revision={_python(tag)}" if repo_id else "",
        "local": facts["output_dir"],
        "trunk_on_hub": trunk_on_hub,
        **(_trunk_places(facts, repo_id if trunk_on_hub else None) if facts["trunk"] else {}),
        "unpublished": "not in this repository" if repo_id and facts["hub"]["trunks"] else "not published",
        "annealed_on": facts.get("annealed_on"),
        "annealed_on_data": _annealed_on(facts.get("annealed_on")),
        "glance_table": markdown(_glance(facts, trunk_on_hub)),
        "stream_table": markdown(_stream_rows(facts)),
        "scores": told,
        "shown": [scores for scores in told if scores["shown"]],
        "score_tables": {scores["metric"]: markdown(_score_rows(scores)) for scores in told},
        "number_table": markdown(_number_rows(told)) if told else "",
        "benchmark_table": markdown(_benchmark_rows(facts["benchmarks"])),
        "settings_table": markdown(_pairs({**facts["settings"], **_schedule_settings(facts["schedule"])})),
        "versions_line": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "train_seconds": seconds(facts["compute"].get("train_seconds")),
        "evaluation_seconds": seconds(facts["compute"].get("evaluation_seconds")),
    }


def _trunk_places(facts: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    """Where the trunk lies, as commands name it: in the run's directory, here, and where a run takes it from."""
    trunk = facts["trunk"]
    place = f"trunk/{trunk['directory']}"
    path = trunk["checkpoint"] or f"{facts['output_dir']}/{place}"
    path = f"where/it/lies/{path}" if trunk["outside"] else path
    download = bool(repo_id and trunk["unpickled"])
    source = f"{repo_id}@{trunk['tag']}" if repo_id and not download else path
    return {"trunk_place": place, "trunk_path": path, "trunk_source": source, "trunk_download": download}


def _trunk_is_in(repo_id: str | None, facts: Mapping[str, Any]) -> bool:
    """Whether a repository has the trunk: the run has published it there, and not to another one."""
    hub, trunk = facts["hub"], facts["trunk"]
    if not repo_id or not trunk or not hub["trunks"] or trunk["checkpoint"]:
        return False
    return hub["repo_id"] in (repo_id, repo_id.partition("/")[2], None)


def _glance(facts: Mapping[str, Any], trunk_on_hub: bool) -> list[list[str]]:
    schedule, spent, trunk = facts["schedule"], facts["spent"], facts["trunk"]
    rows = [["", ""], ["task", f"{facts['task']['number']} of {facts['num_tasks']}, {text(facts['task']['name'])}"]]
    rows.append(["phase at the release", code(schedule["phase"] or schedule["name"])])
    rows.append(
        ["learning rate at the release", NOTHING if schedule["rate"] is None else format_rate(schedule["rate"])]
    )
    if schedule["constant"] is not None:
        rows.append(["constant learning rate of the trunk", format_rate(schedule["constant"])])
    for kind, counts in spent.items():
        rows.append([f"{kind}: on the path / spent", f"{count(counts['on_path'])} / {count(counts['spent'])}"])
    what = "checkpoint" if trunk and trunk["checkpoint"] else "trunk"
    rows.append(["optimizer state", f"not in this release{f'; it is in the {what}' if trunk else ''}"])
    if trunk:
        own = code(trunk["checkpoint"]) if trunk["checkpoint"] else _trunk_name(trunk["directory"], trunk_on_hub)
        rows.append([f"grew from the {what}", f"{own}, step {count(trunk['step'])}"])
        rows.append([f"parent of that {what}", _parent(facts, trunk_on_hub)])
    return rows


def _parent(facts: Mapping[str, Any], trunk_on_hub: bool) -> str:
    parent = facts["trunk"]["parent"]
    if not parent or "gdumb" in facts["methods"]:
        return _origin(facts)
    if facts["rewind"] == "none" and facts["trunk"]["parent_annealed"]:
        return f"none: it went on from the annealed model of {code(parent)}"
    if trunk_on_hub and not facts["trunk"]["parent_published"]:
        return f"{_trunk_name(parent, False)}, not in this repository"
    return str(_trunk_name(parent, trunk_on_hub))


def _trunk_name(directory: str | None, on_hub: bool) -> str | None:
    """A trunk by its tag, or where it is not published by its directory."""
    return directory and code(tag_of("trunk", directory) if on_hub else f"trunk/{directory}")


def _origin(facts: Mapping[str, Any]) -> str:
    model = facts["model"]
    return "none: trained from scratch" if model["from_scratch"] else _base(model)


def _base(model: Mapping[str, Any]) -> str:
    revision = f" at {code(model['base_revision'])}" if model["base_revision"] else ""
    return f"{code(model['base_model'])}{revision}" if model["base_model"] else "a local model"


def _stream_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    rows = [["", "task", "data", "samples", "steps", "of these annealing"]]
    for row in facts["stream"]:
        if row is None:
            rows.append(["...", f"{count(facts['num_tasks'] - len(facts['stream']) + 1)} more", "", "", "", ""])
            continue
        here = "**" if row["number"] == facts["task"]["number"] else ""
        counts = [count(row[key]) for key in ("num_samples", "num_steps", "num_anneal_steps")]
        rows.append([str(row["number"]), f"{here}{text(row['name'])}{here}", _data(row), *counts])
    return rows


def _annealed_on(row: Mapping[str, Any] | None) -> str:
    return f"{text(row['name'])}, {_data(row)}" if row else ""


def _data(row: Mapping[str, Any]) -> str:
    if row.get("mixture"):
        return f"mixture: {', '.join(map(_data, row['mixture']))}"
    if row["dataset"]:
        link = f"[{text(row['dataset'])}](https://huggingface.co/datasets/{row['dataset']})"
        parts = [code(row[key]) for key in ("subset", "split") if row[key]]
        return " ".join([link, *parts])
    return f"built-in corpus {code(row['builtin'])}" if row["builtin"] else "local data"


def _score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    if scores["table"]:
        return [[text(cell) for cell in row] for row in scores["table"]]
    rows = [["evaluated on", "right after learning it", "now"]]
    for row in scores["last"]:
        cells = ["...", "", ""] if row is None else [text(row["column"]), *_values(row)]
        rows.append(cells)
    return rows


def _values(row: Mapping[str, Any]) -> list[str]:
    return [number(row["right_after_learning"]), number(row["value"])]


def _number_rows(all_scores: list[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["number", *(code(scores["metric"]) for scores in all_scores), "convention"]]
    for key, first in all_scores[0]["numbers"].items():
        values = [number(scores["numbers"][key]["value"]) for scores in all_scores]
        rows.append([code(key), *values, first["convention"]])
    return rows


def _benchmark_rows(benchmarks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["benchmark", "metric", "this release", "standard error", "scored by"]]
    for row in benchmarks:
        values = [number(row[key]) for key in ("value", "standard_error")]
        rows.append([text(row["benchmark"]), code(row["metric"]), *values, text(row["scored_by"] or NOTHING)])
    return rows


def _pairs(values: Mapping[str, Any]) -> list[list[str]]:
    return [["setting", "value"], *([code(name), code(value)] for name, value in sorted(values.items()))]


def _schedule_settings(schedule: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: schedule[name] for name in ("anneal_budget", "replay_fraction") if schedule[name] is not None}
    return {**own, "lr_scheduler_type": schedule["name"], **(schedule["arguments"] or {})}
