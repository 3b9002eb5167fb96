"""Fine-tuning on a user's folder: whole, interrupted and resumed, and what is refused."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.documents.test_documents import make_pdf, text_at
from transformers import TrainerCallback

from alignvlm.compose.assemble import load_pretrained
from alignvlm.data.collate import Collator
from alignvlm.errors import AlignVLMError, ConfigError, DataError
from alignvlm.finetune import Outcome, finetune, settings_from
from alignvlm.finetune import session as run_module
from alignvlm.finetune.adapter import load_adapted, lora_config, text_linears, wrap
from alignvlm.finetune.own_data import choose_held_out, load_data
from alignvlm.finetune.quality import combined
from alignvlm.finetune.report_page import html_page
from alignvlm.finetune.scores import Scored, compare
from alignvlm.finetune.session import _scored
from alignvlm.finetune.trainer import FinetuneTrainer, stage_of
from alignvlm.model.modeling import AlignVLMModel
from alignvlm.train.stages import StageDataset

pytest.importorskip("peft")

FAST = {"steps": 8, "lr": 5e-3, "batch_size": 2, "max_new_tokens": 6, "validation": 0.25}


class Stop(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture(scope="session")
def settings(tiny_model_dir: Path, pdf_folder: Path, questions_file: Path) -> Any:
    return settings_from(model=tiny_model_dir, pdfs=pdf_folder, data=questions_file, **FAST)


@pytest.fixture(scope="session")
def outcome(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The whole run, never interrupted."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return finetune(settings, out, quiet=True, report=lambda line: None)


def test_a_run_leaves_adapter_report_and_settings_alone(outcome: Outcome, settings: Any) -> None:
    assert sorted(path.name for path in outcome.out.parent.iterdir()) == ["run"]
    assert {path.name for path in outcome.out.iterdir()} == {
        "adapter", "finetune.yaml", "report.html", "report.json",
    }  # fmt: skip
    names = {path.name for path in (outcome.out / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".partial"))]
    saved = yaml.safe_load((outcome.out / "finetune.yaml").read_text("utf-8"))
    assert settings_from(**saved) == settings


def test_the_adapter_holds_lora_and_the_whole_connector(
    outcome: Outcome, tiny_model_dir: Path
) -> None:
    weights = load_file(outcome.out / "adapter" / "adapter_model.safetensors")
    lora = {name for name in weights if "lora_" in name}
    assert lora
    assert all(".language_model." in name for name in lora)
    base, _ = load_pretrained(tiny_model_dir, torch.float32)
    connector = base.model.connector.state_dict()
    rest = {name.split(".connector.")[-1]: weights[name] for name in weights if name not in lora}
    assert rest.keys() == connector.keys()
    assert any(not torch.equal(rest[name], connector[name]) for name in rest)
    config = json.loads((outcome.out / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model_dir)
    assert config["modules_to_save"] == ["model.connector"]


def test_training_lowers_the_validation_loss_and_keeps_the_best_score(outcome: Outcome) -> None:
    curve = dict(outcome.validation)
    assert list(curve) == list(range(9))
    assert min(curve.values()) < 0.9 * curve[0]
    scores = {entry["step"]: entry["score"] for entry in outcome.checkpoints}
    assert outcome.best_step == max(scores, key=scores.__getitem__) > 0
    start = outcome.before.parts()
    assert set(start) == {"answers", "reading", "aloud"}
    for entry in outcome.checkpoints:
        assert entry["score"] == combined(entry["parts"], start)
    assert outcome.score["before"] == scores[0]
    assert outcome.score["after"] == pytest.approx(scores[outcome.best_step], rel=1e-4)
    assert not outcome.kept_start
    assert "start is kept" not in outcome.to_text()


def test_the_loss_of_the_saved_adapter_is_the_best_one(
    outcome: Outcome, settings: Any, tmp_path: Path
) -> None:
    """The weights on disk are the best checkpoint's, not the last one's."""
    model, processor = load_adapted(outcome.out / "adapter")
    stage = stage_of(settings, 64, 8, 2, grounded=True, max_length=outcome.max_length)
    records = load_data(settings, tmp_path).validation(200, settings.seed)
    dataset = StageDataset(records, stage, processor, model, settings.seed)
    collate, losses = Collator(processor.tokenizer.pad_token_id), []
    with torch.no_grad():
        for index in range(len(dataset)):
            found = model(**collate([dataset[index]]), skip_logits=True)
            losses.append(float(found.lm_loss) + float(found.vocab_loss))
    expected = dict(outcome.validation)[outcome.best_step]
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-4)


def test_nothing_held_out_shares_a_document_with_training(settings: Any, tmp_path: Path) -> None:
    data = load_data(settings, tmp_path)
    for split, document in (
        (data.pages, lambda record: record.id.split("#")[0]),
        (data.questions, lambda record: tuple(record.images)),
    ):
        assert split.by == "document"
        train, held = (
            {document(part[i]) for i in range(len(part))} for part in (split.train, split.held_out)
        )
        assert held
        assert not train & held
        assert len(train) + len(held) == split.documents


@pytest.mark.parametrize(
    ("keys", "share", "size", "by"),
    [
        ("aabbccddee", 0.2, 2, "document"),
        ("aaaaaaaabb", 0.1, 2, "document"),  # none fits: the smallest
        ("aaaaaaaaaa", 0.1, 1, "record"),
        ("abcdefghij", 0.5, 5, "document"),
        ("ab", 0.1, 1, "document"),
        ("aa", 0.5, 1, "record"),
    ],
)
def test_about_the_share_asked_for_is_held_out(keys: str, share: float, size: int, by: str) -> None:
    held, found = choose_held_out(keys, share, seed=3)
    assert (len(held), found) == (size, by)
    assert held == sorted(set(held))
    if by == "document":
        assert not {keys[i] for i in held} & {k for i, k in enumerate(keys) if i not in held}
    assert choose_held_out(keys, share, seed=3) == (held, by)


def test_the_scores_are_those_of_the_model_and_of_the_adapter(outcome: Outcome) -> None:
    assert set(outcome.scores) == {
        "anls", "exact_match", "probability", "reading", "blank", "aloud",
    }  # fmt: skip
    report = json.loads((outcome.out / "report.json").read_text("utf-8"))
    for name, entry in report["scores"].items():
        assert entry["difference"] == pytest.approx(entry["after"] - entry["before"]), name
        assert entry["documents"] == 1
        assert entry["interval"] is None
    assert sum("one document alone" in warning for warning in report["warnings"]) == 6
    examples = report["examples"]["questions"]
    assert len(examples) == report["questions"]["held_out"]
    assert any(entry["before"] != entry["after"] for entry in examples)
    assert len(report["examples"]["pages"]) == 2
    assert "1 PDFs and 0 pages could not be used" in report["warnings"]


def test_scores_of_several_documents_come_with_intervals() -> None:
    groups = {"anls": ["a", "a", "b", "c", "d", "e"]}
    low, high = ({"anls": [{"score": x} for x in row]} for row in ([0.0] * 6, [1, 1, 0, 1, 1, 1]))
    before, after = Scored(low, groups, [], []), Scored(high, groups, [], [])
    better, worse = compare(before, after, 0)["anls"], compare(after, before, 0)["anls"]
    assert (better["before"], better["documents"]) == (0, 5)
    assert better["difference"] == better["after"] == pytest.approx(5 / 6)
    assert 0 < better["interval"][0] < 5 / 6 < better["interval"][1] <= 1
    assert worse["interval"] == [-bound for bound in reversed(better["interval"])]
    nothing = {"questions": [], "pages": []}
    data = {
        "settings": {"model": "<m>"}, "steps": 1, "planned_steps": 1, "trained_parameters": 1,
        "kept": "start", "warnings": [], "checkpoints": [], "best_step": 0, "examples": nothing,
        "pages": None, "questions": None, "harvest": {},
    }  # fmt: skip
    good, bad = (html_page({**data, "scores": {"anls": s}}, [], [], {}) for s in (better, worse))
    assert 'class="number better">+0.833 (+' in good
    assert "<code>&lt;m&gt;</code>" in good
    assert 'class="number worse">-0.833 (-' in bad


class Page(HTMLParser):
    """Tags, and everything that a page points at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pointers: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "br", "line", "circle", "polyline"):
            self.open.append(tag)
        self.pointers += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


def test_the_report_is_one_page_that_needs_nothing_else(outcome: Outcome) -> None:
    text = (outcome.out / "report.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert {"svg", "polyline", "table", "img"} <= page.tags
    assert not {"script", "link"} & page.tags
    assert page.pointers
    assert all(pointer.startswith("data:image/jpeg;base64,") for pointer in page.pointers)
    for entry in outcome.scores.values():
        assert f"{entry['after']:.3f}" in text


def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(
    outcome: Outcome, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise Stop

    plain = run_module.FinetuneTrainer

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        kwargs["callbacks"].append(Interrupt())
        return plain(*args, **kwargs)

    monkeypatch.setattr(run_module, "FinetuneTrainer", interrupted)
    with pytest.raises(Stop):
        finetune(settings, out, quiet=True, report=lambda line: None)
    monkeypatch.undo()
    assert not out.exists()
    with pytest.raises(ConfigError, match="go on with --resume or start over"):
        finetune(settings, out, quiet=True)
    other = settings.model_copy(update={"lr": 1e-4})
    with pytest.raises(ConfigError, match="data changed since"):
        finetune(other, out, resume=True, quiet=True)
    lines: list[str] = []
    again = finetune(settings, out, resume=True, quiet=True, report=lines.append)
    assert "  resuming at checkpoint-5" in lines
    assert again.validation == outcome.validation
    first, second = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (outcome.out, out)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.scores == outcome.scores


def test_a_run_cut_short_while_scoring_is_not_trained_again(
    outcome: Outcome, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def stop_after(file: Path, *args: Any) -> Any:
        if file.name == "after.json":
            raise Stop
        return _scored(file, *args)

    monkeypatch.setattr(run_module, "_scored", stop_after)
    with pytest.raises(Stop):
        finetune(settings, out, quiet=True, report=lambda line: None)
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "_train", lambda *args: pytest.fail("trained twice"))
    again = finetune(settings, out, resume=True, quiet=True, report=lambda line: None)
    assert again.scores == outcome.scores
    assert (again.losses, again.validation) == (outcome.losses, outcome.validation)


def test_early_stopping_ends_a_run_that_does_not_get_better(settings: Any, tmp_path: Path) -> None:
    hopeless = settings.model_copy(update={"lr": 1e-30, "patience": 2, "steps": 20, "pdfs": None})
    outcome = finetune(hopeless, tmp_path / "run", quiet=True, report=lambda line: None)
    assert outcome.steps < outcome.planned_steps
    assert outcome.warnings()[0] == outcome.verdict() == outcome.to_text().splitlines()[0]
    assert outcome.verdict().startswith("the run did not improve the model: the start is kept")
    assert outcome.data["pages"] is None
    assert "reading" not in outcome.scores


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_run_that_diverges_says_so(settings: Any, tmp_path: Path) -> None:
    wild = settings.model_copy(update={"lr": 1e30, "steps": 20, "pdfs": None})
    with pytest.raises(AlignVLMError, match="diverged"):
        finetune(wild, tmp_path / "run", quiet=True, report=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_grounding_alone_trains_the_connector_alone(
    tiny_model_dir: Path, pdf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_from(model=tiny_model_dir, pdfs=pdf_folder, transcribe=False, **FAST)
    encode, grids = AlignVLMModel.encode_tiles, []

    def watch(model: Any, pixels: Any, image_grids: Any = None) -> Any:
        grids.append(image_grids)
        return encode(model, pixels, image_grids)

    monkeypatch.setattr(AlignVLMModel, "encode_tiles", watch)
    outcome = finetune(settings, tmp_path / "run", quiet=True, report=lambda line: None)
    assert grids and all(given is not None for given in grids)  # of training and validation alike
    weights = load_file(outcome.out / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all(".connector." in name for name in weights)
    assert set(outcome.scores) == {"reading", "blank"}
    assert set(outcome.before.parts()) == {"reading"}
    assert not outcome.kept_start
    assert "eval_lm_loss" not in outcome.log[0]
    curve = outcome.validation
    assert min(loss for _, loss in curve) < 0.9 * curve[0][1]


def test_train_vision_saves_the_encoder_too(
    settings: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    wanted = settings.model_copy(
        update={"train_vision": True, "transcribe": False, "steps": 4, "data": None, "lr": 0.01}
    )
    outcome = finetune(wanted, tmp_path / "run", quiet=True, report=lambda line: None)
    weights = load_file(outcome.out / "adapter" / "adapter_model.safetensors")
    before = load_file(tiny_model_dir / "model.safetensors")
    moved = {
        name
        for name, value in weights.items()
        if not torch.equal(value, before[name.removeprefix("base_model.model.")])
    }
    assert any(".vision_model." in name for name in moved)
    assert not [name for name in weights if "lora_" in name]


def test_a_connector_without_p_vocab_learns_to_transcribe(
    make_model: Any, make_processor: Any, pdf_folder: Path, tmp_path: Path
) -> None:
    model = make_model("mlp")
    model.save_pretrained(tmp_path / "model")
    make_processor(model.config).save_pretrained(tmp_path / "model")
    settings = settings_from(model=tmp_path / "model", pdfs=pdf_folder, **FAST)
    outcome = finetune(settings, tmp_path / "run", quiet=True, report=lambda line: None)
    assert set(outcome.scores) == {"aloud"}
    assert "eval_vocab_loss" not in outcome.log[0]
    assert "validation loss" in outcome.to_text()
    only = settings.model_copy(update={"transcribe": False})
    with pytest.raises(ConfigError, match="this model has no ALIGN"):
        finetune(only, tmp_path / "other", quiet=True, report=lambda line: None)


def test_overwrite_replaces_a_run_and_nothing_else(
    outcome: Outcome, settings: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(outcome.out, out)
    with pytest.raises(ConfigError, match="pass --overwrite"):
        finetune(settings, out, quiet=True)
    short = settings.model_copy(update={"steps": 1, "pdfs": None})
    again = finetune(short, out, overwrite=True, quiet=True, report=lambda line: None)
    assert again.steps == 1
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="leaves it alone"):
        finetune(settings, tmp_path / "mine", overwrite=True, quiet=True)


def test_bad_data_is_found_before_training_and_leaves_nothing(
    settings: Any, questions_file: Path, tmp_path: Path
) -> None:
    lines = questions_file.read_text("utf-8").splitlines()
    bad = questions_file.with_name("bad.jsonl")
    bad.write_text("\n".join([*lines[:5], '{"image": "gone.png", "question": "?"}']), "utf-8")
    wrong = settings.model_copy(update={"data": str(bad), "pdfs": None})
    with pytest.raises(DataError, match=r"bad\.jsonl:6: image 1 not found"):
        finetune(wrong, tmp_path / "run", quiet=True, report=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_one_page_alone_cannot_be_held_out(settings: Any, tmp_path: Path) -> None:
    make_pdf(tmp_path / "one.pdf", [text_at((20, 150, "alone"))])
    single = settings.model_copy(update={"pdfs": str(tmp_path / "one.pdf"), "data": None})
    with pytest.raises(DataError, match="only one record"):
        finetune(single, tmp_path / "run", quiet=True, report=lambda line: None)


def test_lora_is_for_the_language_models_linear_layers(make_model: Any) -> None:
    import re

    model = make_model()
    pattern = re.compile(text_linears(model))
    found = {name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    assert "model.language_model.layers.0.self_attn.q_proj" in found
    assert "model.language_model.layers.1.mlp.down_proj" in found
    assert all(name.startswith("model.language_model.") for name in found)
    assert len(found) == 14


@pytest.mark.parametrize(
    ("samples", "micro", "batch"),
    [(3, 1, 1), (18, 1, 2), (18, 2, 2), (30, 2, 2), (500, 4, 8), (3, 3, 3)],
)
def test_few_samples_make_small_steps(tmp_path: Path, samples: int, micro: int, batch: int) -> None:
    chosen = settings_from(model="m", data=tmp_path / "x.jsonl", micro_batch=micro)
    assert chosen.batch(samples) == batch
    fixed = settings_from(
        model="m", data=tmp_path / "x.jsonl", micro_batch=micro, batch_size=6 * micro
    )
    assert fixed.batch(samples) == 6 * micro


def test_learning_rates_follow_the_language_model_unless_one_is_given() -> None:
    chosen = settings_from(model="m", data="x.jsonl")
    assert chosen.rates(576) == {"connector": 1e-4, "text": 1e-3}
    assert chosen.rates(64) == chosen.rates(576)
    assert chosen.rates(2304)["text"] == pytest.approx(2.5e-4)
    assert settings_from(model="m", data="x.jsonl", lora_rank=0).rates(576) == {"connector": 1e-4}
    asked = settings_from(model="m", data="x.jsonl", lr=3e-5)
    assert asked.rates(2304) == {"connector": 3e-5, "text": 3e-5}


@pytest.mark.parametrize(("samples", "passes"), [(4, 10), (10, 10), (20, 5), (34, 3), (900, 3)])
def test_few_questions_are_passed_over_more_often(samples: int, passes: float) -> None:
    assert settings_from(model="m", data="x.jsonl").passes(samples) == passes
    assert settings_from(model="m", data="x.jsonl", epochs=1).passes(samples) == 1
    assert settings_from(model="m", data="x.jsonl", pdfs="d").passes(samples) == 3


def test_lora_has_its_own_learning_rate(tiny_model_dir: Path) -> None:
    model, _ = load_pretrained(tiny_model_dir, torch.float32)
    wrapped = wrap(model, lora_config(model, 2))
    trainer = FinetuneTrainer.__new__(FinetuneTrainer)
    trainer.rates = {"connector": 1e-4, "text": 1e-3}
    rates = {n: trainer.rate_of(n) for n, p in wrapped.named_parameters() if p.requires_grad}
    assert {rate for name, rate in rates.items() if "language_model" in name} == {1e-3}
    assert {rate for name, rate in rates.items() if "language_model" not in name} == {1e-4}
