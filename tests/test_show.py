import json
import re
from pathlib import Path

import pytest
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, ViTMAEConfig, ViTMAEForPreTraining

from hf_infinite_lr.cli.show import show
from hf_infinite_lr.construction import schedule_from_arguments
from hf_infinite_lr.recipe import load_recipe

PER_TASK = ["--model_name_or_path", "m", "--model_type", "null", "--lora.r", "2"]
PER_TASK += ["--adapter_per_task", "true", "--reset_optimizer", "true"]
README = ["--learning_rate", "3e-4", "--warmup_steps", "500", "--max_steps", "10000"]


def table(text):
    lines = text.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("phase"))
    rows = [line.replace("task ", "task-").split() for line in lines[head + 1 :]]
    return [row[:7] for row in rows[: rows.index([])] if row] if [] in rows else [row[:7] for row in rows]


def test_a_plain_run_shows_its_phases_its_line_and_its_picture(capsys, tmp_path):
    picture = tmp_path / "curve.png"
    assert show([*README, "--lr_scheduler_kwargs", '{"num_anneal_steps": 0.2}', "--output", str(picture)]) == 0
    captured = capsys.readouterr()
    assert table(captured.out) == [
        ["warmup", "task-1", "500", "0", "500", "0", "3.0e-4"],
        ["cooldown_to_constant", "task-1", "3500", "500", "4000", "3.0e-4", "2.25e-4"],
        ["constant", "task-1", "4000", "4000", "8000", "2.25e-4", "2.25e-4"],
        ["anneal", "task-1", "2000", "8000", "10000", "2.25e-4", "3.0e-5"],
    ]
    assert "use checkpoint-8000, not checkpoint-10000." in captured.out
    assert "branches off the trunk at 8000" in captured.out
    assert captured.err == ""
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_single_keys_rule_over_the_mapping_in_both_forms(capsys):
    mapping = ["--lr_scheduler_kwargs", '{"num_anneal_steps": 0.2, "min_lr": 1e-6}']
    for dotted in (
        ["--lr_scheduler_kwargs.num_anneal_steps", "0.15"],
        ["--lr_scheduler_kwargs.num_anneal_steps=0.15"],
    ):
        assert show([*README, *mapping, *dotted]) == 0
        assert table(capsys.readouterr().out)[-1] == ["anneal", "task-1", "1500", "8500", "10000", "2.25e-4", "1.0e-6"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--max_steps", "90", "--release", "last"], "--release goes with --task_steps."),
        (["--max_steps", "90", "--anneal_budget", "extra"], "--anneal_budget goes with --task_steps."),
        (["--task_steps", "90", "--max_steps", "60"], "--max_steps goes without --task_steps, which say how long"),
    ],
)
def test_what_has_no_meaning_for_a_run_is_not_passed_over(given, sentence, capsys):
    assert show(given) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("steps", [["800", "400"], ["[800, 400]"]])
def test_a_continual_run_has_the_schedule_of_its_arguments(steps, capsys):
    assert show(["--task_steps", *steps, "--anneal_budget", "extra", "--learning_rate", "1e-3"]) == 0
    schedule = schedule_from_arguments(
        "infinite", task_steps=[800, 400], learning_rate=1e-3, warmup_steps=0.05, kwargs={}, anneal_budget="extra"
    )
    rows = table(capsys.readouterr().out)
    assert [(row[0], int(row[3])) for row in rows] == [
        (phase.name, start) for phase, start in zip(schedule.phases, schedule.boundaries, strict=False)
    ]
    assert [row[1] for row in rows].count("task-2") == 2


def test_release_last_anneals_once(capsys):
    assert show(["--task_steps", "800", "400", "--release", "last"]) == 0
    assert [row[1] for row in table(capsys.readouterr().out) if row[0] == "anneal"] == ["task-2"]


def test_the_phases_of_a_schedule_that_re_warms(capsys):
    words = "--lr_scheduler_type rsqrt_rewarm --max_steps 100 --warmup_steps 10 --learning_rate 1e-3"
    assert show([*words.split(), "--lr_scheduler_kwargs", '{"num_tasks": 2, "min_lr": 0}']) == 0
    text = capsys.readouterr().out
    assert [row[:5] for row in table(text) if row[1] == "task-2"] == [
        ["warmup", "task-2", "10", "50", "60"],
        ["rsqrt_decay", "task-2", "30", "60", "90"],
        ["linear_end", "task-2", "10", "90", "100"],
    ]
    assert (
        text.strip()
        .splitlines()[-1]
        .endswith(
            "task 2: re-warm-up 50-60 (to 1.0e-3), reciprocal square root to 90 (to 5.0e-4), linear end to 100 (to 0)."
        )
    )


def test_a_schedule_of_transformers_is_one_curve(capsys):
    assert show(["--lr_scheduler_type", "linear", "--max_steps", "1000", "--warmup_steps", "0.1"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("  5.0e-5 ")
    assert "linear  the run   1000     0  1000             0           0" in text


def test_a_long_table_is_cut_in_its_middle(capsys):
    assert show(["--task_steps", *["100"] * 100]) == 0
    text = capsys.readouterr().out
    assert "... 143 more phases ..." in text
    assert len(text.splitlines()) < 90


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--max_steps", "100", "--warmup_steps", "70"],
            "The phases are longer than their task: num_warmup_steps 70 + num_cooldown_steps 35 + num_anneal_steps 20 "
            "= 125, but the first task has 100 steps.",
        ),
        (
            ["--max_steps", "100", "--lr_scheduler_kwargs.num_decay_steps", "5"],
            "num_decay_steps=5 is not a name of the infinite schedule; here it is num_anneal_steps.",
        ),
        (
            ["--lr_scheduler_type", "cosine_rewarm", "--task_steps", "20", "100", "--warmup_steps", "25"],
            "The phases are longer than their task: num_warmup_steps 25, but the first task has 20 steps.",
        ),
        (
            ["--lr_scheduler_type", "rsqrt_rewarm", "--max_steps", "100"],
            "num_warmup_steps=0 must be 1 or more: rsqrt_rewarm decays by the length of its warm-up.",
        ),
        (["--max_steps", "100", "--learning_rate", "-1"], "learning_rate=-1.0 must be above 0."),
        (["--task_steps", "many"], "task_steps='many' must be an integer of 1 or more (optimizer steps of a task)."),
        (
            ["--task_steps", "100", "--lr_scheduler_kwargs.on_resume", "no"],
            "on_resume='no' must be one of continue, override, anneal.",
        ),
        (["--task_steps", "100", "--release", "no"], "release='no' must be one of each, last, none."),
        (["--lr_scheduler_type", "linear"], "max_steps=None: linear needs the steps of the run, 1 or more."),
        (
            ["--lr_scheduler_type", "reduce_lr_on_plateau", "--max_steps", "10"],
            "lr_scheduler_type='reduce_lr_on_plateau' follows the evaluations of a run: there is no curve before it.",
        ),
        (
            ["--lr_scheduler_type", "linear", "--max_steps", "10", "--lr_scheduler_kwargs.foo", "1"],
            "get_linear_schedule_with_warmup() got an unexpected keyword argument 'foo'",
        ),
    ],
)
def test_what_a_run_refuses_is_refused_in_the_same_sentence(arguments, sentence, capsys):
    assert show(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err == f"hf-infinite-lr show: {sentence}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "doubt"),
    [
        (
            ["--task_steps", "1000", "1000", "--lr_scheduler_kwargs.num_anneal_steps", "9"],
            "The annealing is under 1 % of its task (task 1: 9 of 1000 steps; and 1 more).",
        ),
        (["--task_steps", "1000", "--lr_scheduler_kwargs.num_anneal_steps", "10"], None),
        (
            [
                "--lr_scheduler_type",
                "cosine_rewarm",
                "--task_steps",
                "100",
                "20",
                "--lr_scheduler_kwargs.num_rewarm_steps",
                "20",
            ],
            "The task is no longer than its re-warm-up, so its rate only rises and never decays "
            "(task 2: 20 of 20 steps).",
        ),
        (
            ["--lr_scheduler_type", "cosine_rewarm", "--task_steps", "100", "20", "--warmup_steps", "25"],
            "The task is no longer than its re-warm-up, so its rate only rises and never decays "
            "(task 2: 20 of 20 steps).",
        ),
        (
            [
                "--lr_scheduler_type",
                "cosine_rewarm",
                "--task_steps",
                "100",
                "20",
                "--lr_scheduler_kwargs.num_rewarm_steps",
                "11",
            ],
            "The re-warm-up takes more than half of its task (task 2: 11 of 20 steps).",
        ),
        (["--lr_scheduler_type", "cosine_rewarm", "--task_steps", "100", "20"], None),
        (
            ["--task_steps", "100", "--lr_scheduler_kwargs.num_anneal_steps", "60"],
            "The annealing takes more than half of its task (task 1: 60 of 100 steps).\nwarning: The annealing leaves "
            "no step at the constant, so the trunk hardly learns from the task (task 1: 60 of 100 steps).",
        ),
        (
            ["--task_steps", "100", "--lr_scheduler_kwargs.min_lr_ratio", "0.75"],
            "The annealing ends at the rate where it begins, so a release is no better than the trunk "
            "(task 1: 20 of 100 steps).",
        ),
        (
            ["--max_steps", "100", "--lr_scheduler_kwargs.task_steps", "30"],
            "The run stops at step 100, but the schedule ends at step 120.",
        ),
    ],
)
def test_what_is_legal_but_doubtful_is_a_warning(arguments, doubt, capsys):
    assert show(arguments) == 0
    assert capsys.readouterr().err == (f"warning: {doubt}\n" if doubt else "")


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        show([*README, "--lerning_rate", "1"])
    assert caught.value.code == 2
    assert "--lerning_rate" in capsys.readouterr().err


def test_a_recipe_and_its_overrides_are_shown(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "objective: causal_lm\n"
        "model_type: llama\n"
        "tokenizer_name: bytes\n"
        "tasks:\n"
        "  - {name: web, data_files: web.jsonl, num_steps: 100}\n"
        "  - {name: code, data_files: code.jsonl, num_steps: 50}\n"
        "lr_scheduler_type: infinite\n"
        "lr_scheduler_kwargs: {num_anneal_steps: 0.2}\n"
        "learning_rate: 1.0e-3\n"
        f"output_dir: {tmp_path / 'out'}\n"
    )
    overrides = ["--learning_rate", "2e-3", "--lr_scheduler_kwargs.num_anneal_steps", "0.1"]
    assert show(["--config", str(recipe), *overrides, "--output", str(tmp_path / "curve.png")]) == 0
    text = capsys.readouterr().out
    assert [line.split()[:7] for line in text.splitlines() if line.startswith("anneal")] == [
        ["anneal", "web", "10", "90", "100", "1.5e-3", "2.0e-4"],
        ["anneal", "code", "5", "145", "150", "1.5e-3", "2.0e-4"],
    ]
    assert (tmp_path / "curve.png").is_file()
    assert show(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err


@pytest.fixture
def small_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "objective: causal_lm\n"
        "model_type: llama\n"
        "config_overrides: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
        "tokenizer_name: byte\n"
        "block_size: 32\n"
        "tasks:\n"
        "  - {name: web, data_files: web.jsonl, num_steps: 100}\n"
        "  - {name: code, data_files: code.jsonl, num_tokens: 12800}\n"
        "per_device_train_batch_size: 4\n"
        "gradient_accumulation_steps: 2\n"
        "warmup_steps: 10\n"
        "lr_scheduler_kwargs: {num_cooldown_steps: 10, num_anneal_steps: 0.2}\n"
        "save_steps: 50\n"
        f"output_dir: {tmp_path / 'out'}\n"
    )
    return path


def test_gdumb_begins_the_whole_curve_anew_with_each_task(small_recipe, capsys):
    words = ["--config", str(small_recipe), "--methods", "{gdumb: {buffer_size: 2}}", "--replay_fraction", "0"]
    assert show(words) == 0
    out, warnings = capsys.readouterr()
    phases = {task: [row[0] for row in table(out) if row[1] == task] for task in ("web", "code")}
    assert phases["web"] == phases["code"] == ["warmup", "cooldown_to_constant", "constant", "anneal"]
    assert "branches off" not in out
    assert "re-warm-up" not in out + warnings


LAUNCH_FILES = Path(__file__).parent.parent / "recipes" / "launch"


def test_a_launch_file_says_what_the_run_takes_there(small_recipe, capsys):
    words = ["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "cpu-2.yaml"), "--anneal_budget", "extra"]
    words += ["--methods.l2.weight", "0.1"]
    assert show(words) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert said["batch"] == "4 x 2 accumulated x 2 processes"
    assert said["a"].split() == ["step", "16", "samples", "=", "512", "tokens"]
    # 100 steps, 20 of them again on the trunk, and 12,800 / 512 = 25 steps
    assert said["the"].split() == ["run", "145", "steps,", "2,320", "samples", "=", "74,240", "tokens"]
    assert said["trunk/"].startswith("2 x ")
    assert said["checkpoint-N/"].startswith("at most 5 x ")
    names = ("weights", "optimizer", "methods")
    bytes_of = {name: int(said[name].split("(")[1].split()[0].replace(",", "")) for name in names}
    assert bytes_of["methods"] == bytes_of["weights"], "l2 keeps the reference"
    assert bytes_of["optimizer"] == pytest.approx(2 * bytes_of["weights"], abs=100)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_models_that_would_be_loaded_are_counted_without_loading(small_recipe, tmp_path, capsys):
    cpu = ["--launch", str(LAUNCH_FILES / "cpu.yaml")]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    mae = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, image_size=32, patch_size=16))
    mae.save_pretrained(tmp_path / "mae")
    (tmp_path / "images.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'mae'}\noutput_dir: {tmp_path / 'out'}\n"
        "tasks: [{name: web, builtin: digits, num_steps: 9}]\n"
    )
    held = {}
    for objective, more in (("mae", []), ("image_classification", []), ("image_classification", ["--lora.r", "2"])):
        more = [*more, *(["--lora.target_modules", "[q_proj]"] if more else []), "--objective", objective]
        assert show(["--config", str(tmp_path / "images.yaml"), *cpu, *more]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        held[objective, len(more)] = out[out.index("weights ") :].split("(")[1].split()[0]
    assert int(held["mae", 2].replace(",", "")) == 4 * mae.num_parameters()
    LlamaForCausalLM(LlamaConfig(vocab_size=384, **sizes)).save_pretrained(tmp_path / "lm")
    per_task = [*PER_TASK, "--model_name_or_path", str(tmp_path / "lm"), "--config_overrides", "{}"]
    assert show(["--config", str(small_recipe), *cpu, *per_task]) == 0, capsys.readouterr().err


def test_a_model_that_lies_in_half_precision_is_trained_in_single(small_recipe, tmp_path, capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=384, **sizes)).half().save_pretrained(tmp_path / "half")
    words = ["--model_name_or_path", str(tmp_path / "half"), "--model_type", "null", "--config_overrides", "{}"]
    weights = {}
    for dtype, more in (("float32", []), ("bfloat16", ["--dtype", "bfloat16"])):
        assert show(["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "cpu.yaml"), *words, *more]) == 0
        weights[dtype] = int(re.search(r"\nweights .*\((\S+) bytes", capsys.readouterr().out)[1].replace(",", ""))
        model = load_recipe(small_recipe, [*words, *more]).objective.model()
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert weights["float32"] == 4 * model.num_parameters() == 2 * weights["bfloat16"]


def test_a_head_is_whole_where_its_classes_are_known_and_said_to_be_none_where_not(tmp_path, capsys):
    words = ["--config", str(tmp_path / "images.yaml"), "--launch", str(LAUNCH_FILES / "cpu.yaml")]
    (tmp_path / "images.yaml").write_text(
        "objective: image_classification\nmodel_type: vit\n"
        "config_overrides: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}\n"
        f"output_dir: {tmp_path / 'out'}\ntasks: [{{name: web, builtin: digits}}]\n"
    )
    weights = []
    for length in ("", "[9]"):  # without a length the data is read for it
        assert show([*words, *(["--task_steps", length] if length else [])]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        weights.append(int(re.search(r"\nweights .*\((\S+) bytes", out)[1].replace(",", "")))
        assert ("\nThe head is counted with 1 output, because" in out) == bool(length)
    assert weights[0] - weights[1] == 4 * 9 * (16 + 1), "10 digits, and 1 output"


def test_a_run_that_stops_early_and_keeps_its_start(small_recipe, capsys):
    words = ["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "cpu.yaml"), "--max_steps", "30"]
    assert show([*words, "--merge.method", "first"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert said["the"].split()[:3] == ["run", "30", "steps,"]
    assert said["start/"] == said["releases/"].replace("2 x", "1 x")


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        ("{distributed_type: FSDP, num_processes: 2, use_cpu: true}", [], r"use_cpu=True with distributed_type=FSDP"),
        ("{distributed_type: MULTI_CPU, num_processes: 2, use_cpu: true}", [], r"starts one process without mpirun"),
        (
            "{distributed_type: MULTI_GPU, num_processes: 3, num_machines: 2}",
            [],
            r"num_processes=3 must be a multiple",
        ),
        (
            "{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {zero_stage: 3}}",
            [],
            r"stage3_gather_16",
        ),
        (
            "{distributed_type: DEEPSPEED, num_processes: 2, mixed_precision: bf16, deepspeed_config: {}}",
            [],
            r"mixed_precision='bf16' of the launch file, but 'no' of the recipe",
        ),
        (
            "{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {zero_stage: 2}}",
            ["--rewind", "weights"],
            r"rewind='weights' cannot be used",
        ),
        (
            "{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {zero_stage: 1}}",
            ["--methods.gdumb.buffer_size", "9"],
            r"methods\.gdumb cannot be used with DeepSpeed",
        ),
        (
            "{distributed_type: FSDP, num_processes: 2, fsdp_config: {fsdp_version: 2}}",
            ["--methods.lwf.weight", "1"],
            r"methods\.lwf cannot be used with FSDP",
        ),
        ("{deepspeed_config_file: FILE}", [], r"the key 'scheduler' of the DeepSpeed configuration would replace"),
        ("{deepspeed_config_file: BATCH}", [], r"train_batch_size=64, but the recipe makes it 16; set it to auto"),
        ("{deepspeed_config_file: BF16}", [], r"bf16\.enabled=True, but the recipe makes it False; set it to auto"),
        ("{gradient_accumulation_steps: 4}", [], r"gradient_accumulation_steps=4, but the recipe makes it 2"),
        ("{gradient_clipping: 0.5}", [], r"gradient_clipping=0\.5, but the recipe makes it 1\.0; set it to auto"),
        ("{zero_stage: 2}", ["--merge.method", "ema"], r"merge\.method='ema' cannot be used with DeepSpeed"),
        ("{zero_stage: 3, zero3_save_16bit_model: true}", ["--zero_shot_tasks", "[piqa]"], r"which DeepSpeed ZeRO-3"),
        ("{distributed_type: FSDP, num_processes: 2}", ["--zero_shot_tasks", "[piqa]"], r"which FSDP does not keep"),
        (
            "{distributed_type: FSDP, num_processes: 2}",
            ["--push_to_hub", "true", "--hub_strategy", "all_checkpoints"],
            r"hub_strategy='all_checkpoints' cannot be used with FSDP, .*: choose hub_strategy='every_save'\.",
        ),
        (
            "{distributed_type: FSDP, num_processes: 2}",
            PER_TASK,
            r"adapter_per_task=True\) cannot be used with FSDP",
        ),
        (
            "{zero_stage: 1}",
            PER_TASK,
            r"adapter_per_task=True\) cannot be used with Deep",
        ),
        (
            "{distributed_type: FSDP, num_processes: 2, fsdp_config: {fsdp_version: 1}}",
            ["--methods.mas.weight", "1"],
            r"methods\.mas cannot be used with FSDP 1; set fsdp_version=2",
        ),
        (
            "{zero_stage: 1}",
            ["--methods", "{lwf: {}}", "--torch_compile", "true"],
            r"methods\.lwf .* torch_compile",
        ),
        ("{distributed_type: MEGATRON_LM, num_processes: 2}", [], r"distributed_type=MEGATRON_LM cannot be used"),
        (
            "{distributed_type: FSDP, num_processes: 4, parallelism_config: {parallelism_config_tp_size: 2}}",
            [],
            r"tp_size=2 cannot be used with ContinualTrainer",
        ),
        (
            "{distributed_type: FSDP, num_processes: 4, parallelism_config: {parallelism_config_dp_shard_size: 3}}",
            [],
            r"num_processes=4 must be dp_replicate_size=1 times dp_shard_size=3",
        ),
        ('{distributed_type: "NO", num_processes: 2}', [], r"distributed_type=NO with num_processes=2 starts one"),
        ("{deepspeed_config_file: ZERO}", [], r"gradient_accumulation_steps=1, but the recipe makes it 2; set it to"),
        ("{deepspeed_config_file: PLAIN}", [], r"lacks zero_optimization, without which Accelerate refuses it"),
        ("{deepspeed_config_file: UNCLIPPED}", [], r"without the key 'gradient_clipping' nothing clips"),
        (
            "{zero_stage: 3, zero3_save_16bit_model: true}",
            ["--methods", "{attention_preserving: {}}"],
            r"methods\.attention_preserving cannot be used with DeepSpeed ZeRO-3",
        ),
        ("[]", [], r"is no Accelerate configuration"),
        ("{deepspeed_config_file: BROKEN}", [], r"BROKEN is not valid JSON: Expecting"),
        (
            "{distributed_type: MULTI_GPU}",
            [],
            r"num_processes=-1 of .* must be an integer of 1 or more; or pass --num_p",
        ),
        ("{distributed_type: MULTI_GPU, num_processes: two}", [], r"num_processes='two' of .* must be an integer"),
        (
            "{distributed_type: MULTI_GPU, num_processes: 2}",
            ["--num_processes", "0"],
            r"num_processes=0 of .* must be",
        ),
        (
            "{distributed_type: MULTI_GPU, num_processes: 2, num_machines: 0}",
            [],
            r"num_machines=0 of .* must be an int",
        ),
    ],
)
def test_what_of_launch_file_and_recipe_does_not_fit_is_refused(
    content, more, sentence, small_recipe, capsys, tmp_path
):
    zero = {"zero_optimization": {"stage": 2}}
    whole = {**zero, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    files = {
        "FILE": {**zero, "scheduler": {}},
        "BATCH": {**whole, "train_batch_size": 64},
        "BF16": {**whole, "bf16": {"enabled": True}},
        "ZERO": {**zero, "gradient_clipping": "auto"},
        "PLAIN": {},
        "UNCLIPPED": zero,
        "BROKEN": "stage: 2",
    }
    if "distributed_type" not in content and content != "[]":
        content = f"{{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {content}}}"
    for name, config in files.items():
        (tmp_path / name).write_text(config if isinstance(config, str) else json.dumps(config))
        content = content.replace(name, str(tmp_path / name))
    launch = tmp_path / "launch.yaml"
    launch.write_text(content)
    assert show(["--config", str(small_recipe), "--launch", str(launch), *more]) == 1
    assert re.search(sentence, capsys.readouterr().err)


def test_precision_and_batch_are_those_of_the_machine_that_trains(small_recipe, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    words = ["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "ddp.yaml"), "--bf16", "true"]
    assert show(words) == 0, capsys.readouterr().err
    assert "a step         64 samples" in capsys.readouterr().out, "4 x 2 accumulated x 8 processes"
    assert show([*words[:2], *words[4:]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--save_total_limit", "2"], "at most 3 x "),
        (["--save_strategy", "epoch"], "at most 2 x "),
        (["--save_strategy", "epoch", "--save_total_limit", "2"], "at most 3 x "),
    ],
)
def test_checkpoints_that_lie_there_at_a_time_are_counted(more, said, small_recipe, capsys):
    assert show(["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "cpu.yaml"), *more]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert lines["checkpoint-N/"].startswith(said)
    assert ("further pass" in lines["checkpoint-N/"]) == ("epoch" in more and "--save_total_limit" not in more)


def test_a_job_of_several_machines_is_counted_whole(small_recipe, capsys):
    words = ["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "deepspeed-zero2.yaml")]
    assert show([*words, "--num_processes", "16", "--num_machines", "4", "--task_steps", "[50]"]) == 0
    out = capsys.readouterr().out
    assert "ZeRO-2, 16 processes on 4 machines" in out
    assert "a step         128 samples = 4,096 tokens" in out
    assert show([*words[:3], str(LAUNCH_FILES / "multi-node.sbatch")]) == 1
    assert "is a batch script; name the file that its LAUNCH names" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        show([*words[:2], "--num_processes", "2"])


def test_replicas_of_a_sharded_model_hold_what_one_of_them_holds(small_recipe, capsys, tmp_path):
    replicas = "parallelism_config: {parallelism_config_dp_replicate_size: 2, parallelism_config_dp_shard_size: 2}"
    said = []
    for processes in ("num_processes: 2", f"num_processes: 4, {replicas}", "num_processes: 4"):
        launch = tmp_path / "launch.yaml"
        launch.write_text(f"{{distributed_type: FSDP, {processes}, fsdp_config: {{fsdp_version: 2}}}}")
        assert show(["--config", str(small_recipe), "--launch", str(launch)]) == 0
        lines = capsys.readouterr().out.splitlines()
        said.append([line for line in lines if line.startswith(("weights", "gradients", "optimizer"))])
    assert len(said[0]) == 3
    assert said[0] == said[1] != said[2]


def said_bytes(capsys):
    """The bytes of each row of what was shown."""
    return {
        row[0].strip(): int(row[1].replace(",", ""))
        for row in re.findall(r"^(.{15})[^(\n]*\((\S+) bytes", capsys.readouterr().out, re.MULTILINE)
    }


def test_small_weights_are_whole_on_each_device_under_zero_3(small_recipe, capsys, tmp_path):
    own = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    auto = {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    small = {}
    for threshold in (None, "auto", 16, 0):
        zero = own if threshold is None else {**own, "stage3_param_persistence_threshold": threshold}
        (tmp_path / "zero.json").write_text(json.dumps({**auto, "zero_optimization": zero}))
        launch = tmp_path / "launch.yaml"
        launch.write_text(
            "{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: "
            f"{{deepspeed_config_file: {tmp_path / 'zero.json'}}}}}"
        )
        assert show(["--config", str(small_recipe), "--launch", str(launch)]) == 0
        said = said_bytes(capsys)
        small[threshold] = said.get("small weights", 0)
    assert small[None] == 2 * said["weights"], "none has more than 100,000 elements"
    assert small["auto"] == small[16] == 4 * 3 * 16, "the three norms alone; a matrix has 256 elements"
    assert small[0] == 0


def test_fsdp_holds_what_is_trained_in_single_precision(small_recipe, capsys):
    words = ["--config", str(small_recipe), "--launch", str(LAUNCH_FILES / "fsdp2.yaml")]
    held = []
    for more in ([], ["--bf16", "true"], ["--dtype", "bfloat16"], ["--dtype", "bfloat16", "--bf16", "true"]):
        assert show([*words, *more]) == 0
        held.append(said_bytes(capsys)["weights"])
    assert held[0] == held[1] == held[3] == 2 * held[2]


def test_a_precision_of_the_launch_file_alone_is_doubtful(small_recipe, capsys, tmp_path):
    launch = tmp_path / "launch.yaml"
    launch.write_text("{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: bf16}")
    assert show(["--config", str(small_recipe), "--launch", str(launch)]) == 0
    assert "say it in the recipe alone" in capsys.readouterr().err


def test_a_recipe_takes_the_overrides_that_train_takes(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text((Path(__file__).parent.parent / "recipes/lm-docs-python-cpp/infinite.yaml").read_text())
    words = ["--config", str(recipe), "--lr_scheduler_kwargs", "{num_anneal_steps: 3}", "--warmup_steps", "7"]
    assert show(words) == 0
    assert "warmup" in capsys.readouterr().out


def test_no_trunk_waits_where_the_annealed_model_goes_on(tmp_path, capsys):
    recipe = str(Path(__file__).parent.parent / "recipes/lm-docs-python-cpp/infinite.yaml")
    assert show(["--config", recipe]) == 0
    assert "branches off the trunk" in capsys.readouterr().out
    assert show(["--config", recipe, "--rewind", "none"]) == 0
    assert "branches off the trunk" not in capsys.readouterr().out
